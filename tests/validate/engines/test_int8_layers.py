"""Layers that ran in INT8, counted by hand in what EngineInspector said on an H200, and in kernels made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine_cases import CASES, Recording, models_of
from validate.backends.tensorrt import Layer
from validate.engines import int8_in_engine, quantized_layers, reformat_nodes

MACS = {"q": 4096.0, "k": 4096.0, "v": 4096.0, "o": 4096.0, "up": 32768.0, "down": 32768.0, "head": 320.0}
PRODUCT = Layer("a_myl0", "gemm", ("a", "x/DequantizeLinear/a"), ("x_q",), ("y",), ("Half",), ("",), ("Int8",))


@pytest.mark.parametrize("name", ["encoder-int8", "encoder-int8-fp32-scales", "encoder-int8-fp32"])
def test_every_layer_ran_in_int8(name):
    engine, models = Recording(name, "plain"), models_of(CASES[name])
    found = int8_in_engine(engine.layers, models.planned, MACS, reformat_nodes(models.deployed), engine.facts["times"])
    assert (found.planned, found.ran, found.share, found.not_run) == (7, 7, 1.0, []), "Q, K and V are one kernel"
    assert found.stray_kernels == 1, "what quantizes the input"
    assert found.stray_ms == engine.facts["times"][engine.layers[1].name]
    assert found.total_ms == pytest.approx(sum(engine.facts["times"].values()))


def test_an_engine_in_fp32_throughout():
    engine = Recording("encoder-tf32", "plain")
    found = int8_in_engine(engine.layers, list(MACS), MACS, [])
    assert (found.ran, found.share, found.stray_ms) == (0, 0.0, None)
    assert found.not_run == ["down", "up", "k", "o", "q", "v", "head"], "the largest first"


def test_layers_of_the_file_are_those_of_the_plan():
    models = models_of(CASES["encoder-int8-fp32-scales"])
    assert quantized_layers(models.deployed) == models.planned == MACS.keys()
    assert quantized_layers(models.reference) == frozenset()


@pytest.mark.parametrize(
    ("kernels", "ran"),
    [
        ([PRODUCT], 1),
        ([replace(PRODUCT, input_types=("Int8", "Half"))], 1),  # with a residual
        ([replace(PRODUCT, input_types=("Half", "Int8"))], 0),  # only its weights are INT8
        ([replace(PRODUCT, input_types=("Half",))], 0),
        ([replace(PRODUCT, kind="kgen")], 1),  # an attention that TensorRT generated
        # what dequantizes for a product in FP16 reads INT8, and names the product
        ([replace(PRODUCT, kind="kgen"), replace(PRODUCT, input_types=("Half",))], 0),
        # what scales the product
        ([PRODUCT, replace(PRODUCT, kind="kgen", input_types=("Float",))], 1),
        ([replace(PRODUCT, nodes=("b",))], 0),
        ([], 0),
    ],
)
def test_which_kernel_decides(kernels, ran):
    assert int8_in_engine(kernels, ["a"], {"a": 1.0}, []).ran == ran


def test_stray_kernels():
    quantizes = Layer("q", "kgen", ("x/QuantizeLinear",), ("x",), ("x_q",), ("Int8",), ("",), ("Half",))
    moves = replace(quantizes, name="m", kind="Reformat", nodes=())
    shapes = replace(quantizes, name="s", kind="shape_call", nodes=(), inputs=())
    computes = replace(quantizes, name="c", nodes=("norm", "x/QuantizeLinear"))
    times = {"q": 1.0, "m": 2.0, "s": 4.0, "c": 8.0}
    found = int8_in_engine([quantizes, moves, shapes, computes], [], {}, ["x/QuantizeLinear"], times)
    assert (found.stray_kernels, found.stray_ms, found.total_ms) == (2, 3.0, 15.0)
