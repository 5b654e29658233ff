"""The protocol that everything which runs a model follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Runnable"]


class Runnable(Protocol):
    """A loaded model. Whoever asks for outputs gets them by name, and can learn where they came from."""

    runtime: str
    """Library, version and arithmetic, e.g. ``onnxruntime 1.32.0 (float arithmetic)``."""
    device: str
    """The hardware that it runs on."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch and return every output by name. Raises JobError where the runtime refuses."""
        ...
