"""Export of a PyTorch module to an ONNX file."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from validate.exceptions import JobError, first_line
from validate.references import load_object

if TYPE_CHECKING:
    import torch

__all__ = ["export_module", "export_torch"]


def export_torch(reference: str, inputs: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Export a PyTorch module to ONNX, with a dynamic batch axis.

    Args:
        reference: ``module:name`` of a function without arguments that returns the nn.Module.
        inputs: a batch of each input, by name, in the order of ``forward()``; all axes but the first are fixed to it.
        path: of the ONNX file to write.

    Raises:
        JobError: PyTorch is not installed, or the exporter refuses the module.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise JobError("model.torch needs PyTorch; pip install -e '.[torch]'") from error
    module = load_object(reference, Path())()
    if not isinstance(module, torch.nn.Module):
        raise JobError(f"{reference} returns {type(module).__name__}, not a torch.nn.Module")
    export_module(module, inputs, path, reference)


def export_module(module: torch.nn.Module, inputs: Mapping[str, NDArray[Any]], path: Path, name: str) -> None:
    """Export a copy of a module, in eval mode and on the CPU, with a dynamic batch axis; see `export_torch`.

    Args:
        module: stays as it is.
        inputs: a batch by input name, in the order of ``forward()``; it fixes the other axes.
        path: of the ONNX file to write.
        name: by which the user knows the module.

    Raises:
        JobError: the exporter refuses it.
    """
    import torch

    tensors = tuple(torch.from_numpy(np.array(array)) for array in inputs.values())
    # A batch of one would be taken for a constant by torch.export.
    examples = tuple(torch.cat([t, t]) if len(t) == 1 else t for t in tensors)
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                copy.deepcopy(module).cpu().eval(),
                examples,
                dynamo=True,
                input_names=list(inputs),
                verbose=False,
                dynamic_shapes=tuple({0: batch} for _ in examples),
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error  # the exporter's own message only counts its steps
        raise JobError(f"PyTorch cannot export {name} to ONNX: {first_line(cause)}") from error
    assert program is not None  # dynamo=True returns a program
    program.save(str(path))
