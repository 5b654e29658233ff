"""What runs an engine, run on an engine that is none: it has the members that we call, and computes with PyTorch.

So everything but TensorRT itself is executed: addresses, types, shapes, listeners, refusals. On the CPU with
PyTorch's streams replaced, and on a GPU as it is where there is one. That the members are those of TensorRT is shown
by test_tensorrt_api.py; that TensorRT does what we think by tests/gpu.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from validate.backends.tensorrt import BuildOptions, TensorRTEngine, installed_libraries, parse_layers
from validate.backends.tensorrt import engine as engine_module
from validate.backends.tensorrt.backend import TensorRTBackend, observable_tensors
from validate.backends.tensorrt.engine import _DeviceBuffer
from validate.backends.tensorrt.listeners import new_debug_listener, new_profiler
from validate.exceptions import JobError

trt = pytest.importorskip("tensorrt_rtx", reason="listeners are subclasses of TensorRT's; pip install tensorrt-rtx")
torch = pytest.importorskip("torch", reason="engines run on PyTorch's tensors; pip install torch")

X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
LAYERS = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for x",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Dimensions": [2, 3], "Format/Datatype": "Float"}],
            "Outputs": [{"Name": "scratch", "Dimensions": [2, 3], "Format/Datatype": "Float"}],
        },
        {
            "Name": "Conv_0 + Relu_1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "scratch", "Dimensions": [2, 3], "Format/Datatype": "Float"}],
            "Outputs": [{"Name": "inner", "Dimensions": [2, 3], "DataType": "BFloat16", "Format": "Row major linear"}],
            "Metadata": "[ONNX Layer: Conv_0]\u001f[ONNX Layer: /block/Relu[1]]\u001e[ONNX Layer: Add_2]",
        },
        {"Name": "again", "LayerType": "NoOp", "Inputs": [], "Outputs": [{"Name": "scratch"}]},
        {
            "Name": "Gemm_3",
            "LayerType": "gemm",
            "Metadata": "",
            "Inputs": [{"Name": "inner", "Dimensions": [2, 3], "DataType": "BFloat16"}],
            "Outputs": [{"Name": "y", "Dimensions": [2, 3], "DataType": "Half"}, {"Name": "wide", "DataType": "Float"}],
        },
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "Input"}, {"Name": "y", "IOMode": "Output"}],
}


class FakeEngine:
    """Gives y = half(2 x), wide = x > 0, sizes = shape(x) on the host, and shows inner = bfloat16(x + 1)."""

    io: ClassVar = {
        "x": trt.DataType.FLOAT,
        "y": trt.DataType.HALF,
        "wide": trt.DataType.BOOL,
        "sizes": trt.DataType.INT64,
    }
    num_io_tensors = len(io)

    def __init__(self, device: str) -> None:
        self.device = device
        self.emitted = ["inner", "other"]
        self.succeeds = True
        self.y_shape: tuple[int, ...] | None = None

    def create_execution_context(self) -> FakeContext | None:
        return FakeContext(self)

    def get_tensor_name(self, index: int) -> str:
        return list(self.io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.INPUT if name == "x" else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.io[name]

    def get_tensor_location(self, name: str) -> Any:
        return trt.TensorLocation.HOST if name == "sizes" else trt.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        return [trt.Dims((1, 3)), trt.Dims((2, 3)), trt.Dims((4, 3))]

    def create_engine_inspector(self) -> Any:
        class Inspector:
            execution_context = None

            def get_engine_information(self, kind: Any) -> str:
                assert kind == trt.LayerInformationFormat.JSON
                assert isinstance(self.execution_context, FakeContext)
                return json.dumps(LAYERS)

        return Inspector()


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.listener: Any = None
        self.profiler: Any = None
        self.unfused_tensors_debug_state = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return len(shape) == 2 and shape[1] == 3 and 1 <= shape[0] <= 4

    def get_tensor_shape(self, name: str) -> Any:
        if name == "y" and self.engine.y_shape:
            return trt.Dims(self.engine.y_shape)
        return trt.Dims((2,) if name == "sizes" else self.shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory
        self.addresses[name] = memory
        return True

    def set_debug_listener(self, listener: Any) -> bool:
        self.listener = listener
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.addresses.keys() == self.engine.io.keys()
        x = self._at("x", torch.float32, self.shape)
        self._at("y", torch.float16, self.shape).copy_(2 * x)
        self._at("wide", torch.bool, self.shape).copy_(x > 0)
        ctypes.memmove(self.addresses["sizes"], np.array(self.shape, np.int64).tobytes(), 16)
        if self.listener and self.unfused_tensors_debug_state:
            inner = (x + 1).to(torch.bfloat16).contiguous()
            location = trt.TensorLocation.HOST if self.engine.device == "cpu" else trt.TensorLocation.DEVICE
            for name in self.engine.emitted:
                self.listener.process_debug_tensor(
                    inner.data_ptr(), location, trt.DataType.BF16, trt.Dims(self.shape), name, stream_handle
                )
            inner.zero_()  # the buffer is valid in the callback only
        if self.profiler:
            self.profiler.report_layer_time("first", 0.5)
            self.profiler.report_layer_time("second", 1.5)
        return self.engine.succeeds

    def _at(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape)) * dtype.itemsize
        if self.engine.device == "cpu":
            return torch.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype=dtype).view(shape)
        return torch.as_tensor(_DeviceBuffer(self.addresses[name], size), device="cuda").view(dtype).view(shape)


class FakeStream:
    cuda_stream = 7

    def synchronize(self) -> None:
        pass


@pytest.fixture(params=["cpu", *["cuda"] * torch.cuda.is_available()])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    if request.param == "cpu":
        monkeypatch.setattr(engine_module, "DEVICE", "cpu")
        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return FakeEngine(request.param)


def opened(fake: FakeEngine, outputs: list[str] | None = None, unfused: bool = False) -> TensorRTEngine:
    return TensorRTEngine(installed_libraries()[0]["tensorrt_rtx"], fake, outputs, unfused, "some GPU")


class TestRun:
    def test_names_and_where_it_runs(self, fake):
        engine = opened(fake)
        assert engine.input_names == ("x",)
        assert engine.output_names == ("y", "wide", "sizes")
        assert engine.runtime == f"tensorrt_rtx {trt.__version__} (strongly typed engine)"
        assert engine.device == "some GPU"

    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_outputs_by_name_in_their_own_types(self, fake, size):
        x = np.resize(X, (size, 3))
        outputs = opened(fake).run({"x": x, "labels": np.zeros(size)})
        assert list(outputs) == ["y", "wide", "sizes"]
        assert outputs["y"].dtype == np.float16
        np.testing.assert_array_equal(outputs["y"], (2 * x).astype(np.float16))
        np.testing.assert_array_equal(outputs["wide"], x > 0)
        assert outputs["sizes"].tolist() == [size, 3], "from the host"

    def test_only_what_is_asked_for(self, fake):
        assert list(opened(fake, ["wide"]).run({"x": X})) == ["wide"]

    def test_results_of_one_run_stay_as_they_are_in_the_next(self, fake):
        engine = opened(fake)
        first = engine.run({"x": X})["y"]
        before = first.copy()
        engine.run({"x": -X})
        np.testing.assert_array_equal(first, before)

    @pytest.mark.parametrize("given", [X.astype(np.float64), X.astype(np.float16), X[:, ::-1], np.asfortranarray(X)])
    def test_width_and_layout_are_converted(self, fake, given):
        expected = (2 * given.astype(np.float32)).astype(np.float16)
        np.testing.assert_array_equal(opened(fake).run({"x": given})["y"], expected)

    def test_a_read_only_array(self, fake):
        x = X.copy()
        x.flags.writeable = False
        opened(fake).run({"x": x})

    @pytest.mark.parametrize("given", [np.ones((2, 3), np.int64), np.ones((2, 3), bool), np.ones((2, 3), np.uint8)])
    def test_another_kind_of_number_is_refused(self, fake, given):
        with pytest.raises(
            JobError, match=f"engine input x is torch.float32, but the preprocessing gives {given.dtype}"
        ):
            opened(fake).run({"x": given})

    def test_a_missing_input_is_refused(self, fake):
        with pytest.raises(JobError, match="no array is given for engine input x"):
            opened(fake).run({})

    @pytest.mark.parametrize("shape", [(5, 3), (2, 4), (3,)])
    def test_a_shape_outside_of_the_profile_is_refused_with_the_profile(self, fake, shape):
        with pytest.raises(JobError) as caught:
            opened(fake).run({"x": np.ones(shape, np.float32)})
        assert f"takes shapes from (1, 3) to (4, 3), and {shape} is given" in str(caught.value)

    def test_an_output_whose_shape_depends_on_values_is_refused(self, fake):
        fake.y_shape = (-1, 3)
        with pytest.raises(JobError, match="engine output y depends on values"):
            opened(fake).run({"x": X})

    def test_a_failed_run_is_refused(self, fake):
        fake.succeeds = False
        with pytest.raises(JobError, match="cannot run the engine: it gives no reason"):
            opened(fake).run({"x": X})

    def test_no_context_is_refused(self, fake):
        fake.create_execution_context = lambda: None  # type: ignore[method-assign]
        with pytest.raises(JobError, match="cannot prepare the engine to run"):
            opened(fake)


class TestInnerTensors:
    def test_they_come_by_name_among_the_outputs(self, fake):
        engine = opened(fake, ["inner", "y"], unfused=True)
        for x in (X, -X):
            outputs = engine.run({"x": x})
            assert list(outputs) == ["inner", "y"]
            assert outputs["inner"].dtype == np.float32, "numpy has no bfloat16"
            np.testing.assert_allclose(outputs["inner"], x + 1, rtol=2**-8)

    def test_none_is_shown_where_none_is_asked_for(self, fake):
        engine = opened(fake, ["y"], unfused=True)
        assert engine._context.listener is None
        assert not engine._context.unfused_tensors_debug_state

    def test_one_that_the_engine_was_not_built_to_show(self, fake):
        with pytest.raises(JobError, match="the engine was not built to show tensor nothing"):
            opened(fake, ["nothing"])

    def test_one_that_does_not_come(self, fake):
        with pytest.raises(JobError, match="did not show tensor fused_away"):
            opened(fake, ["y", "fused_away"], unfused=True).run({"x": X})

    def test_nothing_keeps_an_engine_that_is_done_with(self, fake):
        """TensorRT's bindings hold the listener where the garbage collector cannot see, so that a cycle would stay."""
        engine = opened(fake, ["inner"], unfused=True)
        engine.run({"x": X})
        gone = weakref.ref(engine)
        gc.disable()
        try:
            del engine
            assert gone() is None
        finally:
            gc.enable()

    def test_one_that_comes_twice_is_ambiguous(self, fake):
        fake.emitted = ["inner", "inner"]
        with pytest.raises(JobError, match="tensor inner is computed more than once"):
            opened(fake, ["inner"], unfused=True).run({"x": X})

    def test_an_empty_one(self):
        found = engine_module._copy(trt, 0, trt.TensorLocation.DEVICE, trt.DataType.HALF, (0, 3), 0)
        assert found.shape == (0, 3)
        assert found.dtype == np.float16


class TestTimesAndLayers:
    def test_times_are_medians_by_layer(self, fake):
        assert opened(fake).layer_times({"x": X}, runs=3) == {"first": 0.5, "second": 1.5}

    def test_layers(self, fake):
        layers = opened(fake).layers()
        assert [layer.name for layer in layers][1] == "Conv_0 + Relu_1"


class TestInspection:
    def test_both_schemas_are_read(self):
        reformat, conv, _, gemm = parse_layers(json.dumps(LAYERS))
        assert (reformat.nodes, reformat.types, reformat.formats) == ((), ("Float",), ("",))
        assert conv.nodes == ("Conv_0", "/block/Relu[1]", "Add_2")
        assert (conv.inputs, conv.outputs, conv.types, conv.formats) == (
            ("scratch",),
            ("inner",),
            ("BFloat16",),
            ("Row major linear",),
        )
        assert gemm.outputs == ("y", "wide")

    def test_names_alone_are_refused(self):
        with pytest.raises(JobError, match="no more than the names of its layers"):
            parse_layers('{"Layers": ["Conv_0", "Relu_1"]}')

    def test_what_can_be_asked_for(self):
        layers = parse_layers(json.dumps(LAYERS))
        conv = "Conv_0 + /block/Relu[1] + Add_2"
        outputs, inputs = ("y", "wide"), ("x",)
        assert observable_tensors(layers, outputs, inputs, BuildOptions()) == {"y": "Gemm_3", "wide": "Gemm_3"}
        found = observable_tensors(layers, outputs, inputs, BuildOptions(debug="unfused"))
        assert list(found.items()) == [("inner", conv), ("y", "Gemm_3"), ("wide", "Gemm_3")], "scratch is two tensors"
        named = observable_tensors(layers, outputs, inputs, BuildOptions(debug=("inner", "elsewhere")))
        assert named == {"inner": conv, "y": "Gemm_3", "wide": "Gemm_3", "elsewhere": ""}

    def test_an_unknown_tensor_is_refused(self):
        backend = object.__new__(TensorRTBackend)
        backend.tensors = {"y": "Gemm_3"}
        with pytest.raises(JobError, match="the engine shows no tensor called a, b; "):
            backend.load(["b", "y", "a"])


class TestListeners:
    def test_the_profiler_is_called_by_the_bindings(self):
        """Through TensorRT's own method, which finds ours."""
        profiler = new_profiler(trt)
        trt.IProfiler.report_layer_time(profiler, "layer", 1.5)
        assert profiler.times == {"layer": [1.5]}

    def test_a_copy_that_fails_is_kept_and_not_raised_into_tensorrt(self):
        def fail(*arguments: Any) -> Any:
            raise JobError("tensors of TensorRT's type FP4 cannot be read; name others")

        listener = new_debug_listener(trt, fail)
        listener.wanted = frozenset({"inner"})
        dims = trt.Dims((2, 3))
        listener.process_debug_tensor(1, trt.TensorLocation.DEVICE, trt.DataType.FP4, dims, "inner", 0)
        listener.process_debug_tensor(1, trt.TensorLocation.DEVICE, trt.DataType.FP4, dims, "unwanted", 0)
        assert listener.failures == [
            "tensor inner cannot be copied: tensors of TensorRT's type FP4 cannot be read; name others"
        ]
        assert listener.found == {}

    def test_what_the_bindings_give_to_a_debug_listener(self):
        """The docstring says that the address is a capsule, and it is a number.

        Nothing calls a listener but a running engine, so its C++ method is called here as TensorRT calls it: by its
        place in the table of virtual methods. In a process of its own, which may crash once that place changes.
        """
        finished = subprocess.run(
            [sys.executable, "-c", CALL_THE_LISTENER],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=Path(__file__).parents[4],
        )
        if finished.returncode < 0:
            pytest.skip("the table of virtual methods is another one")
        assert finished.stdout == "{'inner': (123456, 'HOST', 'FLOAT', (2, 3), 77)}\n", finished.stderr


CALL_THE_LISTENER = """
import ctypes
import tensorrt_rtx as trt
from validate.backends.tensorrt.listeners import new_debug_listener

class Dims(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8)]

listener = new_debug_listener(trt, lambda a, l, t, shape, stream: (a, l.name, t.name, shape, stream))
listener.wanted = frozenset({"inner"})
this = ctypes.c_void_p.from_address(id(listener) + object.__basicsize__).value
methods = ctypes.c_void_p.from_address(this).value
pointer = ctypes.c_void_p
process = ctypes.PYFUNCTYPE(
    ctypes.c_bool, pointer, pointer, ctypes.c_int32, ctypes.c_int32, pointer, ctypes.c_char_p, pointer
)(pointer.from_address(methods + 4 * ctypes.sizeof(pointer)).value)
shape = Dims(2, (ctypes.c_int64 * 8)(2, 3))
process(this, 123456, 1, 0, ctypes.addressof(shape), b"inner", 77)
print(listener.found)
"""
