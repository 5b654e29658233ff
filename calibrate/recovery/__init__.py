"""Accuracy recovery: steps that change a plan so that its layers can stay in INT8; one step a file.

A step is a pure function from a plan, and what it may look at, to a plan; `recover` applies those that a config names.
"""

from __future__ import annotations

from calibrate.recovery.registry import RECOVERY_STEPS, RecoveryChoice, recover
from calibrate.recovery.step import RecoveryInputs, RecoveryStep

__all__ = ["RECOVERY_STEPS", "RecoveryChoice", "RecoveryInputs", "RecoveryStep", "recover"]
