"""Pairs the tensors of two models: by name, by metadata, or as the user says; never by guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from validate.backends import Backend, OnnxRuntimeBackend, PyTorchBackend, pair_with_onnx
from validate.exceptions import UsageError
from validate.layerwise.comparison import Side, Unpaired

__all__ = ["Pairs", "pair"]


@dataclass(frozen=True)
class Pairs:
    """Tensor of the reference -> tensor of the candidate, and every tensor that has no counterpart, with the reason."""

    pairs: dict[str, str]
    unpaired: list[Unpaired]


def pair(reference: Backend, candidate: Backend, mapping: Mapping[str, str] | None = None) -> Pairs:
    """Pair two models' tensors: PyTorch with ONNX by what the exporter wrote into the file, others by exact name.

    Args:
        reference: the model whose values are right.
        candidate: the model that is compared with it; at most one of the two is of PyTorch.
        mapping: tensor of the reference -> tensor of the candidate; it takes precedence over names and metadata.

    Raises:
        UsageError: the mapping names a tensor that is not there, or one tensor twice.
        JobError: the metadata of the file cannot be read.

    Examples:
        >>> import onnx_ir as ir
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {y = Relu(x)}'
        >>> model = OnnxRuntimeBackend(ir.from_onnx_text(text))
        >>> pair(model, model).pairs
        {'y': 'y'}
    """
    pairs, why = _pairs(reference, candidate)
    for ours, theirs in (mapping or {}).items():
        for side, name, model in (("reference", ours, reference), ("candidate", theirs, candidate)):
            if name not in model.tensors:
                raise UsageError(f"the mapping names tensor {name}, which the {side} does not have")
        pairs = {a: b for a, b in pairs.items() if a != ours and b != theirs} | {ours: theirs}
    if mapping and len(set(mapping.values())) != len(mapping):
        raise UsageError("the mapping names a tensor of the candidate twice")
    # A module's outputs have no names of their own: those of the file that was exported from it are to be covered.
    named = not isinstance(reference, PyTorchBackend)
    unpaired = _unpaired("reference", reference, set(pairs), why.get("reference", {}), covers=named)
    unpaired += _unpaired("candidate", candidate, set(pairs.values()), why.get("candidate", {}), covers=not named)
    return Pairs(pairs, unpaired)


def _pairs(reference: Backend, candidate: Backend) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the pairs that names or metadata give, and by side why a tensor has none where more is known."""
    if isinstance(reference, OnnxRuntimeBackend) and isinstance(candidate, PyTorchBackend):
        found = pair_with_onnx(reference.graph, candidate)
        pairs = {ours: theirs for ours, theirs in found.pairs.items() if ours in reference.tensors}
        return pairs, {"reference": found.unpaired_onnx, "candidate": found.unpaired_torch}
    if isinstance(reference, PyTorchBackend) and isinstance(candidate, OnnxRuntimeBackend):
        found = pair_with_onnx(candidate.graph, reference)
        pairs = {theirs: ours for ours, theirs in found.pairs.items() if ours in candidate.tensors}
        return pairs, {"candidate": found.unpaired_onnx, "reference": found.unpaired_torch}
    return {name: name for name in reference.tensors if name in candidate.tensors}, {}


def _unpaired(side: Side, model: Backend, paired: set[str], why: Mapping[str, str], covers: bool) -> list[Unpaired]:
    """Return what is not paired; `covers` says that the outputs of this model are those that have to be."""
    other = "candidate" if side == "reference" else "reference"
    return [
        Unpaired(
            tensor=name,
            node=node,
            side=side,
            reason=why.get(name, f"the {other} has none of this name"),
            is_output=covers and name in model.output_names,
        )
        for name, node in model.tensors.items()
        if name not in paired
    ]
