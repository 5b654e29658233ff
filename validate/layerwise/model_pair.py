"""Comparison of two models on the same samples: opened, their tensors paired, compared, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from validate.backends import (
    Backend,
    OnnxRuntimeBackend,
    Options,
    kind_of,
    model_name,
    open_model,
    open_pytorch,
)
from validate.data import Samples, SampleStream
from validate.environment import environment
from validate.exceptions import UsageError
from validate.layerwise.comparator import compare, subjects_of
from validate.layerwise.comparison import Comparison, Execution
from validate.layerwise.pairing import pair
from validate.layerwise.thresholds import Judgement, Thresholds, judge
from validate.notebook import can_show_progress, paragraphs

__all__ = ["JudgedComparison", "Pair", "compare_models", "compare_pair"]

_FLOORS = 2
"""Simulations that the runtime's rounding floor is measured with."""


@dataclass(frozen=True)
class Pair:
    """Two models, one of them ONNX.

    Attributes:
        reference, candidate: see `validate.backends.kind_of`.
        options: of the candidate; the reference runs on the CPU in float32.
        runtime: what executes the candidate, where `candidate` simulates it in float, and what it is called.
        mapping: tensor of the reference -> tensor of the candidate, beside those that are found.
    """

    reference: object
    candidate: object
    options: Options = field(default_factory=Options)
    runtime: tuple[str, Backend] | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)


class JudgedComparison(Comparison):
    """A comparison, and what thresholds say of it; others can judge it again with `validate.judge`."""

    judgement: Judgement = Field(exclude=True)

    def _repr_html_(self) -> str:
        outcome = "passed" if self.judgement.passed else "failed"
        return paragraphs([f"{outcome}: {'; '.join(self.judgement.reasons)}"]) + super()._repr_html_()


def compare_models(
    reference: object,
    candidate: object,
    samples: Any,
    *,
    thresholds: Thresholds | None = None,
    max_samples: int = 16,
    mapping: Mapping[str, str] | None = None,
    options: Options | None = None,
    progress: bool = True,
) -> JudgedComparison:
    """Say layer by layer how far a model is from a reference, and which layer is to blame.

    Args:
        reference: a path (.onnx, .engine, .pt2, module:name), an `onnx.ModelProto`, a `torch.nn.Module`, or what
            `calibrate.quantize` returned.
        candidate: the same; one of the two has to be ONNX, whose graph says which layer is which.
        samples: see `Samples`; labels are not needed.
        thresholds: what `judgement` is made by.
        max_samples: the first so many are used.
        mapping: tensor of the reference -> tensor of the candidate, where names and shapes do not tell.
        options: device, precision of a PyTorch candidate, arithmetic of an ONNX one; by default the CPU, float32,
            float.
        progress: show a progress bar.

    Returns:
        the comparison, with its judgement; SQNRs are in dB.

    Raises:
        UsageError: neither is ONNX, or what is given as samples is none.
        NothingComparedError: there was nothing to compare.
        JobError: a model cannot be opened or run.

    Examples:
        >>> import numpy as np, onnx.parser
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 9, opset_import: ["": 19]> same (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }'
        ... )
        >>> comparison = compare_models(model, model, np.ones((4, 2), np.float32), progress=False)
        >>> comparison.judgement.passed, comparison.layers[0].accumulated.sqnr_db
        (True, inf)
    """
    given = Samples.of(samples)
    models = Pair(reference, candidate, options or Options(), mapping=mapping or {})

    def stream(names: tuple[str, ...], fixed_batch: int | None) -> SampleStream:
        return given.stream("calibration", names, fixed_batch=fixed_batch).limited(max_samples)

    with Progress(console=Console(), transient=True, disable=not (progress and can_show_progress())) as bars:
        found = compare_pair(models, stream, max_samples, "validate.compare", bars)
    return JudgedComparison(**dict(found), judgement=judge(found, thresholds or Thresholds()))


def compare_pair(
    models: Pair,
    stream: Callable[[tuple[str, ...], int | None], SampleStream],
    samples: int,
    command: str,
    bars: Progress,
) -> Comparison:
    """Open two models, pair their tensors, and compare them.

    Args:
        models: what to compare.
        stream: samples for a model with these inputs, fixed to this batch size, if it is.
        samples: how many there are at most.
        command: what asked.
        bars: where progress is shown.

    Raises:
        UsageError: neither is ONNX, or a model is none.
        NothingComparedError: there was nothing to compare.
        JobError: a model cannot be opened or run.
    """
    pairs = {"reference": (models.reference, Options()), "candidate": (models.candidate, models.options)}
    kinds = {role: kind_of(model) for role, (model, _) in pairs.items()}
    if "onnx" not in kinds.values():
        raise UsageError("one of the two models must be an ONNX file: its graph says which layer is which")
    opened = {role: open_model(*pairs[role]) for role in pairs if kinds[role] != "pytorch"}
    first = next(model for model in opened.values() if isinstance(model, OnnxRuntimeBackend))
    batches = stream(first.input_names, first.fixed_batch)
    for role in pairs.keys() - opened.keys():
        example = next(iter(batches.limited(1).batches())).inputs
        opened[role] = open_pytorch(*pairs[role], first, example)
    reference, candidate = opened["reference"], opened["candidate"]
    found = pair(reference, candidate, models.mapping)
    name, runtime = models.runtime or ("", None)
    subjects = subjects_of(reference, candidate, found.pairs, runtime, _FLOORS if runtime else 0)
    bar = bars.add_task(f"compare {len(found.pairs)} tensors", total=samples)
    findings = compare(subjects, batches.batches(), lambda done: bars.advance(bar, done))
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        reference=_execution(models.reference, findings.executions["reference"]),
        candidate=_execution(models.candidate, findings.executions["candidate"]),
        runtime=_execution(name, findings.executions["runtime"]) if runtime else None,
        samples=findings.samples,
        passes=findings.passes,
        layers=findings.layers,
        unpaired=found.unpaired,
        isolated_reason=findings.isolated_reason,
        environment=environment(),
    )


def _execution(model: object, where: tuple[str, str]) -> Execution:
    return Execution(model=model_name(model), runtime=where[0], device=where[1])
