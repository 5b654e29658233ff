"""What plans cost: counted against brute force and published numbers, and computed by hand."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibrate.cost.gpus import GPUS, gpu_named, gpu_of
from calibrate.cost.kernels import kernels_of
from calibrate.cost.roofline import LAUNCH_MS, MacCost, MeasuredCost, Roofline, multiply_accumulates
from calibrate.cost.shapes import tensor_shapes
from calibrate.graph.placement import place
from calibrate.graph.preparation import prepare
from calibrate.plan.quantization_plan import QuantizationRules
from tests.conftest import Exported
from validate.backends.onnx_files import read_onnx
from validate.exceptions import JobError
from validate.references import resolve_path

ROOT = Path(__file__).parents[3]
ATTENTION = QuantizationRules(attention=True)
L4 = {"int8": 242.5e12, "fp16": 121e12, "bytes": 300e9}  # as NVIDIA prints them: 485 and 242 with sparsity, 300 GB/s


def roofline(model: ir.Model, shapes: dict[str, tuple[int, ...]], gpu: str, float_precision: str) -> Roofline:
    """Return the roofline of a prepared model on a GPU that is known."""
    return Roofline(kernels_of(model, place(model), shapes), gpu_named(gpu), float_precision)


def graph(text: str, shapes: dict[str, list[int]], seed: int = 0) -> ir.Model:
    """Return a prepared model in ONNX's text format, with random constants of these shapes."""
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 19]>\n{text}')
    rng = np.random.default_rng(seed)
    inputs = {value.name: value for value in model.graph.inputs}
    for name, shape in shapes.items():
        value = inputs[name]
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    return prepare(model)


def macs_of(text: str, shapes: dict[str, list[int]], inputs: dict[str, tuple[int, ...]]) -> dict[str, int]:
    model = graph(text, shapes)
    return multiply_accumulates(model, place(model, ATTENTION), inputs)


def all_in(precision: Any, layers: Any) -> dict[str, Any]:
    return dict.fromkeys(layers, precision)


class TestMultiplyAccumulates:
    @pytest.mark.parametrize(("groups", "stride", "pad", "dilation"), [(1, 1, 0, 1), (2, 2, 1, 1), (4, 3, 2, 2)])
    def test_conv(self, groups, stride, pad, dilation):
        batch, channels, out, height, width, kernel = 2, 4, 8, 7, 9, 3
        count, reach = 0, dilation * (kernel - 1) + 1
        rows = range(0, height + 2 * pad - reach + 1, stride)
        columns = range(0, width + 2 * pad - reach + 1, stride)
        for _ in itertools.product(range(batch), range(out), rows, columns):
            for _ in itertools.product(range(channels // groups), range(kernel), range(kernel)):
                count += 1
        text = f"""g (float[{batch},{channels},{height},{width}] x, float[{out},{channels // groups},3,3] w)
        => (float[N,M,P,Q] y)
        {{ y = Conv<group={groups}, strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}],
                    dilations=[{dilation},{dilation}]>(x, w) }}"""
        inputs = {"x": (batch, channels, height, width)}
        assert macs_of(text, {"w": [out, channels // groups, 3, 3]}, inputs) == {"Conv_0": count}

    def test_conv_transpose(self):
        """Each input element is multiplied with each weight of its group, once."""
        count = 0
        for _ in itertools.product(range(2), range(6), range(5), range(4)):  # batch, channel, row, column
            for _ in itertools.product(range(9 // 3), range(2), range(3)):  # outputs of the group, kernel
                count += 1
        text = """g (float[2,6,5,4] x, float[6,3,2,3] w) => (float[N,M,P,Q] y)
        { y = ConvTranspose<group=3, strides=[2,2]>(x, w) }"""
        assert macs_of(text, {"w": [6, 3, 2, 3]}, {"x": (2, 6, 5, 4)}) == {"ConvTranspose_0": count}

    @pytest.mark.parametrize(("transposed", "shape"), [(1, [5, 7]), (0, [7, 5])])
    def test_gemm(self, transposed, shape):
        text = f"""g (float[3,7] x, float[{shape[0]},{shape[1]}] w) => (float[N,M] y)
        {{ y = Gemm<transB={transposed}>(x, w) }}"""
        assert macs_of(text, {"w": shape}, {"x": (3, 7)}) == {"Gemm_0": 3 * 7 * 5}

    def test_batched_matmul_of_any_batch(self):
        text = "g (float[N,T,7] x, float[7,5] w) => (float[N,T,5] y) { y = MatMul(x, w) }"
        assert macs_of(text, {"w": [7, 5]}, {"x": (2, 11, 7)}) == {"MatMul_0": 2 * 11 * 7 * 5}

    def test_attention(self):
        text = """g (float[N,H,T,D] q, float[N,H,D,T] k) => (float[N,H,T,T] y) { y = MatMul(q, k) }"""
        assert macs_of(text, {}, {"q": (2, 3, 5, 4), "k": (2, 3, 4, 5)}) == {"MatMul_0": 2 * 3 * 5 * 5 * 4}

    @pytest.mark.parametrize(
        ("name", "weights"), [("resnet18", "ResNet18_Weights"), ("mobilenet_v2", "MobileNet_V2_Weights")]
    )
    def test_torchvision_publishes_the_same(self, name, weights, exported):
        """``meta["_ops"]`` is in units of 10^9 multiply-accumulates, to three digits after the point."""
        torchvision = pytest.importorskip("torchvision", reason="its models and what it publishes of them")
        model = prepare(read_onnx(exported(name, 224)))
        published = getattr(torchvision.models, weights).IMAGENET1K_V1.meta["_ops"]
        macs = multiply_accumulates(model, place(model), {"x": (1, 3, 224, 224)})
        assert sum(macs.values()) / 1e9 == pytest.approx(published, rel=0.005, abs=0.0006)
        assert sum(multiply_accumulates(model, place(model), {"x": (8, 3, 224, 224)}).values()) == 8 * sum(
            macs.values()
        )


@pytest.fixture(scope="module")
def resnet(exported: Exported) -> ir.Model:
    pytest.importorskip("torchvision", reason="its ResNet")
    return prepare(read_onnx(exported("resnet18", 224)))


class TestShapes:
    def test_an_ocr_model_of_any_width_against_onnxruntime(self):
        pytest.importorskip("rapidocr", reason="carries the OCR model")
        path = resolve_path("package:rapidocr/models/ch_PP-OCRv4_rec_mobile.onnx", ROOT)
        model, shape = prepare(read_onnx(path)), (2, 3, 48, 208)
        assert_true_of_a_run(model, {"x": np.zeros(shape, np.float32)})

    def test_a_transformer(self, tmp_path):
        torch = pytest.importorskip("torch", reason="exports PyTorch models")
        layer = torch.nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, batch_first=True)
        module = torch.nn.Sequential(torch.nn.Embedding(50, 32), torch.nn.TransformerEncoder(layer, 2)).eval()
        dims = ({0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=2)},)
        tokens = torch.zeros(2, 8, dtype=torch.int64)
        program = torch.onnx.export(module, (tokens,), dynamo=True, dynamic_shapes=dims, verbose=False)
        program.save(str(tmp_path / "model.onnx"))
        model = prepare(read_onnx(tmp_path / "model.onnx"))
        assert_true_of_a_run(model, {str(model.graph.inputs[0].name): np.zeros((3, 12), np.int64)})

    def test_what_inference_does_not_say_is_measured(self):
        """A shape that is computed in float: ONNX's shape inference does not follow it."""
        text = """g (float[N,6] x) => (float[A,B] z)
        { shape = Shape(x)
          wide = Cast<to=1>(shape)
          root = Sqrt(wide)
          whole = Floor(root)
          size = Cast<to=7>(whole)
          ones = ConstantOfShape(size)
          z = Relu(ones) }"""
        assert tensor_shapes(graph(text, {}), {"x": (9, 6)})["z"] == (3, 2)

    @pytest.mark.parametrize(
        ("given", "message"),
        [({}, r"shapes are given of \[\]"), ({"x": (2, 8)}, "its shape cannot be"), ({"x": (2, 7, 1)}, "cannot be")],
    )
    def test_shapes_that_do_not_fit(self, given, message):
        model = graph("g (float[N,7] x) => (float[N,7] y) { y = Relu(x) }", {})
        with pytest.raises(JobError, match=message):
            tensor_shapes(model, given)


def assert_true_of_a_run(model: ir.Model, inputs: dict[str, Any]) -> None:
    """Every tensor has the shape that ONNX Runtime gives it."""
    from validate.backends.onnx_files import expose, serialize
    from validate.backends.onnxruntime import OnnxRuntimeModel

    names = [str(value.name) for node in model.graph for value in node.outputs]
    found = OnnxRuntimeModel(serialize(expose(model, names)), threads=1, optimize=False).run(inputs)
    shapes = tensor_shapes(model, {name: array.shape for name, array in inputs.items()})
    assert len(names) > 50
    assert {name: shapes[name] for name in names} == {name: found[name].shape for name in names}


TWO = """g (float[N,16,8,8] x, float[32,16,3,3] w1, float[32] b1, float[64,32,1,1] w2) => (float[N,64,8,8] y)
{ a = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r = Relu(a)
  y = Conv(r, w2) }"""
TWO_SHAPES = {"w1": [32, 16, 3, 3], "b1": [32], "w2": [64, 32, 1, 1]}


class TestRoofline:
    """Of two convolutions on an L4 in FP16, batch 4, by hand."""

    x, r, y = 4 * 16 * 64, 4 * 32 * 64, 4 * 64 * 64  # elements
    w1, b1, w2 = 32 * 16 * 9, 32, 64 * 32
    macs = (r * 16 * 9, y * 32)

    @pytest.fixture
    def model(self):
        two = graph(TWO, TWO_SHAPES)
        return roofline(two, {"x": (4, 16, 8, 8)}, "L4", "fp16")

    def milliseconds(self, kernels: list[tuple[int, str, int]]) -> float:
        """Of kernels with these MACs in this precision, moving these bytes."""
        total = 0.0
        for macs, precision, moved in kernels:
            total += max(2 * macs / L4[precision], moved / L4["bytes"]) * 1e3 + 0.001
        return total

    def test_relu_is_fused(self, model):
        assert model.kernels.nodes == (("Conv_0", "Relu_1"), ("Conv_2",))
        assert model.kernels.macs.tolist() == list(self.macs)

    def test_int8(self, model):
        x, r, y = self.x, self.r, self.y
        wanted = self.milliseconds(
            [
                (0, "int8", 4 * x + x),  # quantizes the float32 input
                (self.macs[0], "int8", x + self.w1 + 2 * self.b1 + r),  # writes int8, as its only reader is
                (self.macs[1], "int8", r + self.w2 + 2 * y),
                (0, "fp16", 2 * y + 4 * y),  # casts the output to the model's type
            ]
        )
        assert model.cost(all_in("int8", ["Conv_0", "Conv_2"])).value == pytest.approx(wanted, rel=1e-9)

    def test_fp16(self, model):
        x, r, y = self.x, self.r, self.y
        wanted = self.milliseconds(
            [
                (0, "fp16", 4 * x + 2 * x),
                (self.macs[0], "fp16", 2 * (x + self.w1 + self.b1 + r)),
                (self.macs[1], "fp16", 2 * (r + self.w2 + y)),
                (0, "fp16", 2 * y + 4 * y),
            ]
        )
        assert model.cost(all_in("fp16", ["Conv_0", "Conv_2"])).value == pytest.approx(wanted, rel=1e-9)

    def test_a_border_is_paid_for(self, model):
        x, r, y = self.x, self.r, self.y
        int8_first = self.milliseconds(
            [
                (0, "int8", 4 * x + x),
                (self.macs[0], "int8", x + self.w1 + 2 * self.b1 + 2 * r),  # its reader is fp16, so it writes fp16
                (self.macs[1], "fp16", 2 * (r + self.w2 + y)),
                (0, "fp16", 2 * y + 4 * y),
            ]
        )
        int8_last = self.milliseconds(
            [
                (0, "fp16", 4 * x + 2 * x),
                (self.macs[0], "fp16", 2 * (x + self.w1 + self.b1 + r)),
                (0, "int8", 2 * r + r),  # quantizes what a float layer wrote
                (self.macs[1], "int8", r + self.w2 + 2 * y),
                (0, "fp16", 2 * y + 4 * y),
            ]
        )
        assert model.cost({"Conv_0": "int8", "Conv_2": "fp16"}).value == pytest.approx(int8_first, rel=1e-9)
        assert model.cost({"Conv_0": "fp16", "Conv_2": "int8"}).value == pytest.approx(int8_last, rel=1e-9)

    def test_neighbours_matter(self, model):
        """The gain of a layer is not its own: costs do not add up."""
        cost = {
            (a, b): model.cost({"Conv_0": a, "Conv_2": b}).value
            for a, b in itertools.product(["int8", "fp16"], repeat=2)
        }
        among_int8 = cost["int8", "fp16"] - cost["int8", "int8"]
        among_fp16 = cost["fp16", "fp16"] - cost["fp16", "int8"]
        assert among_int8 > among_fp16 + LAUNCH_MS / 2

    def test_it_is_an_estimate_and_says_of_what(self, model):
        cost = model.cost(all_in("int8", ["Conv_0", "Conv_2"]))
        assert (cost.basis, cost.unit, model.basis) == ("estimate", "ms", "estimate")
        assert cost.source.startswith("roofline of an NVIDIA L4 (datasheet")

    def test_a_precision_that_the_gpu_lacks(self):
        two = graph(TWO, TWO_SHAPES)
        with pytest.raises(JobError, match="the T4 does not compute in bf16; use fp16"):
            roofline(two, {"x": (4, 16, 8, 8)}, "T4", "bf16").cost(all_in("bf16", ["Conv_0", "Conv_2"]))

    @pytest.mark.parametrize("gpu", [gpu.name for gpu in GPUS])
    @pytest.mark.parametrize("batch", [1, 32])
    def test_resnet_is_faster_in_int8(self, resnet, gpu, batch):
        model = roofline(resnet, {"x": (batch, 3, 224, 224)}, gpu, "fp16")
        layers = model.kernels.layers
        int8, fp16, fp32 = (model.cost(all_in(p, layers)).value for p in ("int8", "fp16", "fp32"))
        assert 0 < int8 < fp16 < fp32
        assert fp16 / int8 < 2, "no more than the ratio of rates and of bytes"

    def test_a_lone_int8_layer_gains_less_than_one_among_many(self, resnet):
        model = roofline(resnet, {"x": (32, 3, 224, 224)}, "L4", "fp16")
        layers = model.kernels.layers
        int8, fp16 = (model.cost(all_in(p, layers)).value for p in ("int8", "fp16"))
        alone = [fp16 - model.cost({**all_in("fp16", layers), layer: "int8"}).value for layer in layers]
        among = [model.cost({**all_in("int8", layers), layer: "fp16"}).value - int8 for layer in layers]
        assert sum(alone) < 0.6 * (fp16 - int8) < sum(among)
        assert sum(a < b for a, b in zip(alone, among, strict=True)) > 0.8 * len(layers)

    def test_residuals_and_pools_pass_int8_on(self, resnet):
        """In an all-int8 ResNet the only types that change are those of the input, the pooled features, the output."""
        kernels = kernels_of(resnet, place(resnet), {"x": (1, 3, 224, 224)})
        assert len(kernels.traffic(all_in("int8", kernels.layers), "fp16").reformats) == 3
        fused = {len(nodes) for nodes in kernels.nodes}
        assert fused == {1, 2, 3}, "Conv; Conv + Relu; Conv + Add + Relu"

    def test_any_plan_has_a_cost_between_nothing_and_what_all_its_borders_may_cost(self, resnet):
        model = roofline(resnet, {"x": (4, 3, 224, 224)}, "T4", "fp16")
        rng, layers = np.random.default_rng(0), model.kernels.layers
        most = 2 * model.cost(all_in("fp32", layers)).value
        for _ in range(50):
            plan = dict(zip(layers, rng.choice(["int8", "fp16", "fp32"], len(layers)).tolist(), strict=True))
            assert 0 < model.cost(plan).value == model.cost(plan).value < most

    def test_it_is_quick(self, resnet):
        model = roofline(resnet, {"x": (1, 3, 224, 224)}, "L4", "fp16")
        plan = all_in("int8", model.kernels.layers)
        start = time.perf_counter()
        for _ in range(100):
            model.cost(plan)
        assert (time.perf_counter() - start) / 100 < 0.002


class TestFusion:
    def nodes(self, text: str, constants: dict[str, list[int]], **shapes: tuple[int, ...]) -> tuple[Any, ...]:
        model = graph(text, constants)
        return kernels_of(model, place(model), shapes).nodes

    def test_swish_uses_its_input_twice(self):
        text = """g (float[N,4,8,8] x, float[4,4,1,1] w) => (float[N,4,8,8] y)
        { a = Conv(x, w)  s = Sigmoid(a)  y = Mul(a, s) }"""
        assert self.nodes(text, {"w": [4, 4, 1, 1]}, x=(1, 4, 8, 8)) == (("Conv_0", "Sigmoid_1", "Mul_2"),)

    def test_not_where_somebody_else_needs_the_inner_tensor(self):
        text = """g (float[N,4,8,8] x, float[4,4,1,1] w) => (float[N,4,8,8] y, float[N,4,8,8] z)
        { a = Conv(x, w)  y = Relu(a)  z = Softmax(a) }"""
        assert self.nodes(text, {"w": [4, 4, 1, 1]}, x=(1, 4, 8, 8)) == (("Conv_0",), ("Relu_1",), ("Softmax_2",))

    def test_a_gate_is_a_kernel_of_its_own(self):
        """Squeeze and excite: the last layer has one value a channel, the product a whole image."""
        text = """g (float[N,4,8,8] x, float[4,4,1,1] w) => (float[N,4,8,8] y)
        { p = GlobalAveragePool(x)  g = Conv(p, w)  s = Sigmoid(g)  y = Mul(x, s) }"""
        nodes = self.nodes(text, {"w": [4, 4, 1, 1]}, x=(1, 4, 8, 8))
        assert nodes == (("GlobalAveragePool_0",), ("Conv_1", "Sigmoid_2"), ("Mul_3",))

    def test_runs_of_pointwise_operations_are_one_kernel_and_views_are_none(self):
        text = """g (float[N,4,8] x) => (float[N,32] y)
        { a = Softmax(x)  b = Exp(a)  c = Flatten(b)  y = Neg(c) }"""
        assert self.nodes(text, {}, x=(2, 4, 8)) == (("Softmax_0",), ("Exp_1", "Neg_3"))

    def test_what_waits_for_the_layer_does_not_fuse_into_it(self):
        text = """g (float[N,4,8,8] x, float[4,4,1,1] w, float[4,4,1,1] v) => (float[N,4,8,8] y)
        { a = Conv(x, w)  b = Conv(a, v)  y = Add(a, b) }"""
        nodes = self.nodes(text, {"w": [4, 4, 1, 1], "v": [4, 4, 1, 1]}, x=(1, 4, 8, 8))
        assert nodes == (("Conv_0",), ("Conv_1", "Add_2"))


class TestCommuting:
    @pytest.mark.parametrize(
        ("between", "casts"),
        [
            ("m = MaxPool<kernel_shape=[1,1]>(r)", 0),
            ("m = Transpose<perm=[0,1,3,2]>(r)", 0),
            ("p = Constant<value_ints=[0,0,1,1,0,0,1,1]>() m = Pad(r, p)", 0),
            ("p = Constant<value_ints=[0,0,1,1,0,0,1,1]>() o = Constant<value_float=1.0>() m = Pad(r, p, o)", 1),
            ("m = Concat<axis=1>(r, r)", 0),
            ("m = Softmax(r)", 1),
            ("m = AveragePool<kernel_shape=[1,1]>(r)", 1),
            ("e = Reshape(r, s) m = Reshape(e, s)", 0),
        ],
    )
    def test_int8_passes_through_what_makes_no_new_values(self, between, casts):
        """Two int8 convolutions with something between them: is there a quantization behind it?"""
        channels = 8 if "Concat" in between else 4
        text = f"""g (float[N,4,8,8] x, float[4,4,1,1] w, float[4,{channels},1,1] v) => (float[N,4,H,W] y)
        {{ s = Constant<value_ints=[0,0,0,0]>() a = Conv(x, w) r = Relu(a) {between} y = Conv(m, v) }}"""
        model = graph(text, {"w": [4, 4, 1, 1], "v": [4, channels, 1, 1]})
        kernels = kernels_of(model, place(model), {"x": (1, 4, 8, 8)})
        ends = 2  # of the model's input and output
        assert len(kernels.traffic(all_in("int8", kernels.layers), "fp16").reformats) == ends + casts


class TestMacCost:
    def test_weights(self):
        model = MacCost({"a": 100, "b": 10})
        assert model.cost({"a": "int8", "b": "int8"}).value == 110
        cost = model.cost({"a": "fp16", "b": "fp32"})
        assert (cost.value, cost.basis, cost.unit) == (240, "multiply-accumulates", "INT8-equivalent MACs")

    def test_they_are_the_rates_of_data_center_gpus(self):
        for gpu in GPUS:
            if gpu.compute_capability != "7.5" and not gpu.name.startswith("RTX"):
                ratios = [gpu.tera["int8"] / gpu.tera[p] for p in ("fp16", "bf16", "fp32")]
                assert ratios == pytest.approx([2, 2, 4], rel=0.02), gpu.name


class TestMeasured:
    def make(self, **changed: Any) -> MeasuredCost:
        two = graph(TWO, TWO_SHAPES)
        kernels = kernels_of(two, place(two), {"x": (4, 16, 8, 8)})
        times = {"int8_ms": {"Conv_0": 1.0, "Conv_2": 2.0}, "float_ms": {"Conv_0": 10.0, "Conv_2": 20.0}}
        rest = {"rest_ms": 100.0, "reformat_ms_per_byte": 1e-3, "float_precision": "fp16", "source": "an L4"}
        return MeasuredCost(kernels, **(times | rest | changed))

    def test_times_and_reformats(self):
        model = self.make()
        x, r, y = TestRoofline.x, TestRoofline.r, TestRoofline.y
        cost = model.cost({"Conv_0": "fp16", "Conv_2": "int8"})
        assert cost.value == pytest.approx(10 + 2 + 100 + 1e-3 * (6 * x + 3 * r + 6 * y))
        assert (cost.basis, cost.unit, cost.source) == ("measured", "ms", "an L4")
        assert model.cost(all_in("int8", model.kernels.layers)).value == pytest.approx(103 + 1e-3 * (5 * x + 6 * y))

    def test_a_layer_has_the_time_of_the_engine_that_has_it_so(self):
        model = self.make()
        assert [model.layer_ms("Conv_2", precision) for precision in ("int8", "fp16")] == [2.0, 20.0]
        assert MacCost({"Conv_2": 5}).layer_ms("Conv_2", "int8") is None  # nothing that was measured

    def test_a_layer_without_a_time(self):
        with pytest.raises(JobError, match="the float engine has no time for layer Conv_2"):
            self.make(float_ms={"Conv_0": 1.0})


class TestGpus:
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("L4", "L4"),
            ("nvidia l4", "L4"),
            ("Tesla T4", "T4"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("h100", "H100 SXM"),
            ("H100 PCIe", "H100 PCIe"),
            ("A100", "A100 SXM 80GB"),
            ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
            ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ],
    )
    def test_names(self, name, found):
        assert gpu_named(name).name == found

    def test_an_unknown_one(self):
        with pytest.raises(JobError) as caught:
            gpu_named("RTX 4080")
        assert str(caught.value) == (
            "the speed of a GPU called 'RTX 4080' is not known; did you mean RTX 4090? (known are T4, A10, L4, "
            "A100 SXM 80GB, A100 SXM 40GB, H100 SXM, H100 PCIe, RTX 4090)"
        )

    @pytest.mark.parametrize("name", ["", "80GB", "SXM", "4090", "L40"])
    def test_half_a_name_is_none(self, name):
        with pytest.raises(JobError, match="is not known"):
            gpu_named(name)

    @pytest.mark.parametrize(
        ("capability", "name"),
        [("7.5", "T4"), ("8.0", "A100 SXM 80GB"), ("8.6", "A10"), ("8.9", "L4"), ("9.0", "H100 SXM")],
    )
    def test_of_a_compute_capability(self, capability, name):
        assert gpu_of(capability).name == name

    def test_of_an_unknown_one(self):
        assert gpu_of("12.0") is None
