"""Pairs tensors of an ONNX file with PyTorch modules, by the names that torch.onnx.export left in the file.

Two exporters, two traces of where a node comes from:

- ``torch.onnx.export(dynamo=True)`` writes into each node's metadata the modules that were being called and the fx
  node (``pkg.torch.onnx.name_scopes``), and the definition of that fx node (``pkg.torch.onnx.fx_node``);
- the TorchScript exporter (``dynamo=False``) names nodes by the modules: ``/layer1/layer1.0/conv1/Conv``.

**A module's output** is the one tensor of its shape that is computed inside the module and read outside of it. In a
dynamo file the reader's fx definition must name it too: a reader that the optimizer has moved to another tensor says so
there. Where a BatchNorm has become part of the layer before it, that layer's tensor is the BatchNorm's output.

**A step of an exported program** is the fx node of that name if it has the same definition, operands included, and so
has all that it follows from. fx names depend on how a model was exported, so that equal names alone mean nothing:
`export_again` makes the program in the way in which the file was made. Of the nodes that a step became, the exporter
names the tensor of the last one by the step; where somebody has renamed it, it is the one that other steps read.

Nothing is paired by position or by value, and what is not paired has a reason.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from validate.backends.tracing import ModuleTrace, Shape
from validate.exceptions import JobError

if TYPE_CHECKING:
    from validate.backends.pytorch import PyTorchBackend

__all__ = ["Pairing", "pair_with_onnx"]


_SCOPES = "pkg.torch.onnx.name_scopes"
_DEFINITION = "pkg.torch.onnx.fx_node"
_REWRITTEN = "pkg.onnxscript.rewriter.rule_name"
_PASSES_ON = re.compile(r"(clone|dropout|alias|detach|contiguous)(_\d+)?")
"""fx nodes that give what they are given, which the optimizer takes out: a dropout at inference, above all."""


@dataclass(frozen=True)
class Pairing:
    """Tensors of an ONNX file paired with those of a PyTorch model.

    Attributes:
        pairs: tensor of the ONNX file -> tensor of the backend, in the file's order; one to one.
        unpaired_onnx: every other tensor that the file computes from its inputs, with the reason.
        unpaired_torch: every other tensor of the backend, with the reason.
    """

    pairs: dict[str, str]
    unpaired_onnx: dict[str, str]
    unpaired_torch: dict[str, str]


def pair_with_onnx(model: ir.Model, backend: PyTorchBackend) -> Pairing:
    """Pair the tensors of a file that torch.onnx.export wrote with those of the model that it was made from.

    Ranks are compared where they are known, and sizes where both are and the inputs have the same.

    Raises:
        JobError: the metadata of the file cannot be read.
    """
    file = _File(model.graph, _origins(model.graph, backend.trace), backend.model.input_shapes)
    matches = _by_module(file, backend, backend.trace) if backend.trace else _by_step(file, backend)
    names = {str(value.name): name for name, value in matches.found.items()}
    return Pairing(
        {name: names[name] for name in file.activations if name in names},
        {name: file.reason_unpaired(value, matches) for name, value in file.activations.items() if name not in names},
        {name: matches.reason_unpaired(name) for name in backend.tensors if name not in matches.found},
    )


@dataclass(frozen=True)
class _Origin:
    """Where a node comes from: modules, outermost first, or else an fx node; in a dynamo file, its definition too."""

    regions: tuple[str, ...]
    step: str | None = None
    definition: str | None = None


@dataclass
class _Matches:
    """By tensor of the backend: the file's tensor, another of its own that is the same one, or what is wrong."""

    found: dict[str, ir.Value] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def reason_unpaired(self, name: str) -> str:
        if name in self.same:
            return f"the same tensor as {self.same[name]}"
        return self.problems.get(name, "no node of the file was exported from it")


def _origins(graph: ir.Graph, trace: ModuleTrace | None) -> dict[ir.Node, _Origin]:
    """Return where nodes come from, of those that say it: from modules if they were traced, else from fx nodes."""
    scopes = _torchscript_scopes(trace) if trace else {}
    origins = {}
    for node in graph.all_nodes():
        name = node.name or ""
        if text := node.metadata_props.get(_SCOPES):
            try:
                *modules, step = ast.literal_eval(text)
            except (ValueError, SyntaxError) as error:
                raise JobError(f"node {name} has {_SCOPES} that is not a list of names: {text}") from error
            definition = _definition(node.metadata_props.get(_DEFINITION, ""))
            origins[node] = _Origin(tuple(modules) if trace else (step,), step, definition)
        elif trace and name.startswith("/"):
            inside = [scopes[name[:i]] for i, letter in enumerate(name) if letter == "/" and name[:i] in scopes]
            origins[node] = _Origin(("", *inside))
    return origins


def _definition(text: str) -> str:
    """Return the operation and the operands of a formatted fx node, without its name and number of readers."""
    return text.partition(" = ")[2]


def _torchscript_scopes(trace: ModuleTrace) -> dict[str, str]:
    """Return the module by the scope that the TorchScript exporter calls it.

    A scope is made of the names of the modules that are being called, each from its last part that is no number on.
    What is called again gets a number (``relu_1``), so a scope that may be that is left out.
    Source: torch/onnx/_internal/torchscript_exporter/utils.py, _setup_trace_module_map.
    """
    short = {path: (re.search(r"[^.]+(\.\d+)*$", path) or [path])[0] for path in trace.parents}
    scopes = {path: "".join(f"/{short[p]}" for p in (*parents, path)) for path, parents in trace.parents.items()}
    counts = Counter(scopes.values())
    repeated = {scope for path, scope in scopes.items() if counts[scope] > 1 or path in trace.left_out}
    doubtful = {s for s in counts if counts[s] > 1 or ((bare := re.sub(r"_\d+$", "", s)) != s and bare in repeated)}
    return {s: p for p, s in scopes.items() if not any(s == d or s.startswith(f"{d}/") for d in doubtful)}


class _File:
    """The tensors of a file, and the regions of it, each exported from one module or fx node.

    Nodes without an origin (Q/DQ, say, that came in later) are looked through.
    """

    def __init__(self, graph: ir.Graph, origins: Mapping[ir.Node, _Origin], inputs: Mapping[str, Shape]) -> None:
        self.origins = origins
        self.members: dict[str, list[ir.Node]] = defaultdict(list)
        self.activations: dict[str, ir.Value] = {}
        constants = set(graph.initializers.values())
        for node in graph:
            if all(value is None or value in constants for value in node.inputs):
                constants.update(node.outputs)
                continue
            self.activations |= {value.name: value for value in node.outputs if value.name}
            for region in origins[node].regions if node in origins else ():
                self.members[region].append(node)
        known = [(value.shape, inputs.get(str(value.name))) for value in graph.inputs]
        self._same_inputs = all(_sizes_agree(theirs, ours) for theirs, ours in known if theirs and ours)

    def leaving(self, region: str, shape: Shape) -> list[ir.Value]:
        """Return the tensors of that shape that are computed in the region and read outside, or the model's outputs."""
        values = [value for node in self.members.get(region, ()) for value in node.outputs]
        return [value for value in values if self.fits(value, shape) and self._is_read_outside(value, region)]

    def fits(self, value: ir.Value, shape: Shape) -> bool:
        """Return whether the shapes of the file and of PyTorch may be of one tensor."""
        if value.shape is None:
            return True
        return len(value.shape) == len(shape) and (not self._same_inputs or _sizes_agree(value.shape, shape))

    def reason_unpaired(self, value: ir.Value, matches: _Matches) -> str:
        """Return why a tensor is not paired."""
        producer = value.producer()
        if producer is None or producer not in self.origins:
            return "torch.onnx.export left no trace on its node"
        region = self.origins[producer].regions[-1]
        problem = f" ({matches.problems[region]})" if region in matches.problems else ", not its output"
        return f"a step inside {region or 'the model'}{problem}"

    def _is_read_outside(self, value: ir.Value, region: str) -> bool:
        producer = value.producer()
        assert producer is not None  # a member of the region
        names = {value.name, self.origins[producer].step}
        for reader in self._readers(value):
            if reader is None or (
                region not in self.origins[reader].regions and names & (self._operands(reader) or names)
            ):
                return True
        return False

    def _operands(self, node: ir.Node) -> set[str]:
        """Return what the node's fx definition names; nothing where it does not tell what the node reads."""
        definition = self.origins[node].definition or ""
        if "batch_norm" in definition and node.op_type != "BatchNormalization":
            return set()  # folded into the layer before, which is all that the definition names
        operands = set(re.findall(r"%(\w+)", definition))
        gone = {name for name in operands if _PASSES_ON.fullmatch(name) and name not in self.activations}
        return operands if _REWRITTEN in node.metadata_props or not gone else set()

    def _readers(self, value: ir.Value) -> Iterator[ir.Node | None]:
        """Yield the nodes with an origin that read the value, through those without; None for the model's caller."""
        seen, todo = set(), [value]
        while todo:
            if (current := todo.pop()).is_graph_output():
                yield None
            for node, _ in current.uses():
                if node in self.origins:
                    yield node
                elif node not in seen:
                    seen.add(node)
                    todo.extend(node.outputs)


def _sizes_agree(theirs: ir.Shape, ours: Shape) -> bool:
    return all(a == b for a, b in zip(theirs, ours, strict=False) if isinstance(a, int) and b is not None)


def _by_module(file: _File, backend: PyTorchBackend, trace: ModuleTrace) -> _Matches:
    own = backend.output_names
    matches = _Matches(problems=dict(backend.left_out))
    claims: dict[str, list[str]] = defaultdict(list)  # tensor of the file -> what claims it, innermost module first
    for name, shape in backend.shapes.items():
        region = "" if name in own else name
        values = file.leaving(region, shape)
        if name in own and len(own) > 1:
            values = [value for value in values if value.name == name]
        if len(values) == 1:
            claims[str(values[0].name)].append(name)
        elif file.members.get(region):
            matches.problems[name] = _ambiguity(values)
    for norm, maker in trace.follows.items():
        if maker not in file.members:
            matches.problems[maker] = f"folded into {norm}"
    for tensor, names in claims.items():
        norms = [n for n, maker in trace.follows.items() if maker == names[0] and n not in file.members]
        rest = [n for n in names if n in own or not norms or n in trace.parents[norms[0]]]
        matches.problems |= {name: f"folded into {norms[0]}" for name in names if name not in rest}
        equal = norms + rest
        chosen = next((name for name in equal if name in own), equal[0])
        matches.found[chosen] = file.activations[tensor]
        matches.same |= {name: chosen for name in equal if name != chosen}
    return matches


def _by_step(file: _File, backend: PyTorchBackend) -> _Matches:
    assert backend.program is not None
    nodes = {node.name: node for node in backend.program.graph.nodes}
    outputs = dict(zip(backend.model.outputs, backend.output_names, strict=True))
    matches = _Matches(problems=dict(backend.left_out))
    others: set[str] = set()  # steps of another definition than the file's, and all that follows from them
    for name, node in nodes.items():
        defined = {file.origins[member].definition for member in file.members.get(name, ())}
        if defined - {_definition(str(node.format_node()))} or any(n.name in others for n in node.all_input_nodes):
            others.add(name)
    for step, members in file.members.items():
        node = nodes.get(step)
        if node is None or step in others:
            matches.problems[step] = "something else in the program, which was exported in another way: export_again"
            continue
        parts = [user.name for user in node.users if user.target is operator.getitem]
        for name in parts or [step]:
            if (shape := backend.model.shapes.get(name)) is None:
                continue  # no tensor: the size of an axis
            named = [v for node in members for v in node.outputs if v.name == name and file.fits(v, shape)]
            values = named or (file.leaving(step, shape) if len(parts) < 2 else [])
            chosen = outputs.get(name, name)
            if len(values) == 1:
                matches.found[chosen] = values[0]
                matches.same |= {name: chosen} if name != chosen else {}
            else:
                matches.problems[step] = matches.problems[chosen] = _ambiguity(values)
    return matches


def _ambiguity(values: Sequence[ir.Value]) -> str:
    if values:
        return f"{len(values)} tensors of its shape are read outside of it: {', '.join(str(v.name) for v in values)}"
    return "no tensor of its shape is read outside of it by what reads it in PyTorch, so the optimizer has changed it"
