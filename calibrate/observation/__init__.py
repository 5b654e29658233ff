"""The streaming pass over calibration data: activations in, statistics out.

Statistics on disk, the ranges that FP16 cannot hold, and clipped shares are here too.
"""

from __future__ import annotations

from calibrate.observation.calibration_run import CalibrationRun, observe_calibration_set, unquantizable
from calibrate.observation.clipping import clipped_share, measure_clipping
from calibrate.observation.ranges import nodes_beyond_fp16
from calibrate.observation.statistics_file import StoredStatistics, merged, write_statistics
from calibrate.observation.streaming import Observation, observable, observe

__all__ = [
    "CalibrationRun",
    "Observation",
    "StoredStatistics",
    "clipped_share",
    "measure_clipping",
    "merged",
    "nodes_beyond_fp16",
    "observable",
    "observe",
    "observe_calibration_set",
    "unquantizable",
    "write_statistics",
]
