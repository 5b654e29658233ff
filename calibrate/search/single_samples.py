"""Single calibration samples, kept in memory while plans are tried on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from calibrate.loading import CalibrationInputs
from calibrate.observation import CalibrationRun
from validate.data import Batch

__all__ = ["SingleSamples"]


@dataclass(frozen=True)
class SingleSamples:
    """Single calibration samples, kept in memory until `release`.

    Attributes:
        inputs: have the calibration set.
        calibration: has the fingerprint of its samples.
    """

    inputs: CalibrationInputs
    calibration: CalibrationRun
    _kept: dict[int, Batch] = field(default_factory=dict)

    def batches(self, samples: Sequence[int]) -> list[Batch]:
        """Return the samples with these indices, in their order, each a batch of its own."""
        if missing := set(samples) - self._kept.keys():
            stream = replace(self.inputs.calibration.limited(max(missing) + 1), batch_size=1)
            batches = self.calibration.fingerprint.verify(stream.batches())
            self._kept.update({batch.first: batch for batch in batches if batch.first in missing})
        return [self._kept[index] for index in samples]

    def release(self) -> None:
        """Free their memory."""
        self._kept.clear()
