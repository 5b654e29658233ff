"""Protocols of a runtime: a `Backend` opens a model, a `Runnable` runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import onnx_ir as ir
from numpy.typing import NDArray

from validate.exceptions import JobError

__all__ = ["Backend", "CannotForceError", "Deployable", "Runnable"]


class CannotForceError(JobError):
    """The runtime cannot take inner tensors as inputs, so that no layer can be run alone on given values."""


@runtime_checkable
class Runnable(Protocol):
    """A loaded model. Outputs are returned by name; `runtime` and `device` say what computed them."""

    runtime: str
    """Library, version and arithmetic, e.g. ``onnxruntime 1.32.0 (float arithmetic)``."""
    device: str
    """The hardware that it runs on."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch and return every output by name. Raises JobError where the runtime refuses.

        Inputs may be a mapping with more arrays than the model takes, and are converted to its float and integer
        widths. Outputs are numpy arrays on the host, in the type in which they were computed.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A model that a runtime can load, with any of its inner tensors as outputs."""

    @property
    def tensors(self) -> Mapping[str, str]:
        """The activations that `load` can return: name -> name of the node or module that computes it.

        In topological order. Inputs of the model and weights are not among them.
        """
        ...

    @property
    def input_names(self) -> tuple[str, ...]:
        """The model's inputs."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """The model's own outputs."""
        ...

    def load(self, outputs: Sequence[str] | None = None, forced: Sequence[str] = ()) -> Runnable:
        """Return the model, ready to run.

        Args:
            outputs: which of `tensors` to return; the model's own outputs by default.
            forced: tensors whose values `run` takes from its inputs. Nodes that read such a tensor read the given
                values; an output of that name is still what the model computed. So each layer can be run on the inputs
                that it has in another model.

        Raises:
            CannotForceError: the runtime cannot force tensors.
            JobError: the model cannot be loaded, or a tensor is not there.
        """
        ...


@runtime_checkable
class Deployable(Protocol):
    """A model that is written for TensorRT, and judged in float simulation of its Q/DQ."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def simulation(self) -> ir.Model:
        """Return the float32 model, with types and shapes, that computes what the deployed one computes."""
        ...

    def deployed(self) -> ir.Model:
        """Return the model to deploy, strongly typed."""
        ...
