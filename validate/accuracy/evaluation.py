"""Evaluation of models on the same labelled samples: each held against the first, sample by sample."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from validate.accuracy.contestants import Contestants, named_models
from validate.accuracy.sanity import sanity_warnings
from validate.accuracy.scoring import accuracy, batch_scores, candidate_accuracy
from validate.backends import (
    Deployable,
    Options,
    Runnable,
    files_of,
    read_onnx,
    write_onnx,
)
from validate.backends.tensorrt import Profile, ShapeRanges, build
from validate.data import Batch, Samples, SampleStream, label_text, repeats
from validate.environment import environment
from validate.exceptions import UsageError
from validate.notebook import can_show_progress
from validate.results import Evaluation, ModelEvaluation
from validate.tasks import Agreement, Answering, Task, with_or_without_labels

__all__ = ["Question", "evaluate_contestants", "evaluate_models"]


@dataclass(frozen=True)
class Question:
    """What an evaluation asks of its models.

    Attributes:
        task: scores outputs; where there are no labels it is wrapped in `Agreement`.
        stream: the samples.
        confidence: two-sided, that all intervals of the candidates hold together with.
        expected: value of the metric that the reference is known for.
        allow_repeats: accept samples that repeat others.
        build_for: compute capability that ONNX candidates are built for with TensorRT; None builds none.
        command: what asked.
    """

    task: Task
    stream: SampleStream
    confidence: float
    expected: float | None = None
    allow_repeats: bool = False
    build_for: str | None = None
    command: str = "validate.evaluate"


@dataclass
class _PassRecord:
    """What one pass saw of the samples, and what every model scored on them."""

    scores: dict[str, list[NDArray[np.float64]]]
    agreements: dict[str, list[NDArray[np.float64]]]
    contents: list[bytes] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    slices: list[str | None] = field(default_factory=list)
    shapes: ShapeRanges = field(default_factory=ShapeRanges)

    def add(self, batch: Batch) -> None:
        self.contents += batch.contents
        self.labels += map(label_text, batch.labels)
        self.slices += map(label_text, batch.slices)
        self.shapes.add(batch.inputs)


def evaluate_models(
    models: Sequence[object] | Mapping[str, object],
    rows: Any,
    task: Task,
    *,
    label: str | None = "label",
    confidence: float = 0.95,
    build_for: str | None = "8.9",
    options: Options | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score models on labelled samples, and say how much worse than the first each is, with an interval.

    All models see the same batches in one pass, and are in memory together. ONNX candidates (all but the first) are
    built with TensorRT where a library is installed, since a gate gives no GO to what no builder has accepted.

    Args:
        models: the reference first; or a mapping from name to model. A path (.onnx, .engine, .pt2, module:name), an
            `onnx.ModelProto`, a `torch.nn.Module`, what `calibrate.quantize` returned (in float simulation of its
            Q/DQ), or an object that follows `validate.backends.Runnable`.
        rows: samples with labels, see `Samples`.
        task: what the models are for; it brings the metric.
        label: name of the label in rows that are mappings; None measures agreement with the first model's answers.
        confidence: two-sided, in (0, 1), that the intervals of all candidates together hold with.
        build_for: compute capability to build for, e.g. ``"8.9"`` (an L4); None builds nothing.
        options: device, precision of PyTorch modules, arithmetic of ONNX Runtime; by default the CPU, float32, float.
        progress: show a progress bar.

    Raises:
        UsageError: a model, or what is given as samples, is none.
        JobError: a model cannot be opened or run, or the samples cannot be read or scored.

    Examples:
        >>> import numpy as np
        >>> class Rounds:  # any object that runs batches
        ...     runtime, device, input_names, output_names = "Python", "CPU", ("x",), ("y",)
        ...     def run(self, inputs):
        ...         return {"y": np.eye(3)[inputs["x"].astype(int)]}
        >>> from validate.tasks import Classification
        >>> rows = [(np.float32(i % 3), i % 3) for i in range(0, 3)]
        >>> evaluation = evaluate_models([Rounds(), Rounds()], rows, Classification(), progress=False)
        >>> [(model.model, model.accuracy.value) for model in evaluation.models]
        [('Rounds', 1.0), ('Rounds (2)', 1.0)]
    """
    contestants = Contestants.open(named_models(models), options or Options())
    samples = Samples.of(rows)
    stream = samples.stream("validation", contestants.input_names(), label, contestants.fixed_batch())
    question = Question(
        with_or_without_labels(task, label is not None),
        stream,
        confidence,
        allow_repeats=samples.allow_repeats,
        build_for=build_for,
    )
    with Progress(console=Console(), transient=True, disable=not (progress and can_show_progress())) as bars:
        return evaluate_contestants(contestants, question, bars)


def evaluate_contestants(contestants: Contestants, question: Question, bars: Progress) -> Evaluation:
    """Score every model in one pass, and hold each against the first; see `evaluate_models` for what is raised."""
    task, stream = question.task, question.stream
    if isinstance(task, Agreement) and len(contestants.models) == 1:
        raise UsageError("there are no labels (data.label is null), so that agreement needs a second model")
    runnables = contestants.load(stream)
    bar = bars.add_task(f"evaluate {', '.join(runnables)}", total=getattr(stream.source, "length", None))
    seen, beside = _pass(runnables, task, stream, lambda done: bars.advance(bar, done))
    scores = {name: np.concatenate(parts) for name, parts in seen.scores.items()}
    first = scores[next(iter(runnables))]
    repeated = repeats("validation", seen.contents, question.allow_repeats)
    warnings = [repeated] if repeated else []
    warnings += sanity_warnings(task, first, question.expected, stream)
    # Intervals of several candidates, all of which hold together with the confidence that is asked for (Bonferroni).
    confidence = 1 - (1 - question.confidence) / max(1, len(runnables) - 1)

    found: list[ModelEvaluation] = []
    for name, runnable in runnables.items():
        is_reference = not found
        agreement = None if beside is None else beside.metric.value(np.concatenate(seen.agreements[name]))
        found.append(
            ModelEvaluation(
                model=name,
                runtime=runnable.runtime,
                device=runnable.device,
                accuracy=accuracy(task.metric, first)
                if is_reference
                else candidate_accuracy(task.metric, first, scores[name], confidence, contestants.basis_of(name)),
                agreement=agreement,
                scores=scores[name].tolist(),
                plan_hash=contestants.plan_hash_of(name),
                engine=contestants.engine_of(name),
            )
        )
        if question.build_for is not None and not is_reference:
            bars.update(bar, description=f"build {name} with TensorRT")
            profile = seen.shapes.profile(contestants.fixed_batch_of(name))
            found[-1] = _with_build(found[-1], contestants.models[name], profile, question.build_for)
    return Evaluation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=question.command,
        task=task.name,
        data={
            "source": stream.source.model_dump(exclude_none=True, exclude_defaults=True),
            "preprocessing": stream.preparation.description,
        },
        samples=[content.hex() for content in seen.contents],
        labels=seen.labels,
        slices=seen.slices,
        models=found,
        warnings=warnings,
        environment=environment(),
    )


def _pass(
    runnables: Mapping[str, Runnable], task: Task, stream: SampleStream, advance: Callable[[int], None]
) -> tuple[_PassRecord, Agreement | None]:
    """Run all models over all samples, batch by batch; also by agreement with the first, where that can be told."""
    beside = None if isinstance(task, Agreement) or not isinstance(task, Answering) else Agreement(task)
    seen = _PassRecord({name: [] for name in runnables}, {name: [] for name in runnables})
    for batch in stream.batches():
        seen.add(batch)
        for index, (name, model) in enumerate(runnables.items()):
            outputs = model.run(batch.inputs)
            seen.scores[name].append(batch_scores(task, batch, outputs, is_reference=index == 0))
            if beside is not None:
                seen.agreements[name].append(batch_scores(beside, batch, outputs, is_reference=index == 0))
        advance(len(batch))
    return seen, beside


def _with_build(found: ModelEvaluation, model: object, profile: Profile, compute_capability: str) -> ModelEvaluation:
    """Have TensorRT build the ONNX file of a model, and note the file's size; what is no ONNX stays as it is."""
    with tempfile.TemporaryDirectory(prefix="evaluate-") as temporary:
        folder = Path(temporary)
        if isinstance(model, Deployable):
            path = folder / "model.onnx"
            write_onnx(model.deployed(), path)
        elif isinstance(model, onnx.ModelProto):
            path = folder / "model.onnx"
            write_onnx(ir.from_proto(model), path)
        elif isinstance(model, str | Path) and Path(model).suffix == ".onnx":
            path = Path(model)
        else:
            return found
        built = build(path, profile, compute_capability)
        size = sum(file.stat().st_size for file in files_of(path, read_onnx(path)))
    return found.model_copy(update={"tensorrt_build": built, "size_bytes": size})
