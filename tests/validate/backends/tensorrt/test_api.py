"""Every class, method, attribute and argument of TensorRT that our code names, held against the real library.

What runs on a GPU only is not run by most who change it. So its calls are read from our source: which object of
TensorRT's a variable holds is told by its name (OBJECTS), and what a call returns by pybind's signature of it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

import validate.backends.tensorrt as package
from validate.backends.tensorrt.engine import _TORCH_TYPES
from validate.backends.tensorrt.options import HardwareCompatibility

trt = pytest.importorskip("tensorrt_rtx", reason="holds our calls against TensorRT's own; pip install tensorrt-rtx")

FILES = {file.name: file for file in Path(package.__file__).parent.glob("*.py")}
OBJECTS: dict[str, dict[str, str]] = {
    "building.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "layer": "ILayer",
        "tensor": "ITensor",
        "cache": "ITimingCache",
        "serialized": "IHostMemory",
        "data": "IHostMemory",
    },
    "engine.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "_engine": "ICudaEngine",
        "context": "IExecutionContext",
        "_context": "IExecutionContext",
        "inspector": "EngineInspector",
        "location": "TensorLocation",
        "dtype": "DataType",
    },
    "listeners.py": {"location": "TensorLocation", "type": "DataType", "shape": "Dims"},
    "library.py": {"severity": "ILogger.Severity"},
    "probe.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "x": "ITensor",
        "y": "ITensor",
        "scale": "ITensor",
        "scales": "ITensor",
        "dequantize": "IDequantizeLayer",
        "weight": "ITensor",
        "half": "ITensor",
        "quantized": "ITensor",
        "left": "ITensor",
        "right": "ITensor",
        "product": "ITensor",
        "serialized": "IHostMemory",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
    },
}
"""By file, the names that hold an object of TensorRT's."""
OURS = {
    "building.py": {"profile": {"build", "build_engine", "_serialized"}, "engine": {"build_engine"}},
    "engine.py": {"dtype": {"_empty", "_kind"}},
}
"""Where one of these names is something of ours."""

USED = {
    "Builder": {
        "build_serialized_network",
        "create_builder_config",
        "create_network",
        "create_optimization_profile",
        "logger",
    },
    "DataType": {"name"},
    "EngineInspector": {"execution_context", "get_engine_information"},
    "IBuilderConfig": {
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "create_timing_cache",
        "hardware_compatibility_level",
        "num_compute_capabilities",
        "profiling_verbosity",
        "progress_monitor",
        "set_compute_capability",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    },
    "ICudaEngine": {
        "create_engine_inspector",
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "num_io_tensors",
    },
    "IDebugListener": {"process_debug_tensor"},
    "IExecutionContext": {
        "execute_async_v3",
        "get_tensor_shape",
        "profiler",
        "set_debug_listener",
        "set_input_shape",
        "set_tensor_address",
        "unfused_tensors_debug_state",
    },
    "ICastLayer": {"get_output"},
    "IConstantLayer": {"get_output"},
    "IDequantizeLayer": {"axis", "get_output"},
    "ILayer": {"get_output", "num_outputs"},
    "ILogger": {"log"},
    "IElementWiseLayer": {"get_output"},
    "IMatrixMultiplyLayer": {"get_output"},
    "INetworkDefinition": {
        "add_cast",
        "add_constant",
        "add_dequantize",
        "add_elementwise",
        "add_input",
        "add_matrix_multiply",
        "add_quantize",
        "get_input",
        "get_layer",
        "mark_output",
        "mark_unfused_tensors_as_debug_tensors",
        "num_inputs",
        "num_layers",
    },
    "IOptimizationProfile": {"set_shape"},
    "IProfiler": {"report_layer_time"},
    "IProgressMonitor": {"phase_finish", "phase_start", "step_complete"},
    "IQuantizeLayer": {"get_output"},
    "ITensor": {"name", "shape"},
    "ITimingCache": {"serialize"},
    "OnnxParser": {"get_error", "num_errors", "parse_from_file"},
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
}
"""What we use of each class. A call that is new is added here by whoever has read its documentation."""

STATIC = {
    "Builder",
    "BuilderFlag.TF32",
    "BuilderFlag.VERSION_COMPATIBLE",
    "ComputeCapability.__members__",
    "ElementWiseOperation.SUM",
    "HardwareCompatibilityLevel.__members__",
    "IDebugListener",
    "ILogger",
    "ILogger.Severity.ERROR",
    "IProfiler",
    "IProgressMonitor",
    "LayerInformationFormat.JSON",
    "MatrixOperation.NONE",
    "MemoryPoolType.WORKSPACE",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser",
    "ProfilingVerbosity.DETAILED",
    "Runtime",
    "TensorIOMode.INPUT",
    "TensorIOMode.OUTPUT",
    "TensorLocation.HOST",
    "__name__",
    "__version__",
    "float16",
    "float32",
    "int8",
}
"""What we use of the module."""


@dataclass(frozen=True)
class Signature:
    names: tuple[str, ...]
    required: int
    returns: str | None

    def accepts(self, positional: int, keywords: set[str]) -> bool:
        given = positional + len(keywords)
        return keywords <= set(self.names[positional:]) and self.required <= given <= len(self.names)


def split(parameters: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(parameters):
        depth += (character in "([{<") - (character in ")]}>" and parameters[i - 1 : i + 1] != "->")
        if character == "," and not depth:
            parts.append(parameters[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, parameters[start:]] if part.strip()]


def signatures(owner: str, member: str) -> list[Signature]:
    """Read what pybind says of a method: one signature, or several of an overloaded one; self is left out."""
    method = getattr(resolve(owner), member)
    found = []
    for line in (method.__doc__ or "").splitlines():
        match = re.fullmatch(rf"(?:\d+\. )?{member}\((self: .*)\) -> (.*)", line.strip())
        if match:
            parameters = split(match[1])[1:]
            names = tuple(re.split(r"[:= ]", parameter, maxsplit=1)[0] for parameter in parameters)
            required = sum("=" not in parameter for parameter in parameters)
            module, _, returns = match[2].rpartition(".")
            found.append(Signature(names, required, returns if module and hasattr(trt, returns) else None))
    assert found, f"{owner}.{member} has no signature: {method.__doc__}"
    return found


def resolve(path: str) -> Any:
    found: Any = trt
    for part in path.split("."):
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class Module:
    """An expression that is something of the module, e.g. ``trt.ILogger.Severity``."""

    path: str = ""


@dataclass(frozen=True)
class Instance:
    owner: str


@dataclass(frozen=True)
class Member:
    owner: str
    name: str


class Reader:
    """Reads one file and keeps what it uses of TensorRT."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.tree = ast.parse(source)
        self.objects = OBJECTS.get(name, {})
        self.members: dict[str, set[str]] = defaultdict(set)
        self.static: set[str] = set()
        self.wrong: list[str] = []
        self._function = ""
        self._visit(self.tree, outermost=True)

    def _visit(self, node: ast.AST, outermost: bool = False) -> None:
        before = self._function
        if isinstance(node, ast.FunctionDef):
            self._function = node.name
            self._arguments_are_known(node)
        elif isinstance(node, ast.ClassDef):
            self._overrides(node)
        elif isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.Assign):
            self._assignment(node)
        for child in ast.iter_child_nodes(node):
            self._visit(child)
        self._function = before

    def infer(self, node: ast.expr) -> Module | Instance | Member | None:
        match node:
            case ast.Name(id="trt") | ast.Attribute(attr="trt" | "_trt"):
                return Module()
            case ast.Name(id=name) | ast.Attribute(attr=name) if self._holds(name) and self._is_plain(node):
                return Instance(self.objects[name])
            case ast.Attribute(value=value, attr=attribute):
                base = self.infer(value)
                if isinstance(base, Module):
                    return Module(f"{base.path}.{attribute}".lstrip("."))
                return Member(base.owner, attribute) if isinstance(base, Instance) else None
            case ast.Call(func=function):
                called = self.infer(function)
                if isinstance(called, Module):
                    return Instance(called.path)
                if isinstance(called, Member):
                    returns = {s.returns for s in signatures(called.owner, called.name)}
                    name = returns.pop()
                    return Instance(name) if name and not returns else None
        return None

    def _holds(self, name: str) -> bool:
        return name in self.objects and self._function not in OURS.get(self.name, {}).get(name, set())

    def _is_plain(self, node: ast.expr) -> bool:
        """Tell ``context`` and ``self._context`` from ``layer.name``, where ``name`` may be in OBJECTS too."""
        return isinstance(node, ast.Name) or (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        )

    def _attribute(self, node: ast.Attribute) -> None:
        found = self.infer(node)
        if isinstance(found, Member):
            self.members[found.owner].add(found.name)
            member = inspect.getattr_static(resolve(found.owner), found.name, None)
            if member is None:
                self._complain(node, f"{found.owner} has no {found.name}")
            elif isinstance(node.ctx, ast.Store) and not (isinstance(member, property) and member.fset):
                self._complain(node, f"{found.owner}.{found.name} cannot be set")
        if isinstance(found, Module) and found.path:
            self.static.add(found.path)
            try:
                resolve(found.path)
            except AttributeError as error:
                self._complain(node, str(error))

    def _call(self, node: ast.Call) -> None:
        called = self.infer(node.func)
        if isinstance(called, Member) and hasattr(resolve(called.owner), called.name):
            owner, member = called.owner, called.name
        elif isinstance(called, Module):
            owner, member = called.path, "__init__"
        else:
            return
        keywords = {keyword.arg or "**" for keyword in node.keywords}
        # `*shapes[name]` is a `Shapes`, three of them
        positional = sum(3 if isinstance(argument, ast.Starred) else 1 for argument in node.args)
        if not any(s.accepts(positional, keywords) for s in signatures(owner, member)):
            self._complain(
                node, f"{owner}.{member} does not take {positional} arguments and {keywords or 'no keywords'}"
            )

    def _assignment(self, node: ast.Assign) -> None:
        """A variable that gets an object of TensorRT's has the name of one."""
        found = self.infer(node.value)
        target = node.targets[0]
        if not isinstance(found, Instance) or not isinstance(target, ast.Name | ast.Attribute):
            return
        if isinstance(target, ast.Attribute) and isinstance(self.infer(target.value), Instance):
            return  # a property, which _attribute looks at
        name = target.id if isinstance(target, ast.Name) else target.attr
        if name not in OURS.get(self.name, {}) and self.objects.get(name) != found.owner:
            self._complain(node, f"{name} gets a {found.owner} and is not in OBJECTS as that")

    def _arguments_are_known(self, node: ast.FunctionDef) -> None:
        for argument in node.args.args:
            is_any = isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Any"
            if is_any and argument.arg != "trt" and argument.arg not in self.objects:
                self._complain(node, f"argument {argument.arg} of {node.name} may be anything; put it in OBJECTS")

    def _overrides(self, node: ast.ClassDef) -> None:
        bases = [self.infer(base) for base in node.bases]
        owners = [base.path for base in bases if isinstance(base, Module) and base.path]
        for owner in owners:
            for method in (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")):
                self.members[owner].add(method.name)
                if not hasattr(resolve(owner), method.name):
                    self._complain(node, f"{owner} never calls {method.name}")
                    continue
                ours = len(method.args.args) - 1
                if all(len(s.names) != ours for s in signatures(owner, method.name)):
                    self._complain(node, f"{owner}.{method.name} is called with another number of arguments")

    def _complain(self, node: ast.AST, message: str) -> None:
        self.wrong.append(f"{self.name}:{getattr(node, 'lineno', '?')}: {message}")


@pytest.fixture(scope="module")
def readers() -> list[Reader]:
    return [Reader(name, file.read_text(encoding="utf-8")) for name, file in FILES.items()]


def test_nothing_is_used_that_tensorrt_has_not(readers: list[Reader]) -> None:
    assert [complaint for reader in readers for complaint in reader.wrong] == []


def test_the_table_of_members_is_whole(readers: list[Reader]) -> None:
    used: dict[str, set[str]] = defaultdict(set)
    for reader in readers:
        for owner, members in reader.members.items():
            used[owner] |= members
    assert dict(used) == USED


def test_the_table_of_the_module_is_whole(readers: list[Reader]) -> None:
    used = set().union(*(reader.static for reader in readers))
    leaves = {path for path in used if not any(other.startswith(path + ".") for other in used)}
    assert leaves | {"ILogger"} == STATIC


def test_names_that_are_looked_up_at_run_time() -> None:
    assert {level.upper() for level in get_args(HardwareCompatibility)} == set(
        trt.HardwareCompatibilityLevel.__members__
    )
    assert set(trt.DataType.__members__) - set(_TORCH_TYPES) == {"INT4", "FP4", "E8M0"}, "PyTorch has no such types"
    assert set(_TORCH_TYPES) <= set(trt.DataType.__members__)


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("engine.py", "context.execute_async_v4(1)", "IExecutionContext has no execute_async_v4"),
        ("engine.py", "context.execute_async_v3()", "does not take 0 arguments"),
        ("engine.py", "context.execute_async_v3(1, 2)", "does not take 2 arguments"),
        ("engine.py", "context.execute_async_v3(stream=1)", "keywords|{'stream'}"),
        ("engine.py", "engine.num_io_tensors = 3", "cannot be set"),
        ("engine.py", "self._engine.create_execution_context().execute(1)", "IExecutionContext has no execute"),
        ("engine.py", "other = engine.create_execution_context()", "other gets a IExecutionContext"),
        ("engine.py", "trt.DataType.HALV", "HALV"),
        ("engine.py", "library.trt.Runtime()", "does not take 0 arguments"),
        ("engine.py", "def f(thing: Any): ...", "put it in OBJECTS"),
        ("building.py", "builder.create_network(1).get_layer(0).get_output(0).nom", "ITensor has no nom"),
        ("building.py", "config.set_flag(trt.BuilderFlag.INT8)", "INT8"),
        ("listeners.py", "class P(trt.IProfiler):\n def report(self, a, b): ...", "never calls report"),
        (
            "listeners.py",
            "class P(trt.IProfiler):\n def report_layer_time(self, a): ...",
            "another number of arguments",
        ),
    ],
)
def test_a_mistake_is_seen(file: str, source: str, complaint: str) -> None:
    wrong = Reader(file, source).wrong
    assert wrong
    assert re.search(complaint, wrong[0])


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("engine.py", "context.execute_async_v3(stream_handle=1)"),
        ("engine.py", "self._context.set_input_shape(name, (1, 2))"),
        ("building.py", "network = builder.create_network(flags=1)"),
        ("building.py", "profile.set_shape(name, *shapes[name])"),
    ],
)
def test_what_is_right_is_not_complained_about(file: str, source: str) -> None:
    assert Reader(file, source).wrong == []
