"""An engine as a `Backend`: what can be asked of it, and how it is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from validate.backends.base import CannotForceError
from validate.backends.gpu import local_gpu
from validate.backends.tensorrt.engine import TensorRTEngine, deserialize
from validate.backends.tensorrt.fingerprint import Fingerprint, require
from validate.backends.tensorrt.inspection import Layer, producers
from validate.backends.tensorrt.library import installed_libraries
from validate.backends.tensorrt.options import BuildOptions
from validate.backends.tensorrt.probe import require_running
from validate.exceptions import JobError
from validate.results import EngineFile

__all__ = ["TensorRTBackend", "observable_tensors"]


class TensorRTBackend:
    """A `Backend` over an engine file that has its fingerprint beside it.

    `load` can return its own outputs, and the inner tensors that it was built to output (`BuildOptions.debug`).

    Attributes:
        fingerprint: what the engine is for.
        layers: what it is made of, in the order in which it runs.

    Raises:
        JobError: the engine is damaged or foreign, or there is no GPU, no TensorRT or no PyTorch to run it with.
    """

    def __init__(self, engine: Path) -> None:
        gpu = local_gpu()
        libraries, _ = installed_libraries()
        self.fingerprint: Fingerprint = require(engine, gpu, libraries)
        if importlib.util.find_spec("torch") is None:
            raise JobError("engines run on PyTorch's CUDA tensors, and PyTorch is not installed; pip install torch")
        self._library = libraries[self.fingerprint.flavour]
        assert gpu is not None  # without one `require` refuses
        require_running(self._library, gpu, self.fingerprint.model or "its ONNX file")
        self._engine = deserialize(engine, self._library, self.fingerprint)
        self._device, self._driver, self._size = str(gpu), gpu.driver, engine.stat().st_size
        whole = self._load(None)
        self.layers: list[Layer] = whole.layers()
        shown = self.fingerprint.options.debug if self.fingerprint.options.breaks_fusion else ()
        own = tuple(name for name in whole.output_names if name not in shown)
        self.input_names, self.output_names = whole.input_names, self.fingerprint.outputs or own
        self.tensors = observable_tensors(self.layers, self.output_names, self.input_names, self.fingerprint.options)

    def file(self) -> EngineFile:
        """Return which engine this is, and what runs it."""
        return EngineFile(
            path=None,
            sha256=self.fingerprint.engine_sha256,
            library=str(self._library),
            gpu=self._device,
            driver=self._driver,
            size_bytes=self._size,
        )

    def load(self, outputs: Sequence[str] | None = None, forced: Sequence[str] = ()) -> TensorRTEngine:
        """See `Backend`. All that is loaded shares the engine's weights, and has working memory of its own."""
        if forced:
            raise CannotForceError(
                "an engine cannot be fed inner tensors; look at single layers in the ONNX file that it was built from"
            )
        if unknown := set(outputs or ()) - set(self.tensors):
            raise JobError(
                f"the engine shows no tensor called {', '.join(sorted(unknown))}; fusion may have taken it, or the "
                "engine was built without debug"
            )
        return self._load(self.output_names if outputs is None else outputs)

    def _load(self, outputs: Sequence[str] | None) -> TensorRTEngine:
        options = self.fingerprint.options
        made = TensorRTEngine(self._library, self._engine, outputs, options.debug == "unfused", self._device)
        if options.breaks_fusion:
            made.runtime = f"{self._library} (strongly typed engine, fusion broken at {len(options.debug)} tensors)"
        return made


def observable_tensors(
    layers: Sequence[Layer], outputs: Sequence[str], inputs: Sequence[str], options: BuildOptions
) -> dict[str, str]:
    """Return the tensors that an engine can output, in the order of its layers -> the ONNX nodes of the layer.

    With ``debug: unfused`` these are all outputs of layers that one layer alone writes. TensorRT does not promise to
    output all of them; one that it does not is an error when it is asked for.

    Examples:
        >>> layer = Layer("conv1", "conv", ("conv1",), ("x",), ("c1",), ("Int8",), ("",))
        >>> observable_tensors([layer], outputs=["y"], inputs=["x"], options=BuildOptions(debug="unfused"))
        {'c1': 'conv1', 'y': ''}
    """
    written = producers(layers)
    if options.debug == "unfused":
        inner = [name for name in written if name not in inputs]
    else:
        inner = list(options.debug) if isinstance(options.debug, tuple) else []
    known = [name for name in written if name in {*inner, *outputs}]
    names = dict.fromkeys([*known, *inner, *outputs])
    return {name: _label(written.get(name)) for name in names}


def _label(layer: Layer | None) -> str:
    if layer is None:
        return ""
    return " + ".join(layer.nodes) or layer.name
