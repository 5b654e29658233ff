"""Equalization: channels of one tensor get alike ranges, by factors in the weights before and behind it.

In float the model computes what it did. In INT8, where a tensor has one scale, a channel whose range is a tenth of the
widest one's no longer loses three of its eight bits. After NVIDIA's and others' cross-layer equalization (Nagel et al.
2019) and SmoothQuant (Xiao et al. 2023); what is new is only that one rule per operator finds all that can be scaled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.graph import edited
from calibrate.observation import observable, observe
from calibrate.plan import QuantizationPlan
from calibrate.recovery.channels import Channels, find_channels
from calibrate.recovery.factors import choose_factors
from calibrate.recovery.hosts import edits_of
from calibrate.recovery.relations import Shapes
from calibrate.recovery.samples import few, observed_shapes, sample_columns, some
from calibrate.recovery.step import RecoveryInputs
from validate.backends import OnnxRuntimeModel, detach, expose
from validate.exceptions import JobError
from validate.layerwise import TensorErrors

__all__ = ["equalize"]

_SAMPLES = 128
"""How many calibration samples factors are chosen on. With 64, PP-OCRv4 had twice the error, with bias corrected."""

_SAME_DB = 60.0
"""Least SQNR, in dB, of a tensor of the equalized float model, times its factors, against the original. The rounding of
float32 leaves over 100; what a factor changes that it must not leaves far less."""


def equalize(plan: QuantizationPlan, inputs: RecoveryInputs) -> QuantizationPlan:
    """Return a plan whose quantized inputs have channels of alike ranges, with edits of weights that make up for it.

    Scales are found again, by the plan's strategy, in one more pass over the calibration samples.

    Args:
        plan: to improve; its edits of weights stay, and come first.
        inputs: model and calibration samples.

    Raises:
        JobError: the float model no longer computes what it did.
    """
    model, placement = edited(inputs.model.prepared, plan), inputs.model.placement
    layers = [layer for layer in placement.layers if layer.node in plan.int8_layers and layer.axis is not None]
    batches = some(inputs.batches(), _SAMPLES)
    looked_at = few(model, batches[0])
    shapes = observed_shapes(model, looked_at)
    channels = find_channels(model, shapes)
    # All that read what can be scaled, and all that make it.
    reached = [layer for layer in layers if channels.classes.get(layer.activation, np.zeros(1)).any()]
    if not reached:
        return plan
    hosting = [layer for layer in layers if channels.classes.get(layer.output, np.zeros(1)).any()]
    sampled = [layer for layer in layers if layer in reached or layer in hosting]
    alternating = [*batches[::2], *batches[1::2]]  # one half is held out, and data may be sorted
    activations = {layer.node: layer.activation for layer in sampled}
    added = {residual.tensor for residual in placement.residual_inputs(plan.int8_layers)} & channels.axes.keys()
    axes = {tensor: channels.axes[tensor] for tensor in sorted(added)}
    columns, residuals = sample_columns(model, activations, axes, alternating)
    factors = choose_factors(model, plan, sampled, columns, channels, residuals)
    equalized = plan.with_weight_edits(edits_of(model, channels, factors, shapes))
    changed = edited(inputs.model.prepared, equalized)
    _check_unchanged(model, changed, channels, factors, shapes, looked_at)
    return _with_new_scales(equalized, changed, inputs)


def _check_unchanged(
    before: ir.Model,
    after: ir.Model,
    channels: Channels,
    factors: NDArray[np.float64],
    shapes: Shapes,
    inputs: Mapping[str, NDArray[Any]],
) -> None:
    """Compare the outputs and all tensors with factors on a few samples; JobError where one is another."""
    found = {name: channels.factors_of(name, factors) for name in channels.classes}
    scaled = {name: factor for name, factor in found.items() if factor is not None}
    exposed = [detach(expose(model, list(scaled))) for model in (before, after)]
    ours, theirs = (OnnxRuntimeModel(model).run(inputs) for model in exposed)
    for name, expected in ours.items():
        values = theirs[name]
        if name in scaled:
            tail = [1] * (len(shapes[name]) - 1 - channels.axes[name])
            values = values * scaled[name].reshape(-1, *tail)
        error = TensorErrors()
        error.add(expected, values)
        if error.sqnr_db < _SAME_DB:
            raise JobError(
                f"equalization changes tensor {name} of the float model (SQNR {error.sqnr_db:.1f} dB), which it must "
                "not; leave equalize out of quantization.recovery, and report the model"
            )


def _with_new_scales(plan: QuantizationPlan, model: ir.Model, inputs: RecoveryInputs) -> QuantizationPlan:
    """Return the plan with the scales that its strategy gives for the edited float model."""
    source = observable(model, list(plan.scales), threads=os.cpu_count() or 1)
    statistics = observe(source, inputs.batches(), on_batch=lambda batch, outputs: None).statistics
    largest = plan.number_format.largest
    thresholds = {name: inputs.threshold(found) for name, found in statistics.items()}
    scales = plan.scales | {name: threshold / largest for name, threshold in thresholds.items() if threshold > 0}
    return plan.model_copy(update={"scales": inputs.model.placement.with_shared_scales(scales)})
