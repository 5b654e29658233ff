"""Compares an engine with its simulation: outputs, and the inner tensors that it shows under names of the ONNX graph.

What is beyond the rounding floor of that very graph, or not finite where the simulation is, is a departure. Where an
output is not finite, the kernels of the engine say where that starts, whatever their tensors are called.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from validate.backends import Backend, OnnxRuntimeModel, Runnable, detach, expose
from validate.backends.tensorrt import Layer
from validate.data import Batch
from validate.engines.excess import TensorNoise
from validate.engines.executions import executions
from validate.engines.graph import REFORMATS, ancestors, depths, producer_of, source
from validate.exceptions import JobError, NothingComparedError
from validate.layerwise import RuntimeLimits, TensorErrors
from validate.results import Departure, OutputDistance

__all__ = ["EngineComparison", "Showing", "compare_engine"]

_OWN_NAME = re.compile(r"(?P<tensor>.+)\.\d+_myl\d+")
"""How TensorRT-RTX 1.6.1 calls a tensor of the network that fusion left, seen on an H200. ``NAME.1_4_myl0``, with one
number more, is a buffer: `e/raw.1_5_myl0` held the output of another convolution, and `b/raw.1_4_myl0` an input."""
_BEFORE = 5
"""Nodes that a departure names as what precedes it."""

_FLOATS = ("Float", "Half", "BF16", "BFloat16")
"""How the inspector calls types that can hold what is not finite."""

log = logging.getLogger(__name__)

Outputs = Mapping[str, NDArray[Any]]


class Showing(Backend, Protocol):
    """An engine that shows inner tensors: a `TensorRTBackend` that was built with ``debug="unfused"``."""

    @property
    def layers(self) -> Sequence[Layer]:
        """What it is made of, in the order in which it runs."""
        ...


@dataclass(frozen=True)
class EngineComparison:
    """How far an engine is from its simulation.

    Attributes:
        outputs: in the order of the simulation's. Of outputs that are no floats, elements over those that differ, in
            dB.
        departure: the first, in topological order; None where there is none, as far as was looked.
        inner_tensors: inner tensors of the engine that were compared.
        samples: on which they were.
    """

    outputs: list[OutputDistance]
    departure: Departure | None
    inner_tensors: int
    samples: int


@dataclass
class _Output:
    """What is added up of one output."""

    noise: TensorNoise
    engine: TensorErrors
    simulation: TensorErrors


def compare_engine(
    reference: ir.Model,
    simulated: ir.Model,
    engine: Backend,
    batches: Iterable[Batch],
    *,
    unfused: Showing | None = None,
    on_batch: Callable[[int], None] = lambda samples: None,
) -> EngineComparison:
    """Run a float model, the simulation of its quantized file, and the engine of that file, and hold them together.

    Memory holds one batch of the compared tensors.

    Args:
        reference: the float model. Outputs that it does not have are held against the simulation only.
        simulated: the float32 model that computes what the engine should, with types and shapes. Of a file that was
            made elsewhere, the file itself.
        engine: what is judged.
        batches: inputs of all of them; two samples at least, or rounding cannot be told from an error.
        unfused: another engine of the same file that shows inner tensors.
        on_batch: called with the number of samples just done.

    Raises:
        NothingComparedError: there is no sample, or the engine lacks an output.
        JobError: a model cannot be loaded or run, or an output has another shape from the engine.
    """
    names = [str(value.name) for value in simulated.graph.outputs]
    if missing := [name for name in names if name not in engine.output_names]:
        raise NothingComparedError(
            f"the engine has no output {missing[0]}, so that it is not the engine of this model; build it again"
        )
    inner = {} if unfused is None else _named(unfused.layers, simulated, names)
    wanted = [*names, *inner.values()]
    known = [name for name in names if name in {value.name for value in reference.graph.outputs}]
    floats, simulation = _loaded(reference, known) if known else None, _loaded(simulated, wanted)
    others = [_loaded(model, wanted) for model in executions(simulated)]
    judged = engine.load(names)
    showing = unfused.load(list(inner)) if unfused is not None and inner else None
    outputs = {name: _Output(TensorNoise(), TensorErrors(), TensorErrors()) for name in names}
    seen = {name: TensorNoise() for name in inner.values()}
    samples, bad = 0, None
    for batch in batches:
        expected = floats.run(batch.inputs) if floats is not None else {}
        right, found = simulation.run(batch.inputs), judged.run(batch.inputs)
        again = [model.run(batch.inputs) for model in others]
        for name, output in outputs.items():
            if found[name].shape != right[name].shape:
                raise JobError(
                    f"output {name} has shape {found[name].shape} from the engine and {right[name].shape} from its "
                    "model, so that it is not the engine of this model; build it again"
                )
            output.noise.add(*_comparable(right[name], found[name], [one[name] for one in again]), batch.first)
            if name in expected:
                for errors, values in ((output.engine, found), (output.simulation, right)):
                    truth, value, _ = _comparable(expected[name], values[name], [])
                    errors.add(truth, value, batch.first)
        if showing is not None and (shown := _shown(showing, batch)) is None:
            showing, seen = None, {}
        elif showing is not None and shown:
            for own, name in inner.items():
                if name in seen and shown[own].shape != right[name].shape:
                    del seen[name]  # what TensorRT calls so is another tensor
                elif name in seen:
                    seen[name].add(right[name], shown[own], [one[name] for one in again], batch.first)
        if bad is None and any(output.noise.not_finite for output in outputs.values()):
            bad = batch
        samples += len(batch)
        on_batch(len(batch))
    if samples == 0:
        raise NothingComparedError("there were no samples, so the engine was compared with nothing")
    noises = {name: output.noise for name, output in outputs.items()} | seen
    departures = [_departure(simulated, name, noise) for name, noise in noises.items()]
    if bad is not None and unfused is not None:
        departures.append(_first_not_finite(simulated, unfused, bad))
    depth = depths(simulated)
    first = min((one for one in departures if one), key=lambda one: depth[one.node], default=None)
    distances = [_distance(name, output, name in known) for name, output in outputs.items()]
    return EngineComparison(distances, first, len(seen), samples)


def _loaded(model: ir.Model, tensors: Sequence[str]) -> Runnable:
    """Return a model that gives any of its tensors, quantized ones too."""
    return OnnxRuntimeModel(detach(expose(model, tensors)), outputs=tensors)


def _shown(unfused: Runnable, batch: Batch) -> Outputs | None:
    """Return inner tensors of an engine; None where it does not give them.

    TensorRT does not promise to show what its inspector names, and the outputs are judged without, too.
    """
    try:
        return unfused.run(batch.inputs)
    except JobError as error:
        log.warning("inner tensors of the engine are not compared: %s", error)
        return None


def _float_outputs(layer: Layer) -> list[str]:
    return [name for name, kind in zip(layer.outputs, layer.types, strict=True) if kind.startswith(_FLOATS)]


def _named(layers: Sequence[Layer], simulated: ir.Model, outputs: Sequence[str]) -> dict[str, str]:
    """Return which inner tensor of the engine is which of the simulation.

    The name has to say so, and the metadata that the kernel computes the node which gives that tensor. ``x/raw`` is
    what FP16 nodes of a deployed file give; the simulation's ``x`` is that, rounded.
    """
    values = {str(value.name): value for node in simulated.graph for value in node.outputs}
    found: dict[str, str] = {}
    for layer in layers:
        for own in layer.outputs:
            match = _OWN_NAME.fullmatch(own)
            name = match["tensor"] if match else ""
            if name not in values or producer_of(values[name]).name not in layer.nodes:
                continue
            rounded = name.removesuffix("/raw")
            name = rounded if rounded in values else name
            if name not in outputs and name not in found.values():
                found[own] = name
    return found


def _comparable(
    expected: NDArray[Any], actual: NDArray[Any], others: Sequence[NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]]:
    """Return floats as they are, and of all else ones, and where an array is equal to the first."""
    if expected.dtype.kind == "f":
        return expected, actual, list(others)
    ones = np.ones(expected.shape, np.float32)
    return ones, (actual == expected).astype(np.float32), [(one == expected).astype(np.float32) for one in others]


def _distance(name: str, output: _Output, has_reference: bool) -> OutputDistance:
    excess = output.noise.excess()
    return OutputDistance(
        tensor=name,
        to_float_db=output.engine.sqnr_db if has_reference else math.nan,
        simulation_to_float_db=output.simulation.sqnr_db if has_reference else math.nan,
        to_simulation_db=output.noise.errors.sqnr_db,
        floor_db=output.noise.floor_db,
        excess_db=excess.db,
        excess_low_db=excess.low_db,
        not_finite=output.noise.not_finite,
    )


def _departure(simulated: ir.Model, name: str, noise: TensorNoise) -> Departure | None:
    """Return what is wrong with one tensor; None where nothing is."""
    value = next(value for node in simulated.graph for value in node.outputs if value.name == name)
    node = source(producer_of(value))
    before = ancestors(node)[:_BEFORE]
    if noise.not_finite:
        what = f"{noise.not_finite} of {noise.errors.elements} values are NaN or infinite, and finite in simulation"
        return _made(node, name, "not finite", before, what)
    excess, most = noise.excess(), RuntimeLimits().max_excess_db
    if not excess.low_db > most:
        return None
    what = (
        f"noise is {excess.db:.1f} dB over what rounding does (at least {excess.low_db:.1f}), more than {most:g}: "
        f"{noise.errors.sqnr_db:.1f} dB to the simulation, and {noise.floor_db:.1f} dB between simulations"
    )
    return _made(node, name, "beyond the floor", before, what)


def _first_not_finite(simulated: ir.Model, unfused: Showing, batch: Batch) -> Departure | None:
    """Return the first kernel that gives a value which is not finite, where the simulation of its nodes is finite."""
    nodes = {str(node.name): node for node in simulated.graph}
    tensors = [name for layer in unfused.layers for name in _float_outputs(layer) if name in unfused.tensors]
    shown = _shown(unfused.load(tensors), batch) or {}
    for layer in unfused.layers:
        found = [shown[name] for name in _float_outputs(layer) if name in shown]
        wrong = sum(int(np.count_nonzero(~np.isfinite(values))) for values in found)
        fused = [nodes[name] for name in dict.fromkeys(layer.nodes) if name in nodes]
        fused = [node for node in fused if node.op_type not in REFORMATS] or fused
        if not wrong or not fused or not _is_finite(simulated, fused, batch):
            continue
        depth = depths(simulated)
        node = source(min(fused, key=lambda one: depth[str(one.name)]))
        what = f"{wrong} values that kernel {layer.name} gives are NaN or infinite, and finite in simulation"
        others = [str(one.name) for one in fused if one is not node]
        if others:
            what += f"; it computes {', '.join(others)} too"
        return _made(node, str(node.outputs[0].name), "not finite", ancestors(node)[:_BEFORE], what)
    return None


def _is_finite(simulated: ir.Model, nodes: Sequence[ir.Node], batch: Batch) -> bool:
    tensors = list(dict.fromkeys(str(value.name) for node in nodes for value in node.outputs if value.name))
    given = _loaded(simulated, tensors).run(batch.inputs)
    return all(np.isfinite(array).all() for array in given.values() if array.dtype.kind == "f")


def _made(node: ir.Node, tensor: str, kind: str, before: Sequence[ir.Node], what: str) -> Departure:
    return Departure.model_validate(
        {
            "node": str(node.name),
            "op_type": node.op_type,
            "tensor": tensor.removesuffix("/raw"),
            "kind": kind,
            "before": [str(one.name) for one in before],
            "detail": what,
        }
    )
