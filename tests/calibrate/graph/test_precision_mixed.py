"""Plans of all precisions at once: what is counted is written, and TensorRT builds it. Nodes too wide for fp16."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from calibrate.graph.application import apply, count_nodes
from calibrate.graph.checker import check
from calibrate.graph.placement import place
from calibrate.graph.precision import float_precision
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan
from validate.backends.onnx_files import serialize, write_onnx
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.backends.tensorrt import build
from validate.number_formats import FloatPrecision, Precision

Array = NDArray[Any]
Prepared = Callable[..., ir.Model]
MakePlan = Callable[..., QuantizationPlan]
Normal = Callable[..., NDArray[np.float32]]

PRECISION = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
PAD = "<pads = [1, 1, 1, 1]>"

CNN = f"""g (float[N, 3, 8, 8] x) => (float[N, 5] y) {{
    [stem] c1 = Conv {PAD} (x, stem_w, stem_b)
    [stem_relu] r1 = Relu(c1)
    [block] c2 = Conv {PAD} (r1, block_w)
    [add] s = Add(c2, r1)
    [relu] r2 = Relu(s)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
    [wide] c3 = Conv {PAD} (p, wide_w)
    [short] c4 = Conv (p, short_w)
    [join] j = Add(c3, c4)
    [swish] h = HardSwish(j)
    [up] u = ConvTranspose (h, up_w)
    [mean] m = GlobalAveragePool(u)
    [flat] f = Flatten(m)
    [head] y = Gemm <transB = 1> (f, head_w, head_b)
}}"""
CNN_SHAPES = {
    "stem_w": (8, 3, 3, 3),
    "stem_b": (8,),
    "block_w": (8, 8, 3, 3),
    "wide_w": (16, 8, 3, 3),
    "short_w": (16, 8, 1, 1),
    "up_w": (16, 8, 2, 2),
    "head_w": (5, 8),
    "head_b": (5,),
}

ENCODER = """g (int64[N, 6] tokens, float[N, 1, 6] visible) => (float[N, 6, 8] y) {
    [embed] e = Gather(table, tokens)
    [norm] n = LayerNormalization(e, gain, bias)
    [query] q = MatMul(n, wq)
    [key] k = MatMul(n, wk)
    [value] v = MatMul(n, wv)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)
    [scores] a = MatMul(q, t)
    [hidden] h = Sub(one, visible)
    [mask] l = Mul(h, lowest)
    [masked] z = Add(a, l)
    [softmax] p = Softmax(z)
    [mix] o = MatMul(p, v)
    [out] w = MatMul(o, wo)
    [residual] r = Add(w, e)
    [norm2] n2 = LayerNormalization(r, gain, bias)
    [up] u = MatMul(n2, w1)
    [gelu] g = Erf(u)
    [down] d = MatMul(g, w2)
    [residual2] y = Add(d, r)
}"""
ENCODER_SHAPES = {
    "table": (20, 8),
    "gain": (8,),
    "bias": (8,),
    "wq": (8, 8),
    "wk": (8, 8),
    "wv": (8, 8),
    "wo": (8, 8),
    "w1": (8, 16),
    "w2": (16, 8),
}


@pytest.fixture(params=["cnn", "encoder"])
def model(request: pytest.FixtureRequest, prepared: Prepared, normal: Normal) -> ir.Model:
    if request.param == "cnn":
        return prepared(CNN, **{name: normal(*shape) for name, shape in CNN_SHAPES.items()})
    constants = {"one": np.float32(1), "lowest": np.finfo(np.float32).min}
    return prepared(ENCODER, **{name: normal(*shape) for name, shape in ENCODER_SHAPES.items()}, **constants)


def random_plan(model: ir.Model, make_plan: MakePlan, seed: int) -> QuantizationPlan:
    """Return a plan with layers of all precisions, and some wide nodes."""
    rng, placement = np.random.default_rng(seed), place(model)
    layers = {layer.node: str(rng.choice(get_args(Precision))) for layer in placement.layers}
    plan = make_plan(placement, layers=layers, float_precision=get_args(FloatPrecision)[seed % 3])
    wide = frozenset(str(node.name) for node in model.graph if rng.random() < 0.2)
    return plan.model_copy(update={"wide_nodes": wide})


class File:
    """A file that was written, as ONNX's own strict inference types it; it knows nothing of plans."""

    def __init__(self, deployed: ir.Model, original: ir.Model) -> None:
        proto = onnx.load_from_string(serialize(deployed))
        onnx.checker.check_model(proto, full_check=True)
        graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
        self.types = {i.name: i.data_type for i in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.types[value.name] = value.type.tensor_type.elem_type
        self.nodes = list(graph.node)
        self.made_by = {output: node for node in graph.node for output in node.output}
        self.original = [node for node in graph.node if node.name in {n.name for n in original.graph}]

    def computed_in(self, node: onnx.NodeProto) -> str:
        """Return int8 where both operands are dequantized, else the one float type of all tensors."""
        operands = [self.made_by[name].op_type if name in self.made_by else "" for name in node.input[:2]]
        if node.op_type != "Add" and operands == ["DequantizeLinear", "DequantizeLinear"]:
            return "int8"
        tensors = [name for name in (*node.input, *node.output) if name]
        found = {PRECISION[self.types[name]] for name in tensors if self.types[name] in PRECISION}
        assert len(found) <= 1 or node.op_type == "Cast", f"{node.name} has {found}"
        return found.pop() if found else "fp32"

    def require_casts_only_where_the_type_changes(self) -> None:
        inserted = [node for node in self.nodes if node.op_type == "Cast" and node not in self.original]
        for cast in inserted:
            source, result = self.types[cast.input[0]], self.types[cast.output[0]]
            assert source != result
            assert self.made_by.get(cast.input[0]) not in inserted, "two casts in a row"
        conversions = Counter((cast.input[0], self.types[cast.output[0]]) for cast in inserted)
        assert set(conversions.values()) <= {1}, "cast twice"


@pytest.mark.parametrize("seed", range(12))
def test_counted_nodes_are_those_of_the_written_file(model: ir.Model, make_plan: MakePlan, seed: int) -> None:
    plan = random_plan(model, make_plan, seed)
    deployed = apply(plan, model, place(model))
    assert check(deployed) == []
    file = File(deployed, model)
    counted = Counter(file.computed_in(node) for node in file.original)
    assert count_nodes(plan, model).model_dump() == dict.fromkeys(get_args(Precision), 0) | counted
    assert sum(counted.values()) == len(model.graph)
    file.require_casts_only_where_the_type_changes()
    by_name = {node.name: file.computed_in(node) for node in file.original}
    assert not [name for name in plan.wide_nodes if by_name[name] == "fp16"]


def test_shape_arithmetic_is_fp32_and_a_shape_of_fp16_is_fp16(
    prepared: Prepared, normal: Normal, make_plan: MakePlan
) -> None:
    """Nodes without a float tensor, and those with one that give none."""
    graph = """g (float[N, 4] x, int64[K] rows) => (float[K, 4] y, int64[2] s, int64[1] k) {
        [one] a = MatMul(x, w)
        [gather] y = Gather(a, rows)
        [shape] s = Shape(y)
        [count] k = Shape(rows)
    }"""
    model = prepared(graph, w=normal(4, 4))
    for precision in ("fp16", "bf16", "fp32"):
        plan = make_plan(place(model), float_precision=precision)
        file = File(apply(plan, model, place(model)), model)
        counted = Counter(file.computed_in(node) for node in file.original)
        assert counted == ({"int8": 1, "fp32": 3} if precision == "fp32" else {"int8": 1, precision: 2, "fp32": 1})
        assert count_nodes(plan, model).model_dump() == dict.fromkeys(get_args(Precision), 0) | counted


@pytest.mark.parametrize("seed", range(4))
def test_simulation_runs_and_is_near_the_float_model(
    model: ir.Model, make_plan: MakePlan, normal: Normal, seed: int
) -> None:
    """Whatever the mixture; the error of 8-bit scales at their tensors, and of 8 bits of mantissa."""
    plan = random_plan(model, make_plan, seed)
    placement = place(model)
    inputs = {"x": normal(2, 3, 8, 8), "tokens": np.arange(12).reshape(2, 6), "visible": np.ones((2, 1, 6), np.float32)}
    ranges = OnnxRuntimeModel(serialize(_with_outputs(model, placement.tensors()))).run(inputs)
    scales = {name: max(float(np.abs(ranges[name]).max()) / 127, 1e-6) for name in placement.tensors()}
    plan = plan.model_copy(update={"scales": scales})
    expected = OnnxRuntimeModel(serialize(model)).run(inputs)["y"]
    y = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True))).run(inputs)["y"]
    assert 0 < np.linalg.norm(y - expected) < 0.1 * np.linalg.norm(expected)


def _with_outputs(model: ir.Model, names: tuple[str, ...]) -> ir.Model:
    result = model.clone()
    values = {v.name: v for v in (*result.graph.inputs, *(v for n in result.graph for v in n.outputs))}
    result.graph.outputs.extend(values[name] for name in names if not values[name].is_graph_output())
    return result


@pytest.mark.parametrize("seed", range(6))
def test_tensorrt_builds_it(model: ir.Model, make_plan: MakePlan, tmp_path: Path, seed: int) -> None:
    pytest.importorskip("tensorrt_rtx", reason="asks TensorRT's own builder; pip install tensorrt-rtx")
    write_onnx(apply(random_plan(model, make_plan, seed), model, place(model)), tmp_path / "model.onnx")
    shapes = {"x": (3, 8, 8), "tokens": (6,), "visible": (1, 6)}
    profile = {name: ((1, *shape), (2, *shape), (4, *shape)) for name, shape in shapes.items()}
    built = build(tmp_path / "model.onnx", profile, "8.9")
    assert built.ok, built.message


@pytest.mark.parametrize("quantized", [False, True], ids=["bf16", "int8-and-bf16"])
def test_tensorrt_builds_all_in_bf16(model: ir.Model, make_plan: MakePlan, tmp_path: Path, quantized: bool) -> None:
    pytest.importorskip("tensorrt_rtx", reason="asks TensorRT's own builder; pip install tensorrt-rtx")
    placement = place(model)
    layers = {layer.node: "int8" if quantized else "bf16" for layer in placement.layers}
    plan = make_plan(placement, layers=layers, float_precision="bf16")
    nodes = count_nodes(plan, model)
    assert nodes.bf16 > nodes.fp32
    assert nodes.fp16 == 0
    assert (nodes.int8 > 0) == quantized
    write_onnx(apply(plan, model, placement), tmp_path / "model.onnx")
    shapes = {"x": (3, 8, 8), "tokens": (6,), "visible": (1, 6)}
    profile = {name: ((1, *shape), (2, *shape), (4, *shape)) for name, shape in shapes.items()}
    built = build(tmp_path / "model.onnx", profile, "8.9")
    assert built.ok, built.message


@pytest.mark.parametrize(
    ("op", "weights"),
    [
        ("ConvTranspose (x, w)", {"w": (4, 4, 3, 3)}),
        ("HardSwish(x)", {}),
        ("Mish(x)", {}),
        ("LpNormalization(x)", {}),
        ("MeanVarianceNormalization <axes = [0, 2, 3]> (x)", {}),
    ],
    ids=lambda value: value.partition("(")[0].strip() if isinstance(value, str) else "",
)
def test_tensorrt_builds_a_bf16_plan_of_what_it_refuses_in_bf16(
    prepared: Prepared, normal: Normal, make_plan: MakePlan, tmp_path: Path, op: str, weights: dict[str, Any]
) -> None:
    """Because those nodes stay fp32."""
    pytest.importorskip("tensorrt_rtx", reason="asks TensorRT's own builder; pip install tensorrt-rtx")
    arrays = {name: normal(*shape) for name, shape in weights.items()}
    model = prepared(f"g (float[1, 4, 8, 8] x) => (float[1, 4, h, w] y) {{ [node] n = {op} y = Relu(n) }}", **arrays)
    placement = place(model)
    plan = make_plan(placement, layers={layer.node: "bf16" for layer in placement.layers}, float_precision="bf16")
    assert count_nodes(plan, model).bf16 == 1
    write_onnx(apply(plan, model, placement), tmp_path / "model.onnx")
    built = build(tmp_path / "model.onnx", {}, "8.9")
    assert built.ok, built.message


OVERFLOW = """g (float[N, 4] x) => (float[N, 4] y) {
    [before] b = Relu(x)
    [large] a = MatMul(b, thousands)
    [relu] r = Relu(a)
    [small] c = MatMul(r, thousandths)
    [after] y = Neg(c)
}"""
WIDE = frozenset({"large", "relu", "small"})


@pytest.fixture
def overflowing(prepared: Prepared) -> ir.Model:
    """A model that gives about its input, by way of 1000 times as much."""
    eye = np.eye(4, dtype=np.float32)
    return prepared(OVERFLOW, thousands=1000 * eye, thousandths=eye / 1000)


class TestWideNodes:
    @pytest.mark.parametrize("layers", ["fp16", "int8"])
    def test_they_are_fp32_where_they_would_be_fp16(
        self, overflowing: ir.Model, make_plan: MakePlan, layers: str
    ) -> None:
        """Whether it is the plan's float type or the layer's own; an int8 layer stays int8 with an fp32 float side."""
        placement = place(overflowing)
        for rest in ("fp16", "fp32"):
            if (rest, layers) == ("fp32", "int8"):
                continue  # nothing is fp16 there
            plan = make_plan(placement, layers={"large": layers, "small": layers}, float_precision=rest)
            wide = plan.model_copy(update={"wide_nodes": WIDE})
            file = File(apply(wide, overflowing, placement), overflowing)
            by_name = {node.name: file.computed_in(node) for node in file.original}
            int8 = dict.fromkeys(("large", "small"), "int8" if layers == "int8" else "fp32")
            assert by_name == {"before": rest, "relu": "fp32", "after": rest} | int8
            outputs = {node.name: PRECISION[file.types[node.output[0]]] for node in file.original}
            assert outputs == {"before": rest, "large": "fp32", "relu": "fp32", "small": "fp32", "after": rest}
            file.require_casts_only_where_the_type_changes()
            narrow = File(apply(plan, overflowing, placement), overflowing)
            assert "fp16" in {PRECISION[narrow.types[node.output[0]]] for node in narrow.original if node.name in WIDE}

    def test_a_wide_tensor_is_quantized_in_fp32(self, overflowing: ir.Model, make_plan: MakePlan) -> None:
        """It has to be fp32 until its 8 bits are taken, and no cast stands between."""
        placement = place(overflowing)
        plan = make_plan(placement, float_precision="fp16").model_copy(update={"wide_nodes": WIDE})
        file = File(apply(plan, overflowing, placement), overflowing)
        nodes = {node.name: node for node in file.nodes}
        quantize = nodes["r/QuantizeLinear/fp32"]
        assert quantize.input[0] == nodes["relu"].output[0]
        assert PRECISION[file.types[quantize.input[1]]] == "fp32"

    def test_a_tensor_is_quantized_once_per_type_of_its_layers(
        self, prepared: Prepared, normal: Normal, make_plan: MakePlan
    ) -> None:
        """TensorRT-RTX fails to build layers of different types that read one QuantizeLinear."""
        graph = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] v) {
            [relu] r = Relu(x)
            [one] y = MatMul(r, w1)
            [two] z = MatMul(r, w2)
            [three] v = MatMul(r, w3)
        }"""
        model = prepared(graph, w1=normal(4, 4), w2=normal(4, 4), w3=normal(4, 4))
        placement = place(model)
        for wide, expected in (((), 1), (("one",), 2), (("one", "two"), 2), (("one", "two", "three"), 1)):
            plan = make_plan(placement, float_precision="fp16").model_copy(update={"wide_nodes": frozenset(wide)})
            file = File(apply(plan, model, placement), model)
            quantizers = [node for node in file.nodes if node.op_type == "QuantizeLinear"]
            assert len(quantizers) == expected
            for quantize in quantizers:
                readers = [node for node in file.nodes if node.input and node.input[0] == quantize.output[0]]
                assert {file.types[node.input[1]] for node in readers} == {file.types[quantize.input[1]]}

    @pytest.mark.parametrize("layers", ["fp16", "int8"])
    def test_nothing_overflows(self, overflowing: ir.Model, make_plan: MakePlan, tmp_path: Path, layers: str) -> None:
        """And the same file is built by TensorRT."""
        placement = place(overflowing)
        x = np.float32([[80, 1, 50, 3]])
        scales = {"b": 100 / 127, "r": 100_000 / 127}
        precisions = {"large": layers, "small": layers}
        plan = make_plan(placement, scales, precisions, "fp16")
        y = OnnxRuntimeModel(serialize(apply(plan, overflowing, placement, simulate=True))).run({"x": x})["y"]
        assert y[0, 0] == (
            -np.inf if layers == "fp16" else pytest.approx(-100, rel=1e-2)
        )  # quantized, inf is the largest number
        wide = plan.model_copy(update={"wide_nodes": WIDE})
        y = OnnxRuntimeModel(serialize(apply(wide, overflowing, placement, simulate=True))).run({"x": x})["y"]
        np.testing.assert_allclose(y, -x, atol=0.05 if layers == "fp16" else 0.5)
        bf16 = make_plan(placement, scales, dict.fromkeys(precisions, "bf16"), "bf16")
        y = OnnxRuntimeModel(serialize(apply(bf16, overflowing, placement, simulate=True))).run({"x": x})["y"]
        np.testing.assert_allclose(y, -x, rtol=2**-6)
        if build_is_here():
            write_onnx(apply(wide, overflowing, placement), tmp_path / "model.onnx")
            built = build(tmp_path / "model.onnx", {"x": ((1, 4), (2, 4), (4, 4))}, "8.9")
            assert built.ok, built.message

    def test_they_say_nothing_of_bf16(self, overflowing: ir.Model, make_plan: MakePlan) -> None:
        plan = make_plan(place(overflowing), layers={"large": "bf16"}, float_precision="bf16")
        wide = plan.model_copy(update={"wide_nodes": WIDE})
        assert [float_precision(node, wide) for node in overflowing.graph] == ["bf16"] * 5


def build_is_here() -> bool:
    try:
        import tensorrt_rtx  # noqa: F401
    except ImportError:
        return False
    return True


class TestPlanFile:
    PLAN = QuantizationPlan(
        name="p",
        strategy="minmax",
        origin=Origin(model_sha256="m"),
        scales={"x": 0.5},
        layers={"a": "bf16", "b": "int8"},
    )

    def test_wide_nodes_come_back_and_decide_the_hash(self, tmp_path: Path) -> None:
        names = [f"node_{i}" for i in range(20)]
        wide = self.PLAN.model_copy(update={"wide_nodes": frozenset(names)})
        wide.write(tmp_path / "plan.json")
        read = QuantizationPlan.read(tmp_path / "plan.json")
        assert read == wide
        assert read.hash == wide.hash != self.PLAN.hash
        assert json.loads((tmp_path / "plan.json").read_text())["wide_nodes"] == sorted(names)
        assert self.PLAN.model_copy(update={"wide_nodes": frozenset(names[:1])}).hash not in {wide.hash, self.PLAN.hash}

    def test_a_file_from_before_is_read_and_keeps_its_hash(self, tmp_path: Path) -> None:
        old = json.loads(self.PLAN.model_dump_json())
        del old["wide_nodes"]
        (tmp_path / "plan.json").write_text(json.dumps(old))
        read = QuantizationPlan.read(tmp_path / "plan.json")
        assert read.wide_nodes == frozenset()
        assert read == self.PLAN
        # Of this plan's JSON, without name and origin, as version 0.1 hashed it.
        assert read.hash == "b9b46088b8f84f0d12e7dc67925035384ace214fd52f6511d28cce40a11200ae"
