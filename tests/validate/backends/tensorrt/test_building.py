"""Engines are built, really, by TensorRT-RTX on a machine without a GPU; and refused where they must be."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from validate.backends import Gpu, local_gpu
from validate.backends.base import CannotForceError
from validate.backends.tensorrt import (
    BuildOptions,
    Fingerprint,
    TensorRTBackend,
    backend,
    build,
    build_engine,
    building,
    installed_libraries,
    require,
)
from validate.backends.tensorrt.building import RefusedError
from validate.backends.tensorrt.engine import deserialize
from validate.backends.tensorrt.fingerprint import fingerprint_path, sha256
from validate.backends.tensorrt.library import UnavailableError, find_builder
from validate.exceptions import JobError

trt = pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT-RTX; pip install tensorrt-rtx")

ROOT = Path(__file__).parents[4]
ADA = BuildOptions(compute_capability="8.9")
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0")
CNN = """g (float[N, 3, 16, 16] x) => (float[N, 8, 16, 16] y) {
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w0)
    b = Relu(a)
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(b, w1)
    d = Add(c, b)
    y = Relu(d)
}"""
QUANTIZED = """g (float[N, 3, 16, 16] x) => (float[N, 8, 16, 16] y) {
    xq = QuantizeLinear(x, scale, zero)
    xd = DequantizeLinear(xq, scale, zero)
    wd = DequantizeLinear<axis = 0>(wq, scales, zeros)
    y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(xd, wd)
}"""
PROFILE = {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}


def parse(graph: str, **initializers: NDArray[Any]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {graph}')
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in initializers.items())
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
    onnx.checker.check_model(model, full_check=True)
    return model


def weights(dtype: type = np.float32) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "w0": rng.standard_normal((8, 3, 3, 3)).astype(dtype),
        "w1": rng.standard_normal((8, 8, 3, 3)).astype(dtype),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    def write(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def model(write: Callable[[onnx.ModelProto], Path]) -> Path:
    return write(parse(CNN, **weights()))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an engine for compute capability 8.9 with its fingerprint; do not write to it."""
    folder = tmp_path_factory.mktemp("built")
    onnx.save(parse(CNN, **weights()), folder / "model.onnx")
    build_engine(folder / "model.onnx", folder / "model.engine", PROFILE, ADA)
    return folder / "model.engine"


def one_sentence(error: BaseException) -> str:
    assert "\n" not in str(error)
    assert len(str(error)) > 20
    return str(error)


class TestBuilding:
    def test_a_dynamic_batch(self, model, tmp_path):
        engine = tmp_path / "model.engine"
        made = build_engine(model, engine, PROFILE, ADA)
        assert engine.stat().st_size > 1000
        assert made == Fingerprint.read(engine)
        assert made.gpu is None
        assert (made.compute_capability, made.flavour, made.version) == ("8.9", "tensorrt_rtx", trt.__version__)
        assert made.engine_sha256 == sha256(engine)
        assert made.model_sha256 == sha256(model)
        assert made.model == "model.onnx"
        assert made.profile == PROFILE
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.engine.json", "model.onnx"]
        assert require(engine, RTX_4090, installed_libraries()[0]) == made

    def test_paths_as_text(self, model, tmp_path):
        build_engine(str(model), str(tmp_path / "model.engine"), PROFILE, ADA)
        assert (tmp_path / "model.engine").exists()

    def test_a_static_shape_needs_no_profile(self, write, tmp_path):
        model = write(parse(CNN.replace("N,", "2,"), **weights()))
        assert build_engine(model, tmp_path / "model.engine", options=ADA).profile == {}

    def test_float16_in_the_file_is_float16_in_the_engine(self, write, tmp_path):
        model = write(parse(CNN.replace("float[", "float16["), **weights(np.float16)))
        build_engine(model, tmp_path / "half.engine", PROFILE, ADA)

    def test_quantized_int8(self, write, tmp_path):
        rng = np.random.default_rng(0)
        arrays = {
            "wq": rng.integers(-128, 128, (8, 3, 3, 3)).astype(np.int8),
            "scale": np.float32(0.1),
            "zero": np.int8(0),
            "scales": np.full(8, 0.01, np.float32),
            "zeros": np.zeros(8, np.int8),
        }
        build_engine(write(parse(QUANTIZED, **arrays)), tmp_path / "int8.engine", PROFILE, ADA)

    def test_the_plan_that_made_the_file_is_in_the_fingerprint(self, write, tmp_path):
        graph = parse(CNN, **weights())
        onnx.helper.set_model_props(graph, {"plan_sha256": "abc"})
        assert build_engine(write(graph), tmp_path / "model.engine", PROFILE, ADA).plan_sha256 == "abc"

    def test_weights_beside_the_file_are_in_its_hash(self, tmp_path):
        hashes = set()
        for factor in (1, 2):
            arrays = {name: factor * array for name, array in weights().items()}
            path = tmp_path / "model.onnx"
            (tmp_path / "model.data").unlink(missing_ok=True)
            onnx.save(parse(CNN, **arrays), path, save_as_external_data=True, location="model.data", size_threshold=0)
            hashes.add(build_engine(path, tmp_path / "model.engine", PROFILE, ADA).model_sha256)
        assert len(hashes) == 2

    def test_without_a_target_it_is_for_every_gpu_of_the_library(self, model, tmp_path):
        engine = tmp_path / "model.engine"
        assert build_engine(model, engine, PROFILE).compute_capability is None
        for capability in ("8.0", "8.6", "8.9", "12.0"):
            require(engine, Gpu("any", capability, "13.0"), installed_libraries()[0])

    def test_each_target_is_another_engine(self, model, tmp_path):
        made = [
            build_engine(model, tmp_path / "model.engine", PROFILE, BuildOptions(compute_capability=capability))
            for capability in ("7.5", "8.9")
        ]
        assert made[0].engine_sha256 != made[1].engine_sha256

    @pytest.mark.parametrize("debug", ["unfused", ("b",), ("a", "d")])
    def test_inner_tensors(self, model, tmp_path, debug):
        made = build_engine(model, tmp_path / "e", PROFILE, BuildOptions(compute_capability="8.9", debug=debug))
        assert made.options.debug == debug
        assert made.options.breaks_fusion == (debug != "unfused")

    def test_inner_tensors_are_in_the_engine(self, model, tmp_path):
        hashes = {
            build_engine(model, tmp_path / "e", PROFILE, BuildOptions(compute_capability="8.9", debug=d)).engine_sha256
            for d in ("none", "unfused", ("b",), ("b", "d"))
        }
        assert len(hashes) == 4

    def test_an_inner_tensor_that_is_not_there(self, model, tmp_path):
        options = BuildOptions(compute_capability="8.9", debug=("b", "nothing", "w0"))
        with pytest.raises(JobError, match="the network has no tensor called nothing, w0 that could be looked at"):
            build_engine(model, tmp_path / "e", PROFILE, options)

    @pytest.mark.parametrize("level", [0, 5])
    def test_optimization_level_and_workspace(self, model, tmp_path, level):
        options = BuildOptions(compute_capability="8.9", optimization_level=level, workspace_bytes=1 << 30)
        build_engine(model, tmp_path / "e", PROFILE, options)

    def test_too_small_a_workspace_is_refused_in_tensorrt_s_words(self, model, tmp_path):
        with pytest.raises(RefusedError, match="workspace") as caught:
            build_engine(model, tmp_path / "e", PROFILE, BuildOptions(compute_capability="8.9", workspace_bytes=1024))
        one_sentence(caught.value)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"version_compatible": True}, "has no version-compatible engines"),
            ({"hardware_compatible": "ampere_plus"}, "has no hardware_compatible"),
            ({"hardware_compatible": "same_compute_capability"}, "has no hardware_compatible"),
        ],
    )
    def test_what_tensorrt_rtx_has_not_is_refused_and_not_ignored(self, model, tmp_path, options, reason):
        with pytest.raises(JobError, match=reason) as caught:
            build_engine(model, tmp_path / "e", PROFILE, BuildOptions(compute_capability="8.9", **options))
        one_sentence(caught.value)
        assert not (tmp_path / "e").exists()

    def test_the_real_library_has_it_not(self, model):
        """So that we notice when TensorRT-RTX learns it."""
        library, builder = find_builder("8.9", None)
        options = BuildOptions(compute_capability="8.9", version_compatible=True)
        with pytest.raises(RefusedError, match=r"libnvinfer_lean"):
            building._serialized(library, builder, model, PROFILE, options, None)
        with library.errors():
            config = builder.create_builder_config()
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
            assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.NONE

    def test_a_timing_cache_is_ignored_with_a_warning(self, model, tmp_path, caplog):
        options = BuildOptions(compute_capability="8.9", timing_cache=tmp_path / "cache")
        build_engine(model, tmp_path / "e", PROFILE, options)
        assert "timing_cache is ignored" in caplog.text
        assert not (tmp_path / "cache").exists()

    @pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
    @pytest.mark.parametrize("content", [None, b"", b"garbage" * 10])
    def test_the_calls_of_the_timing_cache(self, tmp_path, content):
        """TensorRT-RTX takes them and does nothing, which shows that they are spelt right."""
        library, builder = find_builder("8.9", None)
        path = tmp_path / "cache"
        if content is not None:
            path.write_bytes(content)
        with library.errors():
            cache = building._timing_cache(builder.create_builder_config(), path)
        building._write(path, cache.serialize())
        assert path.read_bytes().startswith(b"ptrt")

    def test_a_folder_that_is_not_there(self, model, tmp_path):
        with pytest.raises(JobError, match="cannot be written") as caught:
            build_engine(model, tmp_path / "nowhere" / "e", PROFILE, ADA)
        one_sentence(caught.value)

    def test_a_model_that_is_none(self, tmp_path):
        (tmp_path / "model.onnx").write_bytes(b"this is not a model")
        with pytest.raises(JobError, match="ONNX") as caught:
            build_engine(tmp_path / "model.onnx", tmp_path / "e", PROFILE, ADA)
        one_sentence(caught.value)

    def test_an_operator_that_tensorrt_has_not(self, write, tmp_path):
        model = write(parse("g (float[2, 4, 4] x) => (float[2] y) { y = Det(x) }"))
        with pytest.raises(RefusedError, match="Det") as caught:
            build_engine(model, tmp_path / "e", options=ADA)
        one_sentence(caught.value)

    @pytest.mark.parametrize("capability", ["9.0", "3.5", "nonsense"])
    def test_a_target_that_tensorrt_rtx_has_not(self, model, tmp_path, capability):
        with pytest.raises(UnavailableError, match=f"cannot build for compute capability {capability}") as caught:
            build_engine(model, tmp_path / "e", PROFILE, BuildOptions(compute_capability=capability))
        one_sentence(caught.value)

    @pytest.mark.parametrize(
        ("shapes", "reason"),
        [
            ({}, "the profile gives no shapes for input x"),
            ({"x": ((2, 3, 16, 16), (1, 3, 16, 16), (4, 3, 16, 16))}, "MIN<=OPT<=MAX"),
            ({"x": ((1, 3, 16, 16), (1, 3, 16), (4, 3, 16, 16))}, "MIN<=OPT<=MAX"),
            ({"x": ((1, 5, 16, 16), (1, 5, 16, 16), (4, 5, 16, 16))}, "x"),
        ],
    )
    def test_a_profile_that_does_not_fit(self, model, tmp_path, shapes, reason):
        with pytest.raises(RefusedError, match=reason) as caught:
            build_engine(model, tmp_path / "e", shapes, ADA)
        one_sentence(caught.value)

    def test_a_refused_build_leaves_the_old_engine_as_it_was(self, model, tmp_path):
        engine = tmp_path / "e"
        made = build_engine(model, engine, PROFILE, ADA)
        with pytest.raises(RefusedError):
            build_engine(model, engine, {}, ADA)
        assert require(engine, RTX_4090, installed_libraries()[0]) == made

    @pytest.mark.parametrize("options", [{"optimization_level": 6}, {"workspace_bytes": 0}, {"debug": "all"}, {"f": 1}])
    def test_options_that_are_none(self, options):
        with pytest.raises(ValueError, match="BuildOptions"):
            BuildOptions(**options)

    def test_nothing_is_said_on_stderr(self, model, tmp_path):
        """Neither by TensorRT nor by its bindings, also where it refuses."""
        code = f"""
from pathlib import Path
from validate.backends.tensorrt import BuildOptions, build, build_engine
profile = {PROFILE}
assert build(Path({str(model)!r}), profile, "8.9").ok
assert build(Path({str(model)!r}), {{"x": ((1, 5), (1, 5), (1, 5))}}, "8.9").ok is False
build_engine({str(model)!r}, {str(tmp_path / "e")!r}, profile, BuildOptions(debug="unfused"))
"""
        finished = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        assert finished.stderr == ""
        assert finished.stdout == ""


class TestProgress:
    def test_phases_are_reported_up_to_their_last_step(self, model, tmp_path):
        seen: list[tuple[str, int, int]] = []
        build_engine(model, tmp_path / "e", PROFILE, ADA, lambda *event: seen.append(event))
        assert seen[0][1] == 0
        outermost = seen[0][0]
        assert seen[-1] == (outermost, seen[0][2], seen[0][2])
        assert all(0 <= done <= steps for _, done, steps in seen)
        assert len({phase for phase, *_ in seen}) > 3

    def test_ctrl_c_ends_the_build(self, model, tmp_path):
        before = signal.getsignal(signal.SIGINT)
        calls = []

        def press(phase: str, done: int, steps: int) -> None:
            calls.append(phase)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            build_engine(model, tmp_path / "e", PROFILE, ADA, press)
        assert len(calls) < 20, "at the next step, not at the end"
        assert not (tmp_path / "e").exists()
        assert not fingerprint_path(tmp_path / "e").exists()
        assert signal.getsignal(signal.SIGINT) is before

    def test_ctrl_c_ends_the_check_too(self, model, monkeypatch):
        original = building.new_monitor

        def pressed(*arguments: Any) -> Any:
            signal.raise_signal(signal.SIGINT)
            return original(*arguments)

        monkeypatch.setattr(building, "new_monitor", pressed)
        with pytest.raises(KeyboardInterrupt):
            build(model, PROFILE, "8.9")

    def test_what_the_callback_raises_ends_the_build_and_is_raised(self, model, tmp_path, capfd):
        def fail(phase: str, done: int, steps: int) -> None:
            raise ZeroDivisionError("of the caller")

        with pytest.raises(ZeroDivisionError, match="of the caller"):
            build_engine(model, tmp_path / "e", PROFILE, ADA, fail)
        assert not (tmp_path / "e").exists()
        assert capfd.readouterr().err == ""

    def test_in_another_thread(self, model, tmp_path):
        """Where Python allows no signal handlers."""
        made: list[Fingerprint] = []
        thread = threading.Thread(target=lambda: made.append(build_engine(model, tmp_path / "e", PROFILE, ADA)))
        thread.start()
        thread.join(60)
        assert made


class TestLibrary:
    def test_what_is_installed(self):
        libraries, reasons = installed_libraries()
        rtx = libraries["tensorrt_rtx"]
        assert rtx.ahead_of_time
        assert str(rtx) == f"tensorrt_rtx {trt.__version__}"
        assert {"8.0", "8.6", "8.9", "12.0"} <= set(rtx.compute_capabilities)
        assert list(rtx.compute_capabilities) == sorted(rtx.compute_capabilities, key=float)
        assert len(libraries) + len(reasons) == 2

    def test_messages_go_to_logging(self, model, caplog):
        caplog.set_level(logging.DEBUG, logger="validate.backends.tensorrt")
        build(model, PROFILE, "8.9")
        assert any(record.levelno == logging.DEBUG for record in caplog.records)
        assert not any(record.levelno >= logging.WARNING for record in caplog.records)
        build(model, {"x": ((1, 5, 16, 16),) * 3}, "8.9")
        assert any(record.levelno == logging.ERROR for record in caplog.records)

    def test_errors_are_collected_for_whoever_asked(self):
        library = installed_libraries()[0]["tensorrt_rtx"]
        with library.errors() as outer:
            library.logger.log(trt.ILogger.Severity.ERROR, "first\n  line")
            with library.errors() as inner:
                library.logger.log(trt.ILogger.Severity.ERROR, "second")
                library.logger.log(trt.ILogger.Severity.WARNING, "no error")
        library.logger.log(trt.ILogger.Severity.ERROR, "third")
        assert outer == ["first line", "second"]
        assert inner == ["second"]

    def test_one_logger_in_a_process(self):
        """TensorRT keeps a pointer to the first, and says of a second that it ignores it."""
        library = installed_libraries()[0]["tensorrt_rtx"]
        assert library.logger is installed_libraries()[0]["tensorrt_rtx"].logger

    def test_importing_takes_neither_tensorrt_nor_torch(self):
        code = "import sys, validate.backends.tensorrt; print({'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules))"
        finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert finished.stdout == "set()\n"


@pytest.mark.skipif(local_gpu() is not None, reason="says what happens on a machine without a GPU")
class TestWithoutGpu:
    def test_an_engine_is_refused_with_what_it_needs(self, built):
        with pytest.raises(JobError, match=r"no GPU is found here, .* compute capability 8\.9$") as caught:
            TensorRTBackend(built)
        one_sentence(caught.value)

    def test_it_is_built_and_then_refused(self, model, tmp_path):
        build_engine(model, tmp_path / "e", PROFILE, ADA)
        with pytest.raises(JobError, match="no GPU is found here"):
            TensorRTBackend(tmp_path / "e")

    @pytest.mark.parametrize("damage", ["none", "flipped", "cut", "empty", "garbage"])
    def test_what_tensorrt_cannot_load_is_one_sentence_with_its_words(self, built, tmp_path, damage):
        """Also that an engine cannot be deserialized, and so not inspected, without a GPU."""
        engine = tmp_path / "e"
        data = built.read_bytes()
        flipped = bytes([data[0] ^ 255]) + data[1:]
        damaged = {"none": data, "flipped": flipped, "cut": data[:40], "empty": b"", "garbage": b"x" * 1000}[damage]
        engine.write_bytes(damaged)
        library = installed_libraries()[0]["tensorrt_rtx"]
        with pytest.raises(JobError, match=r"tensorrt_rtx .* refuses .* build it again on this machine$") as caught:
            deserialize(engine, library, Fingerprint.read(built))
        assert "cudaError" in one_sentence(caught.value)


class TestBackend:
    """With a GPU that is not there: up to the point where TensorRT is asked."""

    @pytest.mark.parametrize(
        ("gpu", "reason"),
        [
            (Gpu("NVIDIA A100-SXM4-80GB", "8.0", "13.0"), r"built for a GPU \(compute capability 8\.9\) and the GPU"),
            (RTX_4090, r"does not run engines on NVIDIA GeForce RTX 4090 .* \(PyTorch finds no CUDA here\); install"),
        ],
    )
    def test_a_foreign_engine(self, built, monkeypatch, gpu, reason):
        monkeypatch.setattr(backend, "local_gpu", lambda: gpu)
        with pytest.raises(JobError, match=reason) as caught:
            TensorRTBackend(built)
        one_sentence(caught.value)

    @pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
    def test_a_damaged_engine(self, built, tmp_path, monkeypatch, change):
        monkeypatch.setattr(backend, "local_gpu", lambda: RTX_4090)
        engine = tmp_path / "model.engine"
        engine.write_bytes(change(built.read_bytes()))
        fingerprint_path(engine).write_bytes(fingerprint_path(built).read_bytes())
        with pytest.raises(JobError, match="is not the file that was built") as caught:
            TensorRTBackend(engine)
        one_sentence(caught.value)

    def test_another_version(self, built, tmp_path, monkeypatch):
        monkeypatch.setattr(backend, "local_gpu", lambda: RTX_4090)
        engine = tmp_path / "model.engine"
        engine.write_bytes(built.read_bytes())
        Fingerprint.read(built).model_copy(update={"version": "1.2.0.54"}).write(engine)
        with pytest.raises(JobError, match=r"built by tensorrt_rtx 1\.2\.0\.54 and tensorrt_rtx .* is installed here"):
            TensorRTBackend(engine)

    def test_a_missing_fingerprint(self, built, tmp_path):
        engine = tmp_path / "model.engine"
        engine.write_bytes(built.read_bytes())
        with pytest.raises(JobError, match="has no fingerprint"):
            TensorRTBackend(engine)

    def test_inner_tensors_cannot_be_fed(self):
        with pytest.raises(CannotForceError, match="an engine cannot be fed inner tensors; ") as caught:
            TensorRTBackend.load(object.__new__(TensorRTBackend), forced=["a"])
        one_sentence(caught.value)
