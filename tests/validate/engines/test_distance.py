"""Engines against their simulations: what an NVIDIA H200 gave (`tests/engine_cases.py`), and wrong ones made here."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from tests.engine_cases import CASES, Models, Recording, models_of
from validate.backends import OnnxRuntimeBackend, with_shapes
from validate.engines import compare_engine
from validate.exceptions import JobError, NothingComparedError

RIGHT = {
    "encoder-int8-fp32-scales": 2,
    "encoder-int8-fp32": 1,
    "encoder-fp16": 0,
    "encoder-tf32": 0,
    "cnn-fp16": 1,
    "cnn-tf32": 1,
    "logsoftmax-tf32": 0,
}
"""How many inner tensors have a name of the ONNX graph, counted by hand in the inspector's JSON."""


@functools.cache
def made(name: str) -> Models:
    return models_of(CASES[name])


def compared(name: str, simulated: ir.Model | None = None):
    models = made(name)
    plain, unfused = Recording(name, "plain"), Recording(name, "unfused")
    return compare_engine(models.reference, simulated or models.simulated, plain, models.batches, unfused=unfused)


@pytest.mark.parametrize("name", RIGHT)
class TestRightEngines:
    def test_are_their_simulation(self, name):
        found = compared(name)
        assert found.departure is None
        assert (found.samples, found.inner_tensors) == (16, RIGHT[name])
        assert all(output.excess_db < 1 and output.not_finite == 0 for output in found.outputs)

    def test_of_files_that_were_made_elsewhere(self, name):
        foreign = with_shapes(made(name).deployed.clone())
        found = compared(name, foreign)
        assert found.departure is None
        assert found.outputs[0].excess_db < 1

    def test_distances_are_those_of_numpy(self, name):
        models, output = made(name), compared(name).outputs[0]
        engine = Recording(name, "plain").values[output.tensor].astype(np.float64)
        runs = [OnnxRuntimeBackend(model).load() for model in (models.reference, models.simulated)]
        expected, simulated = (
            np.concatenate([run.run(batch.inputs)[output.tensor] for batch in models.batches]) for run in runs
        )
        assert output.to_float_db == pytest.approx(sqnr(expected, engine), abs=1e-6)
        assert output.to_simulation_db == pytest.approx(sqnr(simulated, engine), abs=1e-6)


def sqnr(reference, other) -> float:
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / np.square(reference - other).sum()))


class TestNotFinite:
    def test_a_sum_that_fp16_does_not_hold(self):
        found = compared("encoder-int8")
        assert found.outputs[0].not_finite == np.count_nonzero(
            ~np.isfinite(Recording("encoder-int8", "plain").values["logits"])
        )
        assert np.isnan(found.outputs[0].to_simulation_db)
        departure = found.departure
        assert departure is not None
        assert (departure.node, departure.op_type, departure.kind) == ("q", "MatMul", "not finite")
        assert departure.before == [], "it reads the input"
        assert "kernel v+k+q_myl0_2" in departure.detail and "v, k too" in departure.detail

    def test_where_only_outputs_are_known(self):
        models = made("encoder-int8")
        engine = Recording("encoder-int8", "plain")
        departure = compare_engine(models.reference, models.simulated, engine, models.batches).departure
        assert departure is not None
        assert (departure.node, departure.tensor, departure.kind) == ("head", "logits", "not finite")
        assert departure.before == ["pool", "norm2", "add2", "down", "norm1"]

    def test_log_softmax(self):
        found = compared("logsoftmax-fp16")
        assert found.outputs[0].not_finite == 10879
        assert found.departure is not None
        assert (found.departure.node, found.departure.before) == ("head", ["dense"])


class TestBeyondTheFloor:
    def test_a_wrong_scale(self):
        """The engine quantizes what the last product reads to steps that are 4 times as wide as they should be."""
        models = made("encoder-int8-fp32")
        wrong = models.simulated.clone()
        scale = next(value for name, value in wrong.graph.initializers.items() if name == "pooled/scale")
        assert scale.const_value is not None
        scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(4), name="pooled/scale")
        wrong_engine, right_engine = OnnxRuntimeBackend(wrong), OnnxRuntimeBackend(models.simulated)
        for engine, is_right in ((right_engine, True), (wrong_engine, False)):
            found = compare_engine(models.reference, models.simulated, engine, models.batches)
            assert (found.departure is None) == is_right, found
        assert found.departure is not None
        assert (found.departure.node, found.departure.kind) == ("head", "beyond the floor")

    def test_an_inner_tensor_of_the_name(self):
        """Kernels behind the overflow give finite values, which are wrong; its first trace is what is reported."""
        models = made("encoder-int8")
        unfused = Recording("encoder-int8", "unfused")
        finite = OnnxRuntimeBackend(models.simulated)  # outputs are right, so that only inner tensors tell
        departure = compare_engine(
            models.reference, models.simulated, finite, models.batches, unfused=unfused
        ).departure
        assert departure is not None
        assert (departure.node, departure.tensor, departure.kind) == ("norm1", "n1/quantized", "beyond the floor")

    def test_labels_are_equal_or_not(self):
        models = made("cnn-tf32")
        engine = Recording("cnn-tf32", "plain")
        assert compare_engine(models.reference, models.simulated, engine, models.batches).departure is None
        engine.values["label"] = (engine.values["label"] + 1) % 6
        departure = compare_engine(models.reference, models.simulated, engine, models.batches).departure
        assert departure is not None
        assert (departure.node, departure.op_type, departure.kind) == ("label", "ArgMax", "beyond the floor")


def test_tf32_cannot_be_turned_off_in_tensorrt_rtx():
    with_tf32, without = Recording("encoder-tf32", "plain"), Recording("encoder-fp32", "plain")
    np.testing.assert_array_equal(with_tf32.values["logits"], without.values["logits"])


def test_an_engine_that_does_not_show_what_its_inspector_names_is_judged_by_its_outputs():
    class Silent(Recording):
        def give(self, tensor, inputs):
            raise JobError(f"TensorRT ran the engine and did not show tensor {tensor}; it may be fused")

    models = made("encoder-int8")
    plain, silent = Recording("encoder-int8", "plain"), Silent("encoder-int8", "unfused")
    found = compare_engine(models.reference, models.simulated, plain, models.batches, unfused=silent)
    assert found.inner_tensors == 0
    assert found.departure is not None
    assert found.departure.node == "head"


class TestRefusals:
    def test_nothing_to_compare(self):
        models = made("cnn-tf32")
        with pytest.raises(NothingComparedError, match="no samples"):
            compare_engine(models.reference, models.simulated, Recording("cnn-tf32", "plain"), [])

    def test_an_engine_of_another_model(self):
        models = made("cnn-tf32")
        with pytest.raises(NothingComparedError, match="the engine has no output label"):
            other = OnnxRuntimeBackend(made("encoder-tf32").reference)
            compare_engine(models.reference, models.simulated, other, models.batches)

    def test_an_output_of_another_shape(self):
        models, engine = made("logsoftmax-tf32"), Recording("logsoftmax-tf32", "plain")
        engine.values["y"] = engine.values["y"][:, :10]
        with pytest.raises(JobError, match=r"output y has shape \(8, 10\) from the engine and \(8, 1000\)"):
            compare_engine(models.reference, models.simulated, engine, models.batches)

    def test_a_float_model_with_other_outputs_tells_nothing(self):
        models, engine = made("logsoftmax-tf32"), Recording("logsoftmax-tf32", "plain")
        other = models.reference.clone()
        other.graph.outputs[0].name = "other"
        found = compare_engine(other, models.simulated, engine, models.batches)
        assert found.departure is None
        assert np.isnan(found.outputs[0].to_float_db) and found.outputs[0].to_simulation_db > 70

    def test_one_sample_tells_no_rounding_from_an_error(self):
        models = made("encoder-tf32")
        batch = models.batches[0]
        one = replace(batch, inputs={"x": batch.inputs["x"][:1]}, labels=[None], contents=batch.contents[:1])
        found = compare_engine(models.reference, models.simulated, Recording("encoder-tf32", "plain"), [one])
        assert found.departure is None
        assert np.isnan(found.outputs[0].excess_low_db)
