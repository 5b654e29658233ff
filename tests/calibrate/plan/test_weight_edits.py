"""Weight edits: a plan's file and its companion, and what `apply` makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from calibrate.graph import SWITCHES, apply, place, switchable
from calibrate.plan import QuantizationPlan, WeightEdit, write_cache
from validate.exceptions import JobError, UsageError

Array = NDArray[Any]

# Two layers read one weight, and one of them has no bias.
GRAPH = """
twins (float[N, 4] x, float[N, 4] y) => (float[N, 4] a, float[N, 4] b) {
    a = MatMul(x, w)
    m = Mul(y, half)
    b = Gemm(m, w)
}
"""


@pytest.fixture
def weight(normal: Callable[..., Array]) -> Array:
    return normal(4, 4)


@pytest.fixture
def model(prepared: Callable[..., ir.Model], weight: Array) -> ir.Model:
    made = prepared(GRAPH, w=weight, half=np.float32(0.5))
    for name, op_type in {"first": "MatMul", "second": "Gemm", "scaling": "Mul"}.items():
        next(node for node in made.graph if node.op_type == op_type).name = name
    return made


@pytest.fixture
def plan(model: ir.Model, make_plan: Callable[..., QuantizationPlan]) -> QuantizationPlan:
    return make_plan(place(model), 0.05)


FACTORS = np.float32([[1], [2], [4], [8]])
EDITS = [
    WeightEdit("second", 1, "multiply", FACTORS),
    WeightEdit("second", 2, "add", np.float32([1, 2, 3, 4])),
    WeightEdit("second", 2, "add", np.float32([0, 0, 0, -4])),
    WeightEdit("scaling", 1, "multiply", 1 / FACTORS[:, 0]),
]


class TestApply:
    def test_the_float_model_computes_with_the_edited_weights(
        self, model: ir.Model, plan: QuantizationPlan, weight: Array, run: Callable[..., dict[str, Array]]
    ) -> None:
        """Also what another node reads of a shared weight is what it was, and factors that undo one another do."""
        given = {"x": np.float32(np.eye(4)), "y": np.float32([[1, -2, 3, 4]])}
        layers = dict.fromkeys(plan.layers, "fp32")
        edited = plan.model_copy(update={"layers": layers}).with_weight_edits(EDITS)
        before = {name: v.const_value.numpy().copy() for name, v in model.graph.initializers.items() if v.const_value}
        found = run(apply(edited, model, place(model)), **given)
        np.testing.assert_array_equal(found["a"], weight)
        np.testing.assert_allclose(found["b"], 0.5 * given["y"] @ weight + np.float32([1, 2, 3, 0]), rtol=1e-5)
        after = {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value}
        assert before.keys() == after.keys()  # `apply` changes no model that it is given
        assert all(np.array_equal(before[name], after[name]) for name in before)

    def test_it_is_the_edited_weight_that_is_quantized(
        self, model: ir.Model, plan: QuantizationPlan, weight: Array, run: Callable[..., dict[str, Array]]
    ) -> None:
        deployed = apply(plan.with_weight_edits(EDITS), model, place(model))
        codes = [v.const_value.numpy() for v in deployed.graph.initializers.values() if v.dtype == ir.DataType.INT8]
        expected = []
        for float32 in (weight, weight * FACTORS):
            scale = np.abs(float32).max(axis=0) / np.float32(127)
            expected.append(np.clip(np.rint(float32 / scale), -128, 127).astype(np.int8))
        found = [code for code in codes if code.ndim == 2]
        assert len(found) == 2
        assert all(any(np.array_equal(code, each) for code in found) for each in expected)

    def test_the_model_with_switches_computes_the_same(
        self,
        model: ir.Model,
        plan: QuantizationPlan,
        normal: Callable[..., Array],
        run: Callable[..., dict[str, Array]],
    ) -> None:
        edited, placement = plan.with_weight_edits(EDITS), place(model)
        given = {"x": normal(3, 4), "y": normal(3, 4)}
        switches = np.ones(len(placement.layers), bool)
        switched = run(switchable(model, placement, edited), **given, **{SWITCHES: switches})
        simulated = run(apply(edited, model, placement, simulate=True), **given)
        for name in ("a", "b"):
            np.testing.assert_array_equal(switched[name], simulated[name])

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (WeightEdit("third", 1, "add", np.float32(1)), "input 1 of node third, which the model does not have"),
            (WeightEdit("second", 0, "add", np.float32(1)), "input 0 of node second, which is not a constant"),
            (WeightEdit("second", 2, "multiply", np.float32(1)), "there is no constant to be multiplied"),
            (WeightEdit("second", 1, "add", np.zeros(3, np.float32)), "could not be broadcast together"),
            (
                WeightEdit("second", 1, "add", np.zeros((2, 4, 4), np.float32)),
                r"shape \(4, 4\) would become \(2, 4, 4\)",
            ),
        ],
    )
    def test_an_edit_of_what_is_not_there_is_a_sentence(
        self, model: ir.Model, plan: QuantizationPlan, edit: WeightEdit, message: str
    ) -> None:
        with pytest.raises(JobError, match=f"plan plan edits .*{message}"):
            apply(plan.with_weight_edits([edit]), model, place(model))

    def test_values_that_are_not_finite_are_refused(self) -> None:
        with pytest.raises(ValueError, match="input 1 of node second holds values that are not finite"):
            WeightEdit("second", 1, "multiply", np.float32([1, np.inf]))


class TestFile:
    def test_what_is_read_is_what_was_written(self, plan: QuantizationPlan, tmp_path: Path) -> None:
        edited = plan.with_weight_edits(EDITS)
        edited.write(tmp_path / "plan.json")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.weights.npz"]
        read = QuantizationPlan.read(tmp_path / "plan.json")
        assert (read, read.hash) == (edited, edited.hash)
        for found, given in zip(read.weight_edits, EDITS, strict=True):
            assert (found.node, found.input, found.operation) == (given.node, given.input, given.operation)
            np.testing.assert_array_equal(found.values, given.values)
        assert json.loads((tmp_path / "plan.json").read_text())["weight_edits"] == edited.weight_edits.sha256

    def test_a_plan_without_edits_is_what_it_was(self, plan: QuantizationPlan, tmp_path: Path) -> None:
        plan.write(tmp_path / "plan.json")
        assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
        assert "weight_edits" not in json.loads((tmp_path / "plan.json").read_text())
        assert plan.with_weight_edits([]).hash == plan.hash

    def test_the_hash_of_a_plan_from_before(self, plan: QuantizationPlan) -> None:
        """As the version before weight edits computed it of the same plan."""
        assert plan.hash == "5b4e93a1134b76f21a7c755d9bf0d6d6c7718d882265f98cd48e28481be89f40"

    def test_every_part_of_an_edit_is_in_the_hash(self, plan: QuantizationPlan) -> None:
        values = np.float32([1, 2])
        edits = [
            WeightEdit("a", 1, "add", values),
            WeightEdit("b", 1, "add", values),
            WeightEdit("a", 2, "add", values),
            WeightEdit("a", 1, "multiply", values),
            WeightEdit("a", 1, "add", values[:, None]),
            WeightEdit("a", 1, "add", values + 1),
        ]
        plans = [plan, *(plan.with_weight_edits([edit]) for edit in edits), plan.with_weight_edits(edits[:2])]
        plans.append(plan.with_weight_edits(edits[1::-1]))
        assert len({each.hash for each in plans}) == len(plans)
        assert plans[1] != plans[2]

    def test_without_its_companion_it_is_refused(self, plan: QuantizationPlan, tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        plan.with_weight_edits(EDITS).write(path)
        companion = tmp_path / "plan.weights.npz"
        content = companion.read_bytes()
        companion.write_bytes(content[: len(content) // 2])
        with pytest.raises(JobError, match=r"plan\.weights\.npz cannot be read, and plan .*plan\.json needs it"):
            QuantizationPlan.read(path)
        other = tmp_path / "other.json"
        plan.with_weight_edits(EDITS[:1]).write(other)
        (tmp_path / "other.weights.npz").replace(companion)
        with pytest.raises(JobError, match=r"does not hold the weight edits of plan .*plan\.json; copy both files"):
            QuantizationPlan.read(path)
        companion.unlink()
        with pytest.raises(JobError, match=r"plan\.weights\.npz, which holds .*, is not there; keep both together"):
            QuantizationPlan.read(path)

    def test_a_flipped_bit_is_found(self, plan: QuantizationPlan, tmp_path: Path) -> None:
        path, companion = tmp_path / "plan.json", tmp_path / "plan.weights.npz"
        plan.with_weight_edits(EDITS).write(path)
        content = companion.read_bytes()
        for position in range(0, len(content), 7):
            companion.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            try:
                read = QuantizationPlan.read(path)
            except JobError:
                continue
            assert read == plan.with_weight_edits(EDITS)  # the bit was in what a zip file does not use

    def test_in_float_the_weights_are_the_models(self, plan: QuantizationPlan) -> None:
        assert not plan.with_weight_edits(EDITS).in_float("fp16", "FP16").weight_edits
        assert plan.with_weight_edits(EDITS).with_layers(frozenset(), "fp16", "back").weight_edits

    def test_a_calibration_cache_cannot_hold_them(self, plan: QuantizationPlan, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="edits weights, which a calibration cache cannot hold"):
            write_cache(plan.with_weight_edits(EDITS), tmp_path / "calibration.cache", "8.6.1")
