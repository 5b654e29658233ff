"""Columns: a weight times them is what a layer computes, at positions that it has. And the pieces of a model."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from calibrate.recovery.rounding import channel_thresholds, tensor_threshold
from calibrate.recovery.samples import as_matrices, sample_columns
from calibrate.recovery.segments import segments
from tests.calibrate.recovery.random_graphs import CHANNELS, SIDE, random_graph
from validate.backends.onnx_files import serialize
from validate.data import Batch

X = np.random.default_rng(0).normal(size=(3, CHANNELS, SIDE, SIDE)).astype(np.float32)
BATCH = Batch({"x": X}, labels=[None] * 3, contents=[b""] * 3, first=0)


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("pads = [1, 1, 1, 1]", (5, 4, 3, 3)),
        ("strides = [2, 1], pads = [0, 1, 2, 0]", (5, 4, 3, 2)),
        ("dilations = [2, 2], group = 2", (6, 2, 2, 2)),
        ("group = 4, pads = [2, 2, 2, 2]", (4, 1, 5, 5)),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (5, 4, 3, 3)),
        ('auto_pad = "SAME_LOWER", strides = [2, 2]', (5, 4, 2, 3)),
        ('auto_pad = "VALID"', (5, 4, 1, 1)),
    ],
)
def test_a_convolution_is_its_weight_times_its_columns(attributes: str, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 19]>
        net (float[N, 4, 6, 6] x) => (float[N, C, H, W] y) {{
            r = Relu(x)
            [layer] y = Conv <{attributes}> (r, w)
        }}""".replace("float[N, 4, 6, 6] x", f"float[N, 4, 6, 6] x, float{list(shape)} w")
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    (expected,) = onnxruntime.InferenceSession(serialize(model)).run(None, {"x": X})
    columns = sample_columns(model, {"layer": "r"}, {}, [BATCH])[0]["layer"]
    matrices = as_matrices(model.graph[1], weight)
    found = matrices @ columns.reshape(len(matrices), -1, columns.shape[2])
    found = found.reshape(shape[0], -1).T
    positions = expected.transpose(0, 2, 3, 1).reshape(-1, shape[0])
    distances = np.abs(found[:, None] - positions[None]).max(axis=2)
    assert len(found) >= len(positions) / 2
    assert (distances.min(axis=1) < 1e-4).all()  # each is what the layer computes somewhere
    assert len(np.unique(distances.argmin(axis=1))) > len(positions) / 4  # and not everywhere the same


def test_thresholds_are_those_with_the_least_error() -> None:
    """By brute force, over a fine grid."""
    rng = np.random.default_rng(0)
    rows = np.float32([rng.normal(size=2000), rng.laplace(size=2000), rng.uniform(-1, 1, size=2000)])

    def error(row: np.ndarray, threshold: float) -> float:
        scale = threshold / 127
        return float(np.square(np.clip(np.rint(row / scale), -127, 127) * scale - row).sum())

    for row, found in zip(rows, channel_thresholds(rows, 127), strict=True):
        least = min(error(row, top) for top in np.linspace(0.05, 1, 400) * np.abs(row).max())
        assert error(row, found) <= 1.05 * least
        assert tensor_threshold(row, 127) == pytest.approx(found)


def test_pieces_give_what_the_whole_gives() -> None:
    model = random_graph(["conv", "residual", "tokens", "joined", "residual", "squeezed"], seed=3)
    layers = [str(node.name) for node in model.graph if node.op_type in {"Conv", "MatMul", "Gemm"}]
    outputs = [str(node.outputs[0].name) for node in model.graph if node.name in layers]
    whole = onnx.load_from_string(serialize(model))
    names = {output.name for output in whole.graph.output}
    whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in outputs if n not in names)
    expected = onnxruntime.InferenceSession(whole.SerializeToString()).run(outputs, {"x": X})
    tensors = {"x": X}
    for segment, output, values in zip(segments(model, layers), outputs, expected, strict=True):
        segment.run([tensors])
        assert segment.output == output
        np.testing.assert_allclose(tensors[output], values, atol=1e-5)
    assert set(tensors) == {outputs[-1]}  # nothing is kept that no one reads
