"""Engines that run, on a GPU that the installed TensorRT supports; elsewhere all of it is skipped, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from validate.backends import local_gpu, read_onnx, with_shapes
from validate.backends.base import CannotForceError
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.backends.tensorrt import (
    BuildOptions,
    Fingerprint,
    TensorRTBackend,
    build_engine,
    installed_libraries,
    needs_fp32_scales,
    why_not_running,
)
from validate.backends.tensorrt.fingerprint import sha256
from validate.backends.tensorrt.probe import _product_needs_fp32_scales
from validate.data import Batch
from validate.engines import compare_engine
from validate.exceptions import JobError

GPU = local_gpu()
LIBRARIES, REASONS = installed_libraries()
NODES = """ (float[N, 3, 16, 16] x) => (float[N, 8, 16, 16] y, int64[4] sizes) {
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w0)
    b = Relu(a)
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(b, w1)
    d = Add(c, b)
    y = Softmax<axis = 1>(d)
    sizes = Shape(y)
}"""
PROFILE = {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}


def why_not() -> str | None:
    if GPU is None:
        return "there is no NVIDIA GPU here"
    if not LIBRARIES:
        return " and ".join(REASONS)
    refusals = {library: why_not_running(library, GPU) for library in LIBRARIES.values()}
    if None in refusals.values():
        return None
    return " and ".join(f"{library} does not run engines on {GPU}: {why}" for library, why in refusals.items())


runs = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> g {NODES}')
    rng = np.random.default_rng(0)
    for name, shape in {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3)}.items():
        made.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 4, name))
    for i, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{i}"
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(made, path)
    return path


def folders_of(folder: Path) -> list[tuple[Path, str]]:
    """Return a folder for an engine that is fused whole, and one for an engine that shows what is left."""
    found = [(folder / debug, debug) for debug in ("none", "unfused")]
    for made, _ in found:
        made.mkdir()
    return found


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)


def opened(model: Path, folder: Path, debug: str | tuple[str, ...] = "none") -> TensorRTBackend:
    build_engine(model, folder / "model.engine", PROFILE, BuildOptions(debug=debug))
    return TensorRTBackend(folder / "model.engine")


@runs
class TestRun:
    def test_outputs_are_those_of_onnx_runtime(self, model, tmp_path, x):
        engine = opened(model, tmp_path).load()
        for size in (1, 2, 4):
            given = np.resize(x, (size, 3, 16, 16))
            found, expected = engine.run({"x": given, "labels": x}), OnnxRuntimeModel(model).run({"x": given})
            assert list(found) == ["y", "sizes"]
            np.testing.assert_allclose(found["y"], expected["y"], atol=5e-3)  # TensorRT may take TF32
            np.testing.assert_array_equal(found["sizes"], expected["sizes"])

    def test_only_what_is_asked_for(self, model, tmp_path, x):
        assert list(opened(model, tmp_path).load(["sizes"]).run({"x": x})) == ["sizes"]

    def test_the_engine_is_for_this_gpu(self, model, tmp_path):
        backend = opened(model, tmp_path)
        assert backend.load().device == str(GPU)
        assert backend.fingerprint == Fingerprint.read(tmp_path / "model.engine")
        assert backend.output_names == ("y", "sizes")
        assert set(backend.tensors) == {"y", "sizes"}  # in the order of the engine's layers, which is its own

    def test_a_batch_outside_of_the_profile(self, model, tmp_path, x):
        with pytest.raises(JobError, match=r"takes shapes from \(1, 3, 16, 16\) to \(4, 3, 16, 16\)"):
            opened(model, tmp_path).load().run({"x": np.resize(x, (5, 3, 16, 16))})

    def test_the_engine_is_its_simulation(self, model, tmp_path, x):
        graph = with_shapes(read_onnx(model))
        batch = Batch({"x": x}, labels=[None] * len(x), contents=[row.tobytes() for row in x], first=0)
        engine, unfused = (opened(model, folder, debug) for folder, debug in folders_of(tmp_path))
        found = compare_engine(graph, graph, engine, [batch], unfused=unfused)
        assert found.departure is None
        assert {output.tensor: output.not_finite for output in found.outputs} == {"y": 0, "sizes": 0}

    def test_forced_tensors_are_refused(self, model, tmp_path):
        with pytest.raises(CannotForceError):
            opened(model, tmp_path).load(forced=["b"])

    @pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: b"x" * 1000])
    def test_what_tensorrt_itself_refuses_is_one_sentence(self, model, tmp_path, change):
        """As after an adopted file, whose fingerprint says only what the user said."""
        engine = tmp_path / "model.engine"
        made = build_engine(model, engine, PROFILE)
        engine.write_bytes(change(engine.read_bytes()))
        made.model_copy(update={"engine_sha256": sha256(engine)}).write(engine)
        with pytest.raises(JobError, match=r"refuses .* build it again on this machine$") as caught:
            TensorRTBackend(engine)
        assert "\n" not in str(caught.value)


@runs
class TestInnerTensors:
    def test_by_name(self, model, tmp_path, x):
        backend = opened(model, tmp_path, ("b", "d"))
        assert {"b", "d", "y"} <= set(backend.tensors)
        assert backend.output_names == ("y", "sizes")
        assert "fusion broken at 2 tensors" in backend.load().runtime
        found = backend.load(["b", "d", "y"]).run({"x": x})
        assert list(found) == ["b", "d", "y"]
        assert (found["b"] >= 0).all()
        softmax = np.exp(found["d"]) / np.exp(found["d"]).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found["y"], softmax, atol=1e-3)

    def test_unfused(self, model, tmp_path, x):
        backend = opened(model, tmp_path, "unfused")
        inner = set(backend.tensors) - set(backend.output_names)
        for name in inner:
            value = backend.load([name]).run({"x": x})[name]
            assert np.isfinite(value).all()


@runs
class TestLayers:
    def test_every_layer_is_known_with_its_onnx_nodes(self, model, tmp_path):
        layers = opened(model, tmp_path).layers
        nodes = {node for layer in layers for node in layer.nodes}
        assert {"Conv_0", "Conv_2"} <= nodes
        assert all(len(layer.outputs) == len(layer.types) == len(layer.formats) for layer in layers)

    def test_times(self, model, tmp_path, x):
        times = opened(model, tmp_path).load().layer_times({"x": x}, runs=3)
        assert times
        assert all(ms >= 0 for ms in times.values())


@pytest.mark.skipif(GPU is None, reason="there is no NVIDIA GPU here")
def test_the_gpu_is_the_one_that_pytorch_sees() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    assert GPU is not None
    major, minor = torch.cuda.get_device_capability()
    assert (GPU.name, GPU.compute_capability) == (torch.cuda.get_device_name(), f"{major}.{minor}")
    assert float(GPU.driver) >= float(torch.version.cuda)


@pytest.mark.skipif(
    GPU is None or "tensorrt_rtx" not in LIBRARIES or why_not_running(LIBRARIES["tensorrt_rtx"], GPU) is None,
    reason="says what happens on a GPU that the installed TensorRT-RTX does not run on, as 1.7 does not on Hopper",
)
class TestUnsupportedGpu:
    def test_the_engine_is_refused_with_the_remedy(self, model: Path, tmp_path: Path) -> None:
        build_engine(model, tmp_path / "e", PROFILE)
        with pytest.raises(JobError, match=r"does not run engines on .* pip install tensorrt, ") as caught:
            TensorRTBackend(tmp_path / "e")
        assert "\n" not in str(caught.value)


@runs
@pytest.mark.skipif("tensorrt" in LIBRARIES, reason="tensorrt builds here, of which nothing was seen yet")
def test_tensorrt_rtx_needs_float32_scales() -> None:
    """Seen in 1.6.1: with FP16 scales, the accumulator overflows before it is multiplied by them."""
    assert _product_needs_fp32_scales("tensorrt_rtx", LIBRARIES["tensorrt_rtx"].version, GPU) is needs_fp32_scales()
    assert needs_fp32_scales()
