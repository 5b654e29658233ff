"""ONNX Runtime, in one of two arithmetics, on a CPU or an NVIDIA GPU.

``float`` simulates Q/DQ in float32 and is what accuracy is judged by: integer kernels on a CPU without VNNI
saturate in products of uint8 and int8, which says nothing about a GPU. ``integer`` is the default session, with
whatever integer kernels this CPU has.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from validate.backends.gpu import local_gpu
from validate.backends.onnx_files import (
    DetachedModel,
    detach,
    expose,
    force,
    read_onnx,
    with_shapes,
)
from validate.exceptions import JobError

__all__ = ["Arithmetic", "Device", "OnnxRuntimeBackend", "OnnxRuntimeModel", "cpu_name", "write_optimized"]

Arithmetic = Literal["float", "integer"]
Device = Literal["cpu", "cuda"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_ERROR_ONLY = 3  # ONNX Runtime's severity levels: 0 verbose .. 4 fatal

log = logging.getLogger(__name__)


class OnnxRuntimeModel:
    """An ONNX file or a model in memory in a session; see `Runnable`.

    Args:
        model: a path (needed for files with external data), the bytes of an ONNX file, or a detached model.
        arithmetic: how Q/DQ is computed; without Q/DQ there is no difference.
        outputs: which outputs to compute; all of the graph's by default.
        threads: intra-op threads; 0 lets ONNX Runtime choose.
        optimize: False runs the graph as it is.
        device: ``cuda`` runs on the first NVIDIA GPU; all nodes that can, the others on the CPU.
        renamed: the caller's name of an output -> the session's, where the two differ.

    Raises:
        JobError: the file cannot be loaded, an output is not there, or this ONNX Runtime has no CUDA.

    Examples:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {y = Relu(x)}'
        >>> model = OnnxRuntimeModel(parser.parse_model(text).SerializeToString())
        >>> model.run({"x": np.array([[-1.0, 2.0]])})["y"].tolist()
        [[0.0, 2.0]]
    """

    def __init__(
        self,
        model: Path | bytes | DetachedModel,
        arithmetic: Arithmetic = "float",
        outputs: Sequence[str] | None = None,
        threads: int = 0,
        optimize: bool = True,
        device: Device = "cpu",
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Threads that spin between operators take the cores that decode the next batch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if arithmetic == "float":
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session: Any = _session(model, options, _PROVIDERS[device])
        self._weights: Mapping[str, NDArray[Any]] = (
            model.weights if isinstance(model, DetachedModel) else {}
        )  # the session reads them here
        # Not the runtime's own objects, which would keep the session alive after release().
        self._inputs = {i.name: (str(i.type), list(i.shape)) for i in self._session.get_inputs()}
        self.input_names = tuple(self._inputs)
        ours = {theirs: name for name, theirs in (renamed or {}).items()}
        self._output_names = {ours.get(o.name, o.name): str(o.name) for o in self._session.get_outputs()}
        available = tuple(self._output_names)
        self.output_names = available if outputs is None else tuple(outputs)
        if unknown := set(self.output_names) - set(available):
            raise JobError(f"the model has no output called {', '.join(sorted(unknown))}")
        kind = "float arithmetic" if arithmetic == "float" else "default session"
        self.runtime = f"onnxruntime {onnxruntime.__version__} ({kind})"
        self.device = cpu_name() if device == "cpu" else _gpu_name()
        self._on_gpu = device == "cuda"
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model is fixed to, or None where axis 0 of its inputs is dynamic."""
        sizes = [shape[0] for _, shape in self._inputs.values() if shape and isinstance(shape[0], int)]
        return sizes[0] if sizes and sizes[0] > 0 else None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; float and integer widths are converted to the model's. See `Runnable`.

        A batch smaller than a model is fixed to is filled up with its last sample, and the outputs are cut.
        """
        if missing := set(self.input_names) - set(inputs):
            raise JobError(f"no array is given for model input {', '.join(sorted(missing))}")
        feeds = {name: self._convert(name, inputs[name]) for name in self.input_names}
        full = size = self.fixed_batch or 0
        if full:
            batched = [name for name, (_, shape) in self._inputs.items() if shape and shape[0] == full]
            size = min(len(feeds[name]) for name in batched)
        if size < full:
            feeds |= {name: feeds[name][np.minimum(np.arange(full), size - 1)] for name in batched}
        try:
            values = self._values([self._output_names[name] for name in self.output_names], feeds)
        except Exception as error:  # onnxruntime's classes share no base but Exception
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise JobError(f"ONNX Runtime cannot run the model on {shapes}: {_one_line(error)}") from error
        if size < full:
            values = [value[:size] if value.ndim and len(value) == full else value for value in values]
        return dict(zip(self.output_names, values, strict=True))

    def _values(self, names: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if not self._on_gpu:
            values: list[NDArray[Any]] = self._session.run(names, feeds)
            return values
        # Bound, so that outputs stay on the GPU until the run is over, and are copied once.
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in names:
            binding.bind_output(name, "cuda", 0)
        self._session.run_with_iobinding(binding)
        copied: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return copied

    def release(self) -> None:
        """Free the session's memory. Names and metadata stay; `run` fails afterwards."""
        self._session, self._weights = None, {}

    def _convert(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        wanted = np.dtype(_NUMPY_TYPES.get(self._inputs[name][0], array.dtype))
        if array.dtype != wanted and array.dtype.kind != wanted.kind and {array.dtype.kind, wanted.kind} != {"i", "u"}:
            raise JobError(f"model input {name} is {wanted}, but the preprocessing gives {array.dtype}")
        return np.asarray(array, wanted, order="C")


class OnnxRuntimeBackend:
    """An ONNX model, with its activations as outputs; see `Backend`.

    Args:
        model: a path, or a graph with the types and shapes that ONNX infers.
        arithmetic: see `OnnxRuntimeModel`.
        device: see `OnnxRuntimeModel`.
        threads: see `OnnxRuntimeModel`.

    Examples:
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) {r = Relu(x) y = Neg(r)}'
        >>> backend = OnnxRuntimeBackend(with_shapes(ir.from_onnx_text(text)))
        >>> list(backend.tensors)
        ['r', 'y']
        >>> backend.load(["r"]).run({"x": np.array([-1.0, 2.0])})["r"].tolist()
        [0.0, 2.0]
    """

    def __init__(
        self,
        model: Path | ir.Model,
        arithmetic: Arithmetic = "float",
        device: Device = "cpu",
        threads: int = 0,
    ) -> None:
        self.graph = with_shapes(read_onnx(model)) if isinstance(model, Path) else model
        self._arithmetic, self._device, self._threads = arithmetic, device, threads
        self.input_names = tuple(str(v.name) for v in self.graph.graph.inputs if not v.is_initializer())
        self.output_names = tuple(str(value.name) for value in self.graph.graph.outputs)
        self.tensors = activations(self.graph)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model is fixed to, or None where axis 0 of its inputs is dynamic."""
        shapes = [value.shape for value in self.graph.graph.inputs if value.name in self.input_names]
        sizes = [shape[0] for shape in shapes if shape is not None and len(shape) and isinstance(shape[0], int)]
        return sizes[0] if sizes and sizes[0] > 0 else None

    def load(self, outputs: Sequence[str] | None = None, forced: Sequence[str] = ()) -> OnnxRuntimeModel:
        """See `Backend`."""
        wanted = list(self.output_names if outputs is None else outputs)
        if unknown := {*wanted, *forced} - self.tensors.keys() - set(self.output_names):
            raise JobError(f"the model computes no activation called {', '.join(sorted(unknown))}")
        graph, computed = force(self.graph, forced) if forced else (self.graph, {})
        exposed = expose(graph, [computed.get(name, name) for name in wanted])
        return OnnxRuntimeModel(
            detach(exposed),
            self._arithmetic,
            wanted,
            self._threads,
            device=self._device,
            renamed={name: computed[name] for name in {*wanted, *self.output_names} & computed.keys()},
        )


def activations(model: ir.Model) -> dict[str, str]:
    """Return the float tensors that nodes of the main graph compute from inputs, and those nodes' names.

    The graph's own outputs are among them whatever their type. Tensors that depend on constants only are left out, and
    so are the outputs of Q/DQ nodes.

    Examples:
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) {r = Relu(x) y = Neg(r)}'
        >>> list(activations(with_shapes(ir.from_onnx_text(text))))
        ['r', 'y']
    """
    found: dict[str, str] = {}
    constant = set(model.graph.initializers.values())
    for node in model.graph:
        if node.inputs and all(value is None or value in constant for value in node.inputs):
            constant.update(node.outputs)
            continue
        for value in node.outputs:
            inner = node.op_type not in _QUANTIZERS and value.dtype in _FLOATS
            if value.name and (inner or value.is_graph_output()):
                found[value.name] = str(node.name or value.name)
    return found


def write_optimized(model: DetachedModel, path: Path) -> None:
    """Write the graph as ONNX Runtime optimizes it for this CPU; the file is for no other machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path)
    _session(model, options, _PROVIDERS["cpu"])


def _session(model: Path | bytes | DetachedModel, options: Any, provider: str) -> Any:
    if provider not in onnxruntime.get_available_providers():
        raise JobError(
            "this ONNX Runtime has no CUDA; pip uninstall -y onnxruntime, then pip install onnxruntime-gpu, or use "
            "the CPU"
        )
    options.log_severity_level = _ERROR_ONLY
    source: str | bytes
    if isinstance(model, DetachedModel):
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in model.weights.values()]
        options.add_external_initializers(list(model.weights), values)
        source, name = model.graph, "the model"
    elif isinstance(model, bytes):
        source, name = model, "the model"
    else:
        source = name = str(model)
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=list(dict.fromkeys([provider, _PROVIDERS["cpu"]]))
        )
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise JobError(f"ONNX Runtime cannot load {name}: {_one_line(error)}") from error


def cpu_name() -> str:
    """Return the CPU's name and whether it has VNNI, which decides if its integer kernels saturate."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    return f"{name} ({'with' if 'vnni' in info else 'without'} VNNI)"


def _gpu_name() -> str:
    """Return the name of the GPU that ONNX Runtime takes."""
    gpu = local_gpu()
    return "NVIDIA GPU" if gpu is None else gpu.name


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
