"""Ranges of all activations are exact and cheap, and from them the nodes that FP16 cannot compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibrate.graph.application import apply
from calibrate.graph.placement import place
from calibrate.graph.preparation import prepare
from calibrate.observation.ranges import FP16_LIMIT, observe_ranges, wide_nodes
from calibrate.observation.streaming import observable, observe
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan, QuantizationRules
from calibrate.strategies.planning import make_plan
from validate.backends.onnx_files import serialize
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.data.stream import Batch
from validate.stats.histograms import Statistics

Array = NDArray[Any]
NOTHING = (np.inf, -np.inf)


def prepared(text: str, **constants: Array) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return prepare(ir.from_proto(model))


def batch(**inputs: Array) -> Batch:
    size = len(next(iter(inputs.values())))
    return Batch(inputs, [None] * size, [b""] * size, 0)


def seen(*values: float) -> Statistics:
    statistics = Statistics()
    statistics.update(np.float32(values))
    return statistics


class TestObserve:
    GRAPH = """g (float[N, 3, 8, 8] x, int64[K] rows, bool c) => (float[N, 5] y, float[K, 5] picked) {
        [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w)
        [relu] r = Relu(a)
        [mean] m = GlobalAveragePool(r)
        [flat] f = Flatten(m)
        [head] y = Gemm(f, v)
        [pick] picked = Gather <axis = 0> (y, rows)
        [shape] s = Shape(y)
        [count] k = Cast <to = 1> (s)
        [if] z = If (c) <then_branch = t () => (float[N, 5] p) { q = Neg(y) p = Neg(q) },
                         else_branch = e () => (float[N, 5] o) { o = Neg(y) }>
        [last] l = Abs(z)
        [total] both = Add(l, y)
    }"""

    def test_ranges_are_those_of_all_float_tensors(self) -> None:
        """Against each tensor itself, as another session without optimization gives it, over several batches."""
        rng = np.random.default_rng(0)
        weights = {"w": rng.normal(size=(16, 3, 3, 3)), "v": rng.normal(size=(16, 5))}
        text = self.GRAPH.replace("float[K, 5] picked)", "float[K, 5] picked, float[N, 5] both, float[2] k)")
        model = prepared(text, **{name: a.astype(np.float32) for name, a in weights.items()})
        sizes, rows = (2, 1, 3), ([0, 1], [], [2])
        batches = [
            batch(
                x=rng.normal(0, 10**i, (n, 3, 8, 8)).astype(np.float32),
                rows=np.array(r, np.int64),
                c=np.array(i > 1),
            )
            for i, (n, r) in enumerate(zip(sizes, rows, strict=True))
        ]
        proto = onnx.load_from_string(serialize(model))
        names = ["x", "a", "r", "m", "f", "y", "picked", "k", "z", "l", "both"]
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n in {"a", "r", "m", "f", "z", "l"})
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values: dict[str, list[Array]] = {name: [] for name in names}
        for b in batches:
            outputs = dict(zip(names[1:], session.run(names[1:], b.inputs), strict=True))
            for name, array in (outputs | {"x": b.inputs["x"]}).items():
                values[name].append(array.reshape(-1))
        expected = {
            name: (min(v.min(initial=np.inf) for v in a), max(v.max(initial=-np.inf) for v in a))
            for name, a in values.items()
        }
        before = serialize(model)
        assert observe_ranges(model, iter(batches)) == expected
        assert serialize(model) == before

    def test_no_sample_and_no_value(self) -> None:
        model = prepared("g (float[N, 4] x, int64[K] rows) => (float[K, 4] y) { y = Gather(x, rows) }")
        assert observe_ranges(model, []) == {"x": NOTHING, "y": NOTHING}
        empty = batch(x=np.float32([[1, 2, 3, -4]]), rows=np.zeros(0, np.int64))
        assert observe_ranges(model, [empty]) == {"x": (-4, 3), "y": NOTHING}

    def test_infinity_is_a_range(self) -> None:
        model = prepared("g (float[N, 1] x) => (float[N, 1] y) { y = Exp(x) }")
        assert observe_ranges(model, [batch(x=np.float32([[1000], [0]]))])["y"] == (1, np.inf)

    def test_it_does_not_keep_the_activations(self) -> None:
        """Of 60 tensors of 8 MB each. In a process of its own, whose peak is its own."""
        code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
import numpy as np, onnx.parser, onnx_ir as ir
from calibrate.observation.ranges import observe_ranges
from validate.data import Batch
nodes = " ".join(f"x{{i + 1}} = {{op}}(x{{i}})" for i, op in enumerate(["Relu", "Tanh", "Neg"] * 20))
model = onnx.parser.parse_model(
    f'<ir_version: 9, opset_import: ["": 19]> g (float[N, 2097152] x0) => (float[N, 2097152] x60) {{{{ {{nodes}} }}}}'
)
from calibrate.graph.preparation import prepare
model = prepare(ir.from_proto(model))
batches = [Batch({{"x0": np.ones((1, n), np.float32)}}, [None], [b""], 0) for n in (2097152,)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(observe_ranges(model, batches)) == 61
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
        assert int(done.stdout) / 1024 < 150, "MB; all activations are 488"


class TestWideNodes:
    CHAIN = """g (float[N, 4] x) => (float[N, 4] y) {
        [one] a = MatMul(x, w)
        [two] b = Relu(a)
        [three] y = Neg(b)
    }"""

    @pytest.mark.parametrize(
        ("low", "high", "wide"),
        [
            (-1, 1, set()),
            (-FP16_LIMIT, FP16_LIMIT, set()),
            (0, FP16_LIMIT * 1.001, {"one", "two"}),
            (-FP16_LIMIT * 1.001, 0, {"one", "two"}),
            (-70_000, 70_000, {"one", "two"}),
            (0, np.inf, {"one", "two"}),
            (*NOTHING, set()),
        ],
    )
    def test_nodes_that_take_or_give_it(self, low: float, high: float, wide: set[str]) -> None:
        """Half of FP16's largest number is the limit, on either side."""
        assert FP16_LIMIT == 32752
        model = prepared(self.CHAIN, w=np.ones((4, 4), np.float32))
        assert wide_nodes(model, {"x": (0, 1), "a": (low, high), "b": (0, 1), "y": (0, 1)}, {}) == wide
        assert wide_nodes(model, {}, {"a": seen(low, high)} if np.isfinite(high) else {}) == (
            wide if np.isfinite(high) else set()
        )

    def test_the_wider_of_both_counts(self) -> None:
        model = prepared(self.CHAIN, w=np.ones((4, 4), np.float32))
        few, all_of_them = {"a": (0.0, 1.0), "y": (-1e6, 0.0)}, {"a": seen(0, 1e6), "y": seen(0)}
        assert wide_nodes(model, few, {}) == {"three"}
        assert wide_nodes(model, few, all_of_them) == {"one", "two", "three"}

    def test_model_inputs_and_outputs_count(self) -> None:
        model = prepared(self.CHAIN, w=np.ones((4, 4), np.float32))
        assert wide_nodes(model, {"x": (0, 1e6)}, {}) == {"one"}
        assert wide_nodes(model, {"y": (0, 1e6)}, {}) == {"three"}

    def test_what_is_fp32_anyway_is_not_named(self) -> None:
        graph = """g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) {
            [exp] e = Exp(x)
            [resize] y = Resize(e, , zoom)
        }"""
        model = prepared(graph, zoom=np.float32([1, 1, 2, 2]))
        assert wide_nodes(model, {"e": (0, 1e6), "y": (0, 1e6)}, {}) == {"exp"}

    @pytest.mark.parametrize(
        ("node", "constant", "wide"),
        [
            ("Div(x, c)", 1e6, True),
            ("Div(x, c)", -1e6, True),
            ("Div(x, c)", 65504, False),
            ("Add(x, c)", 1e30, True),
            ("Min(x, c)", 1e30, False),
            ("Max(x, c)", -3.4e38, False),
            ("Clip(x, c)", -1e30, False),
        ],
    )
    def test_constants(self, node: str, constant: float, wide: bool) -> None:
        """One that FP16 would round to 65504 matters where it is a number and not where it is a bound."""
        model = prepared(f"g (float[N, 4] x) => (float[N, 4] y) {{ [node] y = {node} }}", c=np.float32(constant))
        assert wide_nodes(model, {"x": (-1, 1), "y": (-1, 1)}, {}) == ({"node"} if wide else set())


MASKS = {
    "multiplied": ("h = Sub(one, visible) m = Mul(h, lowest) z = Add(s, m)", np.finfo(np.float32).min),
    "chosen": ("h = Cast<to = 9>(visible) z = Where(h, s, lowest)", -np.inf),
    "expanded": ("h = Sub(one, visible) m = Mul(h, lowest) e = Expand(m, two) z = Add(s, e)", -1e9),
}


@pytest.mark.parametrize("mask", MASKS)
class TestMasks:
    """-3.4e38, -1e9 or -inf on what must not be attended to: FP16 does as well, and stays."""

    @staticmethod
    def model(mask: str, softmax: str = "[softmax] y = Softmax(z)") -> ir.Model:
        nodes, lowest = MASKS[mask]
        body = f"[scores] s = MatMul(x, w) {nodes} {softmax}"
        graph = f"g (float[2, 4] x, float[2, 4] visible) => (float[2, 4] y) {{ {body} }}"
        constants = {"one": np.float32(1), "lowest": np.float32(lowest), "two": np.array([2, 4])}
        used = {name: a for name, a in constants.items() if name in nodes}
        return prepared(graph, w=np.eye(4, dtype=np.float32), **used)

    DATA = batch(x=np.float32([[1, -2, 3, 4], [0, 1, 2, 3]]), visible=np.float32([[1, 1, 0, 1], [1, 0, 0, 1]]))

    def test_they_are_not_wide(self, mask: str) -> None:
        model = self.model(mask)
        ranges = observe_ranges(model, [self.DATA])
        assert ranges["z"][0] < -1e8
        assert wide_nodes(model, ranges, {}) == set()
        placement = place(model)
        plan = make_plan("minmax", {"x": seen(0)}, placement, Origin(model_sha256="0"), QuantizationRules())
        plan = plan.model_copy(update={"float_precision": "fp16", "layers": {"scores": "fp16"}})
        expected = OnnxRuntimeModel(serialize(model)).run(self.DATA.inputs)["y"]
        simulated = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True)))
        np.testing.assert_allclose(simulated.run(self.DATA.inputs)["y"], expected, atol=1e-3)

    def test_scores_themselves_are(self, mask: str) -> None:
        model = self.model(mask)
        ranges = observe_ranges(model, [self.DATA]) | {"s": (-1e5, 1.0)}
        assert "scores" in wide_nodes(model, ranges, {})

    def test_too_high_is_no_mask(self, mask: str) -> None:
        """An infinity in a Softmax is NaN."""
        model = self.model(mask)
        ranges = observe_ranges(model, [self.DATA]) | {"z": (-1e9, 1e5)}
        assert "softmax" in wide_nodes(model, ranges, {})

    def test_another_reader_needs_the_value(self, mask: str) -> None:
        model = self.model(mask, "[softmax] p = Softmax(z) [other] o = Exp(z) y = Add(p, o)")
        assert {"softmax", "other"} <= wide_nodes(model, observe_ranges(model, [self.DATA]), {})
        model = self.model(mask)
        model.graph.outputs.append(next(v for node in model.graph for v in node.outputs if v.name == "z"))
        assert "softmax" in wide_nodes(model, observe_ranges(model, [self.DATA]), {})


def test_a_model_that_overflows_in_fp16_is_repaired() -> None:
    """From data to plan: the sum of squares of a norm leaves FP16's range, and what it is divided by does not."""
    graph = """g (float[N, 64] x) => (float[N, 8] y) {
        [square] q = Mul(x, x)
        [sum] t = ReduceSum(q, last)
        [root] r = Sqrt(t)
        [norm] n = Div(x, r)
        [layer] y = MatMul(n, w)
    }"""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 8)).astype(np.float32)
    model = prepared(graph, last=np.array([1]), w=w)
    placement = place(model)
    batches = [batch(x=rng.normal(0, 100, (8, 64)).astype(np.float32)) for _ in range(3)]
    statistics = observe(observable(model, placement.tensors()), batches, lambda batch, outputs: None).statistics
    wide = wide_nodes(model, observe_ranges(model, batches[:1]), statistics)
    assert wide == {"square", "sum", "root"}
    rules = QuantizationRules(float_precision="fp16")
    plan = make_plan("minmax", statistics, placement, Origin(model_sha256="0"), rules)
    plan = plan.with_layers(frozenset({"layer"}), "fp16", "fallback")
    inputs = batches[2].inputs
    expected = OnnxRuntimeModel(serialize(model)).run(inputs)["y"]
    for made, right in ((plan, False), (plan.model_copy(update={"wide_nodes": wide}), True)):
        y = OnnxRuntimeModel(serialize(apply(made, model, placement, simulate=True))).run(inputs)["y"]
        assert np.allclose(y, expected, atol=0.02) == right


LN = """[mean] m = ReduceMean(x, last) [centre] c = Sub(x, m) [square] q = Mul(c, c) [var] v = ReduceMean(q, last)
        [eps] e = Add(v, tiny) [root] r = Sqrt(e)"""
EPSILONS = {
    "a lower bound": ("[norm] n = ReduceL2(x, last) [clip] e = Clip(n, tiny) [div] y = Div(x, e)", {"clip", "div"}),
    "a maximum": ("[norm] n = ReduceL2(x, last) [max] e = Max(n, tiny) [div] y = Div(x, e)", {"max", "div"}),
    "a layer norm": (f"{LN} [div] y = Div(c, r)", {"eps", "root", "div"}),
    "one by a reciprocal": (f"{LN} [over] o = Reciprocal(r) [mul] y = Mul(c, o)", {"eps", "root", "over", "mul"}),
    "one by a power": (
        f"{LN} [over] o = Pow(e, minus_half) [mul] y = Mul(c, o)",
        {"eps", "over", "mul"},
    ),
    "one over a root": (f"{LN} [over] o = Div(one, r) [mul] y = Mul(c, o)", {"eps", "root", "over", "mul"}),
    "a logarithm": ("[add] a = Add(x, tiny) [log] y = Log(a)", {"add", "log"}),
    "a divisor that is spread": (
        "[norm] n = ReduceL2(x, last) [clip] e = Clip(n, tiny) [spread] s = Expand(e, two) [div] y = Div(x, s)",
        {"clip", "spread", "div"},
    ),
    "nothing divides": ("[add] a = Add(x, tiny) [after] b = Relu(a) [last] y = Exp(b)", {"add"}),
    "what is divided": ("[add] a = Add(x, tiny) [div] y = Div(a, two_and_a_half)", {"add"}),
}


class TestEpsilons:
    """Constants that FP16 rounds to 0."""

    X = np.float32([[0, 0, 0, 0], [1, -2, 3, 4]])

    @staticmethod
    def model(case: str, epsilon: Any) -> ir.Model:
        constants = {
            "tiny": np.float32(epsilon),
            "last": np.array([1]),
            "two": np.array([2, 4]),
            "one": np.float32(1),
            "minus_half": np.float32(-0.5),
            "two_and_a_half": np.float32(2.5),
        }
        body = EPSILONS[case][0]
        used = {name: array for name, array in constants.items() if f"{name})" in body or f"({name}," in body}
        return prepared(f"g (float[2, 4] x) => (float[2, 4] y) {{ {body} }}", **used)

    @pytest.mark.parametrize("case", EPSILONS)
    @pytest.mark.parametrize("epsilon", [1e-12, -1e-9, 2.9e-8])
    def test_who_needs_one_is_wide(self, case: str, epsilon: float) -> None:
        assert wide_nodes(self.model(case, epsilon), {}, {}) == EPSILONS[case][1]

    @pytest.mark.parametrize("case", EPSILONS)
    @pytest.mark.parametrize("epsilon", [1e-7, 1e-5, 0.0])
    def test_one_that_fp16_holds_is_no_reason(self, case: str, epsilon: float) -> None:
        assert wide_nodes(self.model(case, epsilon), {}, {}) == set()

    def test_tiny_weights_are_none_either(self) -> None:
        graph = "g (float[2, 4] x) => (float[2, 4] y) { a = MatMul(x, w) b = Add(a, bias) y = Div(x, b) }"
        w, bias = np.full((4, 4), 1e-12, np.float32), np.float32([1e-12, 1, 2, 3])
        assert wide_nodes(prepared(graph, w=w, bias=bias), {}, {}) == set()

    @pytest.mark.parametrize("case", [case for case in EPSILONS if case not in {"nothing divides", "what is divided"}])
    def test_fp16_computes_what_float_does(self, case: str) -> None:
        """On a row of zeros, where the epsilon is all that there is: without the guard, that is NaN or infinite."""
        model = self.model(case, 1e-12)
        x = np.abs(self.X) if case == "a logarithm" else self.X
        expected = OnnxRuntimeModel(serialize(model)).run({"x": x})["y"]
        assert np.isfinite(expected).all()
        plan = QuantizationPlan(
            name="fp16",
            strategy="by hand",
            origin=Origin(model_sha256="0"),
            scales={},
            layers={},
            float_precision="fp16",
        )
        for wide, right in ((frozenset[str](), False), (wide_nodes(model, {}, {}), True)):
            typed = apply(plan.model_copy(update={"wide_nodes": wide}), model, place(model), simulate=True)
            y = OnnxRuntimeModel(serialize(typed)).run({"x": x})["y"]
            assert np.allclose(y, expected, rtol=2e-3) == right
            assert np.isfinite(y).all() == right
