"""Compares two models tensor by tensor: accumulated, and each layer alone on the reference's inputs.

Two views from one pass over the data. **Accumulated**: both models run whole, and error is carried on from layer to
layer. **Isolated**: the candidate runs once more with every compared tensor replaced by the reference's, so that each
layer is fed the reference's inputs and shows the error that it makes itself. A third comparison tells the runtime's
error from that of quantization: the runtime that executes a Q/DQ file is compared with the float simulation of that
file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.backends import Backend, CannotForceError, OnnxRuntimeBackend, Runnable, roundings
from validate.data import Batch
from validate.exceptions import NothingComparedError
from validate.layerwise.comparison import LayerDifference, QuantizedInput, TensorDifference
from validate.layerwise.provenance import Place, Quantizer, locate_tensors
from validate.layerwise.rounding_floor import ROUNDING, RuntimeErrors
from validate.layerwise.tensor_errors import TensorErrors
from validate.results import Histogram
from validate.stats import Statistics

__all__ = ["Findings", "Subjects", "compare", "subjects_of"]

_EXACT_DB = 40.0
"""What a layer without error counts as, at least, when growth is measured from it: about the SQNR of the best uniform
8-bit quantizer of a Gaussian (40.6 dB, found by minimizing the expected error over the step)."""
_HISTOGRAMS = 15
"""How many of the worst layers keep the histograms of their inputs."""
_BINS = 256

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Subjects:
    """Two models, and the pairs of tensors to compare.

    Attributes:
        reference, candidate: the two models.
        pairs: tensor of the reference -> tensor of the candidate.
        places: by tensor of the reference, in topological order; `inputs` are tensors of the reference too.
        runtime: what executes the candidate, where `candidate` simulates it.
        floors: more simulations of the candidate, which differ from it in rounding only.
    """

    reference: Backend
    candidate: Backend
    pairs: Mapping[str, str]
    places: Mapping[str, Place]
    runtime: Backend | None = None
    floors: Sequence[Backend] = ()


@dataclass(frozen=True)
class Findings:
    """The result of a comparison: see `Comparison` for the fields."""

    layers: list[LayerDifference]
    samples: int
    passes: int
    isolated_reason: str | None
    executions: dict[str, tuple[str, str]]
    """Runtime and device of ``reference``, ``candidate`` and, where there is one, ``runtime``."""


@dataclass
class _Layer:
    """What is added up of one pair."""

    candidate_tensor: str
    place: Place
    accumulated: TensorErrors = field(default_factory=TensorErrors)
    isolated: TensorErrors = field(default_factory=TensorErrors)
    runtime: RuntimeErrors = field(default_factory=RuntimeErrors)
    problem: str | None = None


@dataclass
class _Input:
    """What is added up of one tensor that the candidate quantizes."""

    quantizer: Quantizer
    statistics: Statistics = field(default_factory=Statistics)
    clipped: int = 0

    def add(self, values: NDArray[Any]) -> None:
        self.statistics.update(values)
        self.clipped += int(np.count_nonzero((values < self.quantizer.low) | (values > self.quantizer.high)))


def subjects_of(
    reference: Backend, candidate: Backend, pairs: Mapping[str, str], runtime: Backend | None = None, floors: int = 0
) -> Subjects:
    """Return the tensors to compare, with their places in the graph of the model that is ONNX.

    Node, op and depth are the reference's where it is ONNX; quantizers and precision are the candidate's. A quantized
    tensor that has the same name in both models is found by that name, whether it is compared or not.

    Args:
        reference: the model whose values are right.
        candidate: the model that is compared with it; one of the two is ONNX.
        pairs: tensor of the reference -> tensor of the candidate.
        runtime: what executes the candidate, where `candidate` simulates it in float.
        floors: how many more simulations, which differ in rounding only, to measure the floor with.
    """
    back = {theirs: ours for ours, theirs in pairs.items()}
    places: dict[str, Place] = {}
    if isinstance(candidate, OnnxRuntimeBackend):
        for tensor, place in locate_tensors(candidate.graph, back).items():
            quantizers = [replace(q, tensor=back.get(q.tensor, q.tensor)) for q in place.quantizers]
            inputs = [back[name] for name in place.inputs]
            places[back[tensor]] = replace(place, inputs=inputs, quantizers=quantizers)
    if isinstance(reference, OnnxRuntimeBackend):
        for tensor, place in locate_tensors(reference.graph, pairs).items():
            known = places.get(tensor)
            precision, quantizers = (known.precision, known.quantizers) if known else ("other", [])
            places[tensor] = replace(place, precision=precision, quantizers=quantizers)
    ordered = dict(sorted(places.items(), key=lambda item: item[1].depth))
    graph = candidate.graph if isinstance(candidate, OnnxRuntimeBackend) else None
    again: list[Backend] = []
    if graph is not None:
        again = [OnnxRuntimeBackend(roundings(graph, ROUNDING, seed)) for seed in range(floors)]
    return Subjects(reference, candidate, {name: pairs[name] for name in ordered}, ordered, runtime, again)


def compare(subjects: Subjects, batches: Iterable[Batch], on_batch: Callable[[int], None]) -> Findings:
    """Run the models over the batches and return how far each pair is apart, in topological order.

    Memory holds one batch of the compared tensors of up to three models. Where the shapes of a pair differ, its result
    says so.

    Args:
        subjects: at least one pair.
        batches: inputs of both models.
        on_batch: called with the number of samples just done.

    Raises:
        NothingComparedError: there is no pair or no sample.
        JobError: a model cannot be loaded or run.

    Examples:
        >>> import onnx_ir as ir
        >>> header = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y)'
        >>> texts = [f"{header} <float k = {{{k}}}> {{y = Mul(x, k)}}" for k in ("1.0", "1.125")]
        >>> reference, candidate = (OnnxRuntimeBackend(ir.from_onnx_text(text)) for text in texts)
        >>> batch = Batch({"x": np.array([[3.0, 4.0]])}, labels=[None], contents=[b"a"], first=0)
        >>> found = compare(subjects_of(reference, candidate, {"y": "y"}), [batch], on_batch=lambda samples: None)
        >>> [(layer.tensor, round(layer.accumulated.sqnr_db, 2)) for layer in found.layers]  # 20 log10(8)
        [('y', 18.06)]
    """
    if not subjects.pairs:
        raise NothingComparedError(
            "no tensor of the reference could be paired with one of the candidate, so nothing was compared"
        )
    layers = {name: _Layer(subjects.pairs[name], place) for name, place in subjects.places.items()}
    inputs = {quantizer: _Input(quantizer) for layer in layers.values() for quantizer in layer.place.quantizers}
    theirs = list(subjects.pairs.values())
    reference, candidate = subjects.reference.load(list(subjects.pairs)), subjects.candidate.load(theirs)
    runtime = subjects.runtime.load(_shared(subjects.runtime, theirs)) if subjects.runtime else None
    floors = [floor.load(theirs) for floor in subjects.floors]
    forced: Runnable | None = None
    isolated_reason: str | None = None
    samples = 0
    for batch in batches:
        expected, actual = reference.run(batch.inputs), candidate.run(batch.inputs)
        for name, layer in layers.items():
            _add(layer, layer.accumulated, expected[name], actual[layer.candidate_tensor], batch)
        for quantizer, quantized in inputs.items():
            values = expected.get(quantizer.tensor, batch.inputs.get(quantizer.tensor))
            if values is not None and np.isfinite(values).all():
                quantized.add(values)
        if samples == 0:
            fits = [layer.candidate_tensor for layer in layers.values() if layer.problem is None]
            try:
                forced = subjects.candidate.load(fits, forced=fits)
            except CannotForceError as error:
                isolated_reason = str(error)
        if forced is not None:
            given = {layer.candidate_tensor: expected[name] for name, layer in layers.items() if layer.problem is None}
            own = forced.run({**batch.inputs, **given})
            for name, layer in layers.items():
                if layer.problem is None:
                    _add(layer, layer.isolated, expected[name], own[layer.candidate_tensor], batch)
        if runtime is not None:
            _add_runtime(layers.values(), actual, runtime, floors, batch)
        samples += len(batch)
        on_batch(len(batch))
    if samples == 0:
        raise NothingComparedError("there were no samples, so nothing was compared")
    executions = {
        "reference": (reference.runtime, reference.device),
        "candidate": (candidate.runtime, candidate.device),
    }
    if runtime is not None:
        executions["runtime"] = runtime.runtime, runtime.device
    found = [_difference(name, layer, inputs, forced is not None) for name, layer in layers.items()]
    passes = 2 + (forced is not None) + (runtime is not None) + len(floors)
    return Findings(_with_growth(_with_histograms(found, inputs)), samples, passes, isolated_reason, executions)


def _shared(runtime: Backend, tensors: Sequence[str]) -> list[str]:
    """Return those of the tensors that the runtime gives: an engine has fused others away."""
    if not (shared := [name for name in tensors if name in runtime.tensors]):
        raise NothingComparedError("the runtime gives none of the compared tensors, so its error cannot be told")
    return shared


def _add(layer: _Layer, errors: TensorErrors, expected: NDArray[Any], actual: NDArray[Any], batch: Batch) -> None:
    try:
        errors.add(expected, actual, batch.first)
    except ValueError as error:
        layer.problem = layer.problem or str(error)


def _add_runtime(
    layers: Iterable[_Layer], simulated: Outputs, runtime: Runnable, floors: Sequence[Runnable], batch: Batch
) -> None:
    executed = runtime.run(batch.inputs)
    again = [floor.run(batch.inputs) for floor in floors]
    for layer in layers:
        name = layer.candidate_tensor
        if layer.problem is None and name in executed:
            layer.runtime.add(simulated[name], executed[name], [outputs[name] for outputs in again], batch.first)


def _difference(name: str, layer: _Layer, inputs: Mapping[Quantizer, _Input], isolated: bool) -> LayerDifference:
    place = layer.place
    return LayerDifference(
        tensor=name,
        candidate_tensor=layer.candidate_tensor,
        node=place.node,
        op_type=place.op_type,
        depth=place.depth,
        precision=place.precision,
        inputs=place.inputs,
        quantized_inputs=[_quantized_input(inputs[quantizer]) for quantizer in place.quantizers],
        accumulated=TensorDifference.of(layer.accumulated, layer.problem),
        growth_db=None,
        isolated=TensorDifference.of(layer.isolated, layer.problem) if isolated else None,
        runtime=layer.runtime.difference() if layer.runtime.samples else None,
    )


def _quantized_input(quantized: _Input) -> QuantizedInput:
    seen = quantized.statistics
    return QuantizedInput(
        tensor=quantized.quantizer.tensor,
        scale=quantized.quantizer.scale,
        low=quantized.quantizer.low,
        high=quantized.quantizer.high,
        clipped_share=quantized.clipped / seen.count if seen.count else math.nan,
        amax=seen.amax,
    )


def _with_growth(layers: list[LayerDifference]) -> list[LayerDifference]:
    """Add by how much each layer is worse than the worst of its inputs.

    What has no error counts as the median layer, or `_EXACT_DB`: else the first layer that rounds at all would have
    an infinite growth. Below 0 dB there is more noise than signal, and less of it means nothing.
    """
    own = {layer.tensor: layer.accumulated.sqnr_db for layer in layers if layer.accumulated is not None}
    finite = [db for db in own.values() if math.isfinite(db)]
    exact = max(_EXACT_DB, statistics.median(finite) if finite else _EXACT_DB)
    found = []
    for layer in layers:
        before = [own[name] for name in layer.inputs if name in own]
        if any(map(math.isnan, before)):
            growth = 0.0  # all is lost already
        elif math.isnan(own[layer.tensor]):
            growth = math.inf
        else:
            growth = max(min([exact, *before]), 0.0) - min(exact, max(own[layer.tensor], 0.0))
        found.append(layer.model_copy(update={"growth_db": growth}))
    return found


def _with_histograms(layers: list[LayerDifference], inputs: Mapping[Quantizer, _Input]) -> list[LayerDifference]:
    """Add the histograms of what the worst layers quantize."""

    def ranking_sqnr(layer: LayerDifference) -> float:
        difference = layer.isolated or layer.accumulated
        assert difference is not None
        return -math.inf if math.isnan(difference.sqnr_db) else difference.sqnr_db

    worst = {layer.tensor for layer in sorted(layers, key=ranking_sqnr)[:_HISTOGRAMS]}
    seen = {quantizer.tensor: quantized.statistics for quantizer, quantized in inputs.items()}
    found = []
    for layer in layers:
        quantized = layer.quantized_inputs
        if layer.tensor in worst:
            quantized = [q.model_copy(update={"histogram": _histogram(seen[q.tensor])}) for q in quantized]
        found.append(layer.model_copy(update={"quantized_inputs": quantized}))
    return found


def _histogram(seen: Statistics) -> Histogram | None:
    """Return at most `_BINS` bins, by adding up neighbours."""
    if not seen.count:
        return None
    counts = seen.histogram()
    group = -(-len(counts) // _BINS)
    merged = np.add.reduceat(counts, np.arange(0, len(counts), group))
    return Histogram(width=seen.width * group, counts=merged.tolist())
