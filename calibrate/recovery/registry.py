"""All recovery steps by name: a new one is a file beside this one, and a row here.

A package of the user's adds its own under the entry points `int8_gate.recovery`: see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel

from calibrate.plan import QuantizationPlan
from calibrate.recovery.bias_correction import correct_bias
from calibrate.recovery.equalization import equalize
from calibrate.recovery.step import RecoveryInputs, RecoveryStep
from validate.exceptions import JobError
from validate.registry import FunctionField, Registry

__all__ = ["RECOVERY_STEPS", "RecoveryChoice", "recover"]

RECOVERY_STEPS: Registry[RecoveryStep | type[BaseModel]] = Registry(
    "recovery step",
    "int8_gate.recovery",
    {"equalize": equalize, "bias_correction": correct_bias},
    FunctionField.problem,
)

_FIELD: FunctionField[RecoveryStep] = FunctionField(RECOVERY_STEPS)

RecoveryChoice = Annotated[str | BaseModel, _FIELD]
"""A step as a config names it: its name, or its settings where it has parameters."""


def recover(plan: QuantizationPlan, steps: Sequence[RecoveryChoice], inputs: RecoveryInputs) -> QuantizationPlan:
    """Apply recovery steps to a plan, in their order.

    Raises:
        JobError: a step returns something else than a plan for the same model.
        ValueError: there is no such step.
    """
    for step in steps:
        recovered = _FIELD.function_of(step)(plan, inputs)
        if not isinstance(recovered, QuantizationPlan) or recovered.origin != plan.origin:
            raise JobError(f"recovery step {_FIELD.label_of(step)} did not return a plan made from the one that it got")
        plan = recovered
    return plan
