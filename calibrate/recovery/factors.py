"""Chooses the factors of channels: for each group, those with which its readers' outputs are nearest to float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.graph import Layer, quantize_weight
from calibrate.plan import QuantizationPlan
from calibrate.recovery.channels import Channels
from calibrate.recovery.hosts import weight_factors
from calibrate.recovery.rounding import channel_thresholds, rounded, tensor_threshold
from calibrate.recovery.samples import as_matrices

__all__ = ["choose_factors"]

_ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""SmoothQuant's exponents, besides 0: no factors. 1 gives all of the difficulty to the weights."""

_LEAST, _LEAST_OF_DEPTHWISE = 1e-2, 1e-3
"""Least factor, where the largest is 1. The weights of a depthwise convolution have a scale for each channel of the
input, so that any factor is exact for them."""

Factors = NDArray[np.float64]


@dataclass(frozen=True)
class _Sampled:
    """A layer with samples of what it reads, in float and without factors.

    Factors and thresholds are made from `columns`, and judged on `held_out`: a channel that is 0 most of the time has a
    threshold that fits only the samples that it was found on.
    """

    layer: Layer
    node: ir.Node
    weight: NDArray[np.float32]
    columns: NDArray[np.float32]
    held_out: NDArray[np.float32]

    @property
    def groups(self) -> int:
        return self.node.attributes.get_int("group", 1)

    @property
    def is_depthwise(self) -> bool:
        return self.groups == len(self.columns) > 1

    @cached_property
    def output(self) -> NDArray[np.floating]:
        """What the layer gives in float without bias for what is held out, by channel of the output."""
        return self.by_output(self.product(self.weight, self.held_out))

    def product(self, weight: NDArray[np.floating], columns: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the output without bias, (groups, rows of a group, columns)."""
        return as_matrices(self.node, weight) @ columns.reshape(self.groups, -1, columns.shape[2])

    def by_input(self, weight: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the weight by channel of the input: (channels, all that is multiplied with it)."""
        matrices = as_matrices(self.node, weight)
        channels = len(self.columns) // self.groups
        split = matrices.reshape(self.groups, matrices.shape[1], channels, -1)
        return split.swapaxes(1, 2).reshape(len(self.columns), -1)

    def by_output(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return what `product` gives, by channel of the output: (channels, n)."""
        kernel = self.weight[0, 0].size if self.node.op_type == "ConvTranspose" else 1
        return values.reshape(values.shape[0] * values.shape[1] // kernel, -1)


def choose_factors(
    model: ir.Model,
    plan: QuantizationPlan,
    layers: Sequence[Layer],
    columns: Mapping[str, NDArray[np.float32]],
    channels: Channels,
    residuals: Mapping[str, NDArray[np.float32]],
) -> Factors:
    """Return the factor of every number in `channels`, shape (channels.count,); number 0 has 1.

    A group is all channels of the same tensors. Its factors are those of five exponents with which the outputs of the
    layers that read it, with weights and inputs rounded, have the least error relative to their power. Where weights
    have one scale per tensor, the rounding of the layers that make the tensors counts too.

    Args:
        model: float, prepared, with the plan's edits so far.
        plan: what is quantized.
        layers: that the plan quantizes, with constant weights.
        columns: samples of what each reads, from every second batch before those from the others; see `sample_columns`.
        channels: of the model.
        residuals: samples of the tensors that are quantized for a residual Add, in the same order. What rounding does
            to them goes into the sum as it is, so that their own error counts as a layer's does.
    """
    nodes = {str(node.name): node for node in model.graph}
    sampled = []
    for layer in layers:
        weight = nodes[layer.node].inputs[1]
        assert weight is not None and weight.const_value is not None
        sampled.append(_Sampled(layer, nodes[layer.node], weight.const_value.numpy(), *_halves(columns[layer.node])))
    added = {tensor: _halves(found) for tensor, found in residuals.items()}
    factors = np.ones(channels.count)
    sweeps = 1 if plan.weights == "per_channel" else 2  # there, what a group's hosts lose depends on its neighbours
    for _ in range(sweeps):
        for group in _groups(channels, layers):
            _choose(group, sampled, added, plan, channels, factors)
    return factors


def _halves(columns: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the columns that factors are made from, and those that they are judged on."""
    if columns.shape[2] == 1:
        return columns, columns
    first, second = np.array_split(columns, 2, axis=2)
    return first, second


def _groups(channels: Channels, layers: Sequence[Layer]) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of factors that are of the same tensors, in the order of the layers that read them."""
    tensors: dict[int, list[str]] = {}
    for tensor, classes in channels.classes.items():
        for number in np.unique(classes[classes > 0]).tolist():
            tensors.setdefault(number, []).append(tensor)
    done: set[tuple[str, ...]] = set()
    for layer in layers:
        alike: dict[tuple[str, ...], list[int]] = {}
        for number in channels.classes.get(layer.activation, np.zeros(0, np.int64)).tolist():
            if number:
                alike.setdefault(tuple(tensors[number]), []).append(number)
        for key, numbers in alike.items():
            if key not in done:
                done.add(key)
                yield np.unique(numbers)


def _choose(
    group: NDArray[np.int64],
    sampled: Sequence[_Sampled],
    residuals: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    plan: QuantizationPlan,
    channels: Channels,
    factors: Factors,
) -> None:
    """Set the factors of a group to the best of the candidates, in place."""
    readers = [s for s in sampled if np.isin(channels.classes.get(s.layer.activation, 0), group).any()]
    hosts = [s for s in sampled if np.isin(channels.classes.get(s.layer.output, 0), group).any()]
    if plan.weights == "per_channel":
        hosts = []  # a scale of its own makes up for the factor of an output channel
    added = [tensor for tensor in residuals if np.isin(channels.classes.get(tensor, 0), group).any()]
    best, least = factors[group], np.inf
    for candidate in (factors[group], *_candidates(group, readers, hosts, plan, channels, factors)):
        tried = factors.copy()
        tried[group] = candidate
        error = sum(_error(reader, plan, channels, tried) for reader in readers)
        error += sum(_error_added(*residuals[name], plan, channels.factors_of(name, tried)) for name in added)
        error += sum(_error_made(host, group, readers, plan, channels, tried) for host in hosts)
        if error < least:
            best, least = candidate, error
    factors[group] = best


def _candidates(
    group: NDArray[np.int64],
    readers: Sequence[_Sampled],
    hosts: Sequence[_Sampled],
    plan: QuantizationPlan,
    channels: Channels,
    factors: Factors,
) -> Iterator[Factors]:
    """Yield factors of a group: SmoothQuant's, and with weights per tensor those that make weight ranges equal too."""
    threshold, weight, peak = (np.zeros(channels.count) for _ in range(3))
    for reader in readers:
        classes, values = channels.classes[reader.layer.activation], reader.columns.reshape(len(reader.columns), -1)
        np.maximum.at(threshold, classes, channel_thresholds(values, plan.number_format.largest))
        np.maximum.at(peak, classes, np.abs(values).max(axis=1))
        if not (reader.is_depthwise and plan.weights == "per_channel"):
            given = weight_factors(reader.node, None, channels.factors_of(reader.layer.output, factors))
            np.maximum.at(weight, classes, np.abs(reader.by_input(reader.weight * given)).max(axis=1))
    t, w = threshold[group], weight[group]
    if not t.any():
        return
    exact = not w.any()
    floor = _LEAST_OF_DEPTHWISE if exact else _LEAST
    t = np.maximum(t, t.max() * _LEAST_OF_DEPTHWISE)
    w = np.ones_like(t) if exact else np.maximum(w, w.max() * _LEAST)
    families = [t**alpha / w ** (1 - alpha) for alpha in _ALPHAS]
    if hosts:
        made = np.zeros(channels.count)
        for host in hosts:
            taken = weight_factors(host.node, channels.factors_of(host.layer.activation, factors), None)
            rows = host.by_output(as_matrices(host.node, host.weight * taken))
            np.maximum.at(made, channels.classes[host.layer.output], np.abs(rows).max(axis=1))
        families.append(np.sqrt(np.maximum(made[group], made[group].max() * _LEAST_OF_DEPTHWISE) / w))
    for found in families:
        bounded = np.maximum(found / found.max(), floor)
        # INT8 is indifferent to what all factors have in common; FP16 is not: no value becomes larger than all were.
        yield bounded * (peak[group] / bounded).max() / peak[group].max()


def _quantized_weight(sampled: _Sampled, weight: NDArray[np.float32], plan: QuantizationPlan) -> NDArray[np.float32]:
    """Return a weight as the plan rounds it, in float32."""
    assert sampled.layer.axis is not None
    codes, scales = quantize_weight(weight, sampled.layer.axis, plan, plan.float_precision)
    if scales.ndim:
        scales = scales.reshape([-1 if i == sampled.layer.axis else 1 for i in range(weight.ndim)])
    return codes.astype(np.float32) * scales


def _scaled_weight(
    sampled: _Sampled, channels: Channels, factors: Factors
) -> tuple[NDArray[np.float32], Factors | None, Factors | None]:
    """Return a layer's weight with factors in it, and the factors of its input and its output."""
    taken = channels.factors_of(sampled.layer.activation, factors)
    given = channels.factors_of(sampled.layer.output, factors)
    return (sampled.weight * weight_factors(sampled.node, taken, given)).astype(np.float32), taken, given


def _error(reader: _Sampled, plan: QuantizationPlan, channels: Channels, factors: Factors) -> float:
    """Return the error of a layer's output, with its input and weight rounded, relative to the output's power."""
    weight, taken, given = _scaled_weight(reader, channels, factors)
    coarse = _rounded(reader.columns, reader.held_out, plan, taken)
    expected = reader.output
    found = reader.by_output(reader.product(_quantized_weight(reader, weight, plan), coarse))
    if given is not None:
        found = found * given[:, None]
    return float(np.square(found - expected).mean() / max(float(np.square(expected).mean()), 1e-30))


def _error_added(
    columns: NDArray[np.float32], held_out: NDArray[np.float32], plan: QuantizationPlan, factor: Factors | None
) -> float:
    """Return the error of a tensor that is rounded with its channels divided by factors, relative to its power."""
    found = _rounded(columns, held_out, plan, factor)
    if factor is not None:
        found = found * factor[:, None, None]
    return float(np.square(found - held_out).mean() / max(float(np.square(held_out).mean()), 1e-30))


def _rounded(
    columns: NDArray[np.float32], held_out: NDArray[np.float32], plan: QuantizationPlan, factor: Factors | None
) -> NDArray[np.floating]:
    """Return what is held out, divided by factors and rounded by the threshold of all the rest."""
    shaped = np.float32(1) if factor is None else factor[:, None, None].astype(np.float32)
    largest = plan.number_format.largest
    return rounded(held_out / shaped, tensor_threshold(columns / shaped, largest), largest)


def _error_made(
    host: _Sampled,
    group: NDArray[np.int64],
    readers: Sequence[_Sampled],
    plan: QuantizationPlan,
    channels: Channels,
    factors: Factors,
) -> float:
    """Return the error that rounding a host's weight makes, as its readers weigh it, relative to what they read."""
    weight, taken, given = _scaled_weight(host, channels, factors)
    change = _quantized_weight(host, weight, plan) / weight_factors(host.node, taken, given) - host.weight
    noise = np.square(host.by_output(host.product(change, host.columns))).mean(axis=1)
    made, power, weighed = np.zeros(channels.count), np.zeros(channels.count), np.zeros(channels.count)
    np.maximum.at(made, channels.classes[host.layer.output], noise)
    for reader in readers:
        classes = channels.classes[reader.layer.activation]
        np.maximum.at(power, classes, np.square(reader.columns.reshape(len(reader.columns), -1)).mean(axis=1))
        np.add.at(weighed, classes, np.square(reader.by_input(reader.weight)).sum(axis=1))
    total = float((power[group] * weighed[group]).sum())
    return float((made[group] * weighed[group]).sum() / max(total, 1e-30))
