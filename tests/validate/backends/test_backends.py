"""What runs and builds models: ONNX Runtime and TensorRT, and how they refuse."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.backends.tensorrt import build
from validate.exceptions import JobError

ROOT = Path(__file__).parents[3]
LINEAR = "g (float[N, 4] x) => (float[N, 3] y, float[N, 3] z) { y = MatMul(x, w) z = Relu(y) }"
QUANTIZED = """g (float[N, 4] x) => (float[N, 3] y) {
    q = QuantizeLinear(x, scale, zero)
    d = DequantizeLinear(q, scale, zero)
    v = DequantizeLinear(w, scale, zero)
    y = MatMul(d, v)
}"""


def parse(graph: str, **initializers: NDArray[Any]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {graph}')
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in initializers.items())
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def weight() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    def write(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write


def one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) > 20


class TestOnnxRuntime:
    def test_a_file_and_its_bytes_compute_the_same(self, weight, x, write):
        model = parse(LINEAR, w=weight)
        for source in (write(model), model.SerializeToString()):
            runnable = OnnxRuntimeModel(source)
            assert runnable.input_names == ("x",)
            assert runnable.output_names == ("y", "z")
            assert runnable.fixed_batch is None
            outputs = runnable.run({"x": x})
            np.testing.assert_allclose(outputs["y"], x @ weight, atol=1e-6)
            np.testing.assert_allclose(outputs["z"], np.maximum(x @ weight, 0), atol=1e-6)

    def test_only_the_outputs_that_are_asked_for(self, weight, x):
        outputs = OnnxRuntimeModel(parse(LINEAR, w=weight).SerializeToString(), outputs=["z"]).run({"x": x})
        assert outputs.keys() == {"z"}

    def test_an_unknown_output_is_refused(self, weight):
        with pytest.raises(JobError, match=r"no output called nothing, w$"):
            OnnxRuntimeModel(parse(LINEAR, w=weight).SerializeToString(), outputs=["w", "y", "nothing"])

    def test_label_names_the_library_and_the_arithmetic(self, weight):
        model = parse(LINEAR, w=weight).SerializeToString()
        by_float, by_integer = (OnnxRuntimeModel(model, kind).runtime for kind in ("float", "integer"))
        assert by_float.startswith("onnxruntime ")
        assert "float" in by_float
        assert "default session" in by_integer
        device = OnnxRuntimeModel(model).device
        assert device.endswith(("(with VNNI)", "(without VNNI)"))
        assert ("with VNNI" in device) == ("vnni" in Path("/proc/cpuinfo").read_text())

    def test_float_arithmetic_is_the_definition_and_integer_arithmetic_really_is_another(self):
        """A product of int8 numbers that fills the accumulator: float32 rounds it, int32 does not."""
        rng = np.random.default_rng(0)
        size = 4099
        x = rng.integers(-127, 128, (2, size)).astype(np.float32)
        w = rng.integers(-127, 128, (size, 3)).astype(np.int8)
        x[:, 0], w[0] = 127, 127
        scale = np.float32(1 / 3)
        graph = QUANTIZED.replace("float[N, 4]", f"float[N, {size}]")
        model = parse(graph, scale=scale, zero=np.int8(0), w=w).SerializeToString()
        floats, integers = (OnnxRuntimeModel(model, kind).run({"x": x * scale})["y"] for kind in ("float", "integer"))
        exact = x.astype(np.int64) @ w.astype(np.int64) / 9
        np.testing.assert_allclose(floats, exact, rtol=1e-4)
        assert not np.array_equal(floats, integers)

    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.float32])
    def test_float_widths_are_converted(self, weight, x, dtype):
        given = x.astype(dtype)
        y = OnnxRuntimeModel(parse(LINEAR, w=weight).SerializeToString()).run({"x": given})["y"]
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, given.astype(np.float32) @ weight, atol=1e-6)

    @pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
    def test_integer_widths_are_converted(self, dtype):
        table = np.arange(12, dtype=np.float32).reshape(4, 3)
        graph = "g (int64[N] rows) => (float[N, 3] y) { y = Gather(w, rows) }"
        model = OnnxRuntimeModel(parse(graph, w=table).SerializeToString())
        np.testing.assert_array_equal(model.run({"rows": np.array([3, 0], dtype)})["y"], table[[3, 0]])

    @pytest.mark.parametrize("array", [np.ones((2, 4), np.int64), np.ones((2, 4), bool), np.array([["a"] * 4])])
    def test_another_kind_of_number_is_refused(self, weight, array):
        """An integer image where floats are wanted is a forgotten preprocessing, not a matter of width."""
        model = OnnxRuntimeModel(parse(LINEAR, w=weight).SerializeToString())
        with pytest.raises(JobError, match=f"model input x is float32, but the preprocessing gives {array.dtype}"):
            model.run({"x": array})

    def test_arrays_that_are_not_contiguous(self, weight, x):
        model = OnnxRuntimeModel(parse(LINEAR, w=weight).SerializeToString())
        turned = np.asfortranarray(x)[::-1]
        np.testing.assert_allclose(model.run({"x": turned})["y"], turned @ weight, atol=1e-6)

    @pytest.mark.parametrize("size", [1, 4, 5])
    def test_a_smaller_batch_than_a_model_is_fixed_to(self, weight, x, size):
        """It is filled up, and nothing of that shows; outputs without a batch axis are left as they are."""
        graph = LINEAR.replace("N,", "5,").replace(") {", ", int64[2] s) { s = Shape(x)")
        model = OnnxRuntimeModel(parse(graph, w=weight).SerializeToString())
        assert model.fixed_batch == 5
        outputs = model.run({"x": x[:size]})
        np.testing.assert_allclose(outputs["y"], x[:size] @ weight, atol=1e-6)
        np.testing.assert_allclose(outputs["z"], np.maximum(x[:size] @ weight, 0), atol=1e-6)
        assert outputs["s"].tolist() == [5, 4]

    def test_a_larger_batch_than_a_model_is_fixed_to_is_refused(self, weight):
        model = OnnxRuntimeModel(parse(LINEAR.replace("N,", "2,"), w=weight).SerializeToString())
        with pytest.raises(JobError, match="cannot run the model on x"):
            model.run({"x": np.ones((3, 4), np.float32)})

    def test_an_input_without_axes(self, x):
        graph = "g (float factor, float[5, 4] x) => (float[5, 4] y) { y = Mul(x, factor) }"
        model = OnnxRuntimeModel(parse(graph).SerializeToString())
        np.testing.assert_array_equal(model.run({"factor": np.float32(2), "x": x})["y"], 2 * x)

    @pytest.mark.parametrize("shape", [(5, 3), (4,), (2, 4, 1)])
    def test_a_wrong_shape_is_refused(self, weight, shape):
        model = OnnxRuntimeModel(parse(LINEAR, w=weight).SerializeToString())
        with pytest.raises(JobError) as caught:
            model.run({"x": np.ones(shape, np.float32)})
        assert f"cannot run the model on x {shape}: " in str(caught.value)
        assert one_sentence(caught.value)

    def test_a_missing_input_is_refused(self, weight):
        model = OnnxRuntimeModel(parse(LINEAR, w=weight).SerializeToString())
        with pytest.raises(JobError, match="no array is given for model input x"):
            model.run({"image": np.ones((1, 4), np.float32)})

    @pytest.mark.parametrize("content", [b"", b"this is not a model", b"\x08\x09garbage"])
    def test_a_bad_file_is_refused(self, tmp_path, content):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(JobError) as caught:
            OnnxRuntimeModel(path)
        assert f"cannot load {path}: " in str(caught.value)
        assert one_sentence(caught.value)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(JobError, match=r"cannot load .*nowhere\.onnx: ") as caught:
            OnnxRuntimeModel(tmp_path / "nowhere.onnx")
        assert one_sentence(caught.value)

    def test_an_unknown_operator_is_refused(self):
        node = onnx.helper.make_node("Frobnicate", ["x"], ["y"])
        info = onnx.helper.make_tensor_value_info
        values = [info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
        with pytest.raises(JobError, match="Frobnicate") as caught:
            OnnxRuntimeModel(model.SerializeToString())
        assert one_sentence(caught.value)

    def test_metadata(self, weight):
        model = parse(LINEAR, w=weight)
        onnx.helper.set_model_props(model, {"character": "a\nb\nc"})
        assert OnnxRuntimeModel(model.SerializeToString()).metadata == {"character": "a\nb\nc"}


PROFILE = {"x": ((1, 4), (2, 4), (8, 4))}


class TestTensorRT:
    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="asks TensorRT's own builder; pip install tensorrt-rtx")

    @pytest.fixture
    def quantized(self) -> Callable[[int], onnx.ModelProto]:
        w = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
        return lambda zero_point: parse(QUANTIZED, scale=np.float32(0.1), zero=np.int8(zero_point), w=w)

    def test_a_good_file_is_built(self, quantized, write):
        result = build(write(quantized(0)), PROFILE, "8.9")
        assert result.ok is True
        assert result.backend in {"tensorrt", "tensorrt_rtx"}
        assert result.version
        assert "8.9" in result.message or result.backend == "tensorrt"
        assert result.seconds is not None
        assert result.seconds > 0

    def test_a_zero_point_is_refused_in_tensorrt_s_words(self, quantized, write):
        result = build(write(quantized(3)), PROFILE, "8.9")
        assert result.ok is False
        assert "Non-zero zero point is not supported" in result.message

    @pytest.mark.parametrize("content", [b"", b"this is not a model"])
    def test_garbage_is_refused(self, tmp_path, content):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        result = build(path, PROFILE, "8.9")
        assert result.ok is False
        assert len(result.message) > 20

    def test_a_missing_file_is_refused(self, tmp_path):
        result = build(tmp_path / "nowhere.onnx", PROFILE, "8.9")
        assert result.ok is False
        assert "nowhere.onnx" in result.message

    def test_an_operator_that_tensorrt_has_not_is_refused(self, write):
        model = parse("g (float[N, 4, 4] x) => (float[N] y) { y = Det(x) }")
        result = build(write(model), {"x": ((1, 4, 4), (1, 4, 4), (1, 4, 4))}, "8.9")
        assert result.ok is False
        assert "Det" in result.message, "it says which"

    @pytest.mark.parametrize("capability", ["3.5", "nonsense", ""])
    def test_an_unknown_compute_capability_is_not_checked(self, quantized, write, capability):
        """Nothing is known of the file then, neither good nor bad."""
        if importlib.util.find_spec("tensorrt"):
            pytest.skip("tensorrt builds for the GPU of the machine")
        result = build(write(quantized(0)), PROFILE, capability)
        assert result.ok is None
        assert f"cannot build for compute capability {capability}" in result.message

    def test_an_input_without_a_profile_is_refused(self, quantized, write):
        result = build(write(quantized(0)), {}, "8.9")
        assert result.ok is False
        assert result.message == "the profile gives no shapes for input x, whose shape is dynamic"

    def test_a_profile_that_does_not_fit_is_refused(self, quantized, write):
        result = build(write(quantized(0)), {"x": ((1, 5), (2, 5), (8, 5))}, "8.9")
        assert result.ok is False
        assert "Dimension mismatch for tensor x" in result.message

    def test_a_static_model_needs_no_profile(self, weight, write):
        model = parse("g (float[2, 4] x) => (float[2, 3] y) { y = MatMul(x, w) }", w=weight)
        assert build(write(model), {}, "8.9").ok is True


HIDDEN = """
import sys
from pathlib import Path

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorrt", "tensorrt_rtx"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
from validate.backends.tensorrt import build
print(build(Path("nowhere.onnx"), {}, "8.9").model_dump_json())
"""


def test_without_any_tensorrt_nothing_is_claimed():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", HIDDEN], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert '"ok":null' in finished.stdout
    assert "not checked: tensorrt is not installed and tensorrt_rtx is not installed" in finished.stdout
