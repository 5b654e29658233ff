"""ONNX Runtime on the CPU, in one of two arithmetics.

``float`` simulates Q/DQ in float32 and is what accuracy is judged by: integer kernels on a CPU without VNNI
saturate (DESIGN.md), which says nothing about a GPU. ``integer`` is the default session, with whatever
integer kernels this CPU has.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from validate.exceptions import JobError

__all__ = ["Arithmetic", "DetachedModel", "OnnxRuntimeModel", "cpu_name", "write_optimized"]

Arithmetic = Literal["float", "integer"]

_NUMPY_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip
_ERROR_ONLY = 3  # ONNX Runtime's severity levels: 0 verbose .. 4 fatal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetachedModel:
    """A model whose large weights stay where they are: a session reads them there, and no size limit holds.

    Attributes:
        graph: the bytes of an ONNX file in which the weights are external data.
        weights: by initializer name.
    """

    graph: bytes
    weights: Mapping[str, NDArray[Any]]


class OnnxRuntimeModel:
    """An ONNX file or a model in memory in a session; see `Runnable`.

    Args:
        model: a path (needed for files with external data), the bytes of an ONNX file, or a detached model.
        arithmetic: how Q/DQ is computed; without Q/DQ there is no difference.
        outputs: which outputs to compute; all of the graph's by default.
        threads: intra-op threads; 0 lets ONNX Runtime choose.
        optimize: False runs the graph as it is.

    Raises:
        JobError: the file cannot be loaded, or an output is not there.
    """

    def __init__(
        self,
        model: Path | bytes | DetachedModel,
        arithmetic: Arithmetic = "float",
        outputs: Sequence[str] | None = None,
        threads: int = 0,
        optimize: bool = True,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Threads that spin between operators take the cores that decode the next batch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if arithmetic == "float":
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session: Any = _session(model, options)
        self._weights: Mapping[str, NDArray[Any]] = (
            model.weights if isinstance(model, DetachedModel) else {}
        )  # the session reads them here
        # Not the runtime's own objects, which would keep the session alive after release().
        self._inputs = {i.name: (str(i.type), list(i.shape)) for i in self._session.get_inputs()}
        self.input_names = tuple(self._inputs)
        available = tuple(o.name for o in self._session.get_outputs())
        self.output_names = available if outputs is None else tuple(outputs)
        if unknown := set(self.output_names) - set(available):
            raise JobError(f"the model has no output called {', '.join(sorted(unknown))}")
        kind = "float arithmetic" if arithmetic == "float" else "default session"
        self.runtime = f"onnxruntime {onnxruntime.__version__} ({kind})"
        self.device = cpu_name()
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
            size = min(len(array) for array in feeds.values() if array.ndim)
        if size < full:
            feeds = {name: array[np.minimum(np.arange(full), size - 1)] for name, array in feeds.items()}
        try:
            values = self._session.run(list(self.output_names), feeds)
        except Exception as error:  # onnxruntime's classes share no base but Exception
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise JobError(f"ONNX Runtime cannot run the model on {shapes}: {_one_line(error)}") from error
        if size < full:
            values = [value[:size] if value.ndim and len(value) == full else value for value in values]
        return dict(zip(self.output_names, values, strict=True))

    def release(self) -> None:
        """Free the session's memory. Names and metadata stay; it cannot be run any more."""
        self._session, self._weights = None, {}

    def _convert(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        wanted = np.dtype(_NUMPY_TYPES.get(self._inputs[name][0], array.dtype))
        if array.dtype != wanted and array.dtype.kind != wanted.kind and {array.dtype.kind, wanted.kind} != {"i", "u"}:
            raise JobError(f"model input {name} is {wanted}, but the preprocessing gives {array.dtype}")
        return np.asarray(array, wanted, order="C")


def write_optimized(model: DetachedModel, path: Path) -> None:
    """Write the graph that ONNX Runtime makes of a model for this CPU; it is good for no other machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path)
    _session(model, options)


def _session(model: Path | bytes | DetachedModel, options: Any) -> Any:
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
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
