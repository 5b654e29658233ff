"""The models of an evaluation, opened for the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from validate.backends import (
    PLAN_KEY,
    Backend,
    OnnxRuntimeBackend,
    Options,
    PyTorchBackend,
    Runnable,
    kind_of,
    model_name,
    module_of,
    open_model,
    parameter_names,
)
from validate.backends.tensorrt import TensorRTBackend
from validate.data import SampleStream
from validate.exceptions import UsageError
from validate.results import Basis, EngineFile

__all__ = ["Contestants", "named_models"]


def named_models(models: Sequence[object] | Mapping[str, object]) -> dict[str, object]:
    """Return models by what results call them; a name that was there before gets a number.

    Raises UsageError where there are none.
    """
    if isinstance(models, str | bytes) or not isinstance(models, Sequence | Mapping) or not models:
        raise UsageError("give a list of models, the reference first, or a mapping from name to model")
    if isinstance(models, Mapping):
        return dict(models)
    named: dict[str, object] = {}
    for model in models:
        name = unique = model_name(model)
        number = 1
        while unique in named:
            number += 1
            unique = f"{name} ({number})"
        named[unique] = model
    return named


@dataclass(frozen=True)
class Contestants:
    """Models that are to run on the same inputs.

    Attributes:
        models: as they were given, by name, the reference first.
        backends: of those that are not PyTorch's, which need samples to be opened.
        options: of all.
    """

    models: Mapping[str, object]
    backends: Mapping[str, Backend]
    options: Options

    @classmethod
    def open(cls, models: Mapping[str, object], options: Options) -> Contestants:
        """Open what can be opened without samples. Errors as `open_model`."""
        backends = {name: open_model(m, options) for name, m in models.items() if kind_of(m) != "pytorch"}
        return cls(models, backends, options)

    def input_names(self, known: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return what the samples' arrays are called: the inputs of the first file, or of a module.

        Args:
            known: names of a module's inputs.
        """
        for backend in self.backends.values():
            return tuple(backend.input_names)
        if known is not None:
            return tuple(known)
        for model in self.models.values():
            if (names := parameter_names(model)) is not None:
                return names
        raise UsageError(
            "no ONNX file or engine among the models says what the inputs are called; give one, or model.inputs in the "
            "config"
        )

    def fixed_batch(self) -> int | None:
        """Return the batch size that files are fixed to; None where none is."""
        sizes = sorted({size for name in self.backends if (size := self.fixed_batch_of(name)) is not None})
        if len(sizes) > 1:
            raise UsageError(f"the models are fixed to different batch sizes: {', '.join(map(str, sizes))}")
        return sizes[0] if sizes else None

    def fixed_batch_of(self, name: str) -> int | None:
        """Return the batch size that an ONNX model is fixed to; None where it is not, or is none."""
        backend = self.backends.get(name)
        return backend.fixed_batch if isinstance(backend, OnnxRuntimeBackend) else None

    def basis_of(self, name: str) -> Basis | None:
        """Return what a model's answers are those of; None of one that is neither ONNX nor an engine."""
        backend = self.backends.get(name)
        if isinstance(backend, TensorRTBackend):
            return "engine"
        if not isinstance(backend, OnnxRuntimeBackend):
            return None
        return "kernels" if self.options.arithmetic == "integer" else "simulation"

    def plan_hash_of(self, name: str) -> str | None:
        """Return the hash of the plan that made a file or an engine; None where it names none."""
        backend = self.backends.get(name)
        if isinstance(backend, TensorRTBackend):
            return backend.fingerprint.plan_sha256
        return backend.graph.metadata_props.get(PLAN_KEY) if isinstance(backend, OnnxRuntimeBackend) else None

    def engine_of(self, name: str) -> EngineFile | None:
        """Return which engine file a model is; None of one that is none."""
        backend = self.backends.get(name)
        return backend.file() if isinstance(backend, TensorRTBackend) else None

    def load(self, stream: SampleStream) -> dict[str, Runnable]:
        """Return all models, ready to run on the stream's batches. Errors as of backends."""
        return {name: self._loaded(name, stream) for name in self.models}

    def _loaded(self, name: str, stream: SampleStream) -> Runnable:
        names, backend = stream.input_names, self.backends.get(name)
        if backend is None:
            example = next(iter(stream.limited(stream.batch_size).batches())).inputs
            module = module_of(self.models[name])
            backend = PyTorchBackend(module, names, example, self.options.device, self.options.precision)
        model = backend.load()
        if set(model.input_names) <= set(names):
            return model
        if len(model.input_names) == len(names) == 1:
            return _Renamed(model, names[0])
        raise UsageError(
            f"the inputs of {name} are {', '.join(model.input_names)}, and those of the first file {', '.join(names)}"
        )


class _Renamed:
    """A model with one input, which others know by another name."""

    def __init__(self, model: Runnable, name: str) -> None:
        self.runtime, self.device, self.output_names = model.runtime, model.device, model.output_names
        self.input_names: tuple[str, ...] = (name,)
        self._model = model

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see `Runnable`."""
        return self._model.run({self._model.input_names[0]: inputs[self.input_names[0]]})
