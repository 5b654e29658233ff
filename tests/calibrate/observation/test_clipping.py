"""The clipped share of activations on validation samples, against a count of the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from calibrate.graph import nodes_with_fp32_scales, place
from calibrate.loading import FloatModel
from calibrate.observation.clipping import _worst, clipped_share
from validate.results import ModelInfo, Results
from validate.results.samples import SampleTable
from validate.stats.histograms import Statistics

if TYPE_CHECKING:
    from tests.calibrate.conftest import MakePlan
    from tests.conftest import Job


@pytest.mark.parametrize("scale", [0.001, 0.01, 0.02, 0.05, 1.0])
def test_against_a_count_of_the_values(scale: float) -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    statistics = Statistics()
    for part in np.array_split(values, 7):
        statistics.update(part)
    counted = float((np.abs(values) > 127.5 * scale).mean())
    limit = 127.5 * scale // statistics.width * statistics.width
    in_the_bin = float(((np.abs(values) >= limit) & (np.abs(values) <= 127.5 * scale)).mean())
    assert counted <= clipped_share(statistics, scale) <= counted + in_the_bin + 1e-12


def test_a_scale_of_the_largest_value_clips_nothing() -> None:
    statistics = Statistics()
    statistics.update(np.array([-3.0, 0.5, 2.0], np.float32))
    assert clipped_share(statistics, 3.0 / 127) == 0.0


def test_it_is_counted_by_the_scale_that_the_file_has(
    prepared: Callable[..., ir.Model], make_plan: MakePlan, tmp_path: Path
) -> None:
    """FP16 holds 1.1e-5 / 127 = 8.7e-8 as 6e-8, so that all beyond 7.6e-6 is clipped."""
    values = np.linspace(0, 1.1e-5, 1001).astype(np.float32)
    statistics = Statistics()
    statistics.update(values)
    graph = "g (float[N, 2] x) => (float[N, 2] y) { [product] y = MatMul(x, w) }"
    model = prepared(graph, w=np.eye(2, dtype=np.float32))
    placement = place(model)
    info = ModelInfo(path="m.onnx", sha256="0" * 64, nodes=1, parameters=4)
    loaded = FloatModel(info, tmp_path / "m.onnx", model, placement)
    plan = make_plan(placement, scales=1.1e-5 / 127, float_precision="fp16")
    counted = float((values > 127.5 * np.float16(2**-24)).mean())
    assert _worst(plan, loaded, {"x": statistics}, 1).share == pytest.approx(counted, abs=0.01)
    assert counted > 0.3
    kept = nodes_with_fp32_scales(plan, model, placement, everywhere=False)
    assert _worst(plan.model_copy(update={"fp32_scales": kept}), loaded, {"x": statistics}, 1).share == 0


def test_a_run_counts_it_where_the_policy_asks(new_job: Callable[[], Job]) -> None:
    """An outlier that only a validation sample has is beyond the scale of the model's input."""
    job = new_job()
    job.config["data"]["validation"]["arguments"] |= {"n": 40, "outlier_at": 7}
    job.config["data"]["slice"] = "label"
    overrides = ("policy.max_clipped_share=0.0", "policy.max_overlap=0", "fallback.evaluations=0")
    completed = job.run(*overrides)
    assert completed.returncode == 1, completed.stderr
    results = Results.read(job.output / "results.json")
    clipping = results.candidates[0].clipping
    assert clipping is not None
    assert (clipping.split, clipping.samples) == ("validation", 40)
    assert clipping.share * 40 * 3 * 16 * 16 >= 1  # at least the outlier itself, if no other activation is worse

    rules = {rule.name: rule for rule in results.verdict.rules}
    assert rules["clipped activations"].outcome == "fail"
    assert rules["clipped activations"].value == clipping.share > 0
    assert clipping.tensor in rules["clipped activations"].message
    assert rules["calibration leakage"].value == 0
    assert results.overlap == 0
    samples = SampleTable.read(job.output / "samples.parquet")
    assert list(samples.labels) == list(samples.slices) == [str(i % 5) for i in range(40)]
    assert len(set(samples.contents)) == 40
    accuracy = results.candidates[0].accuracy
    assert samples.reference.mean() == pytest.approx(results.reference.accuracy.value)
    assert samples.candidates["minmax"].mean() == pytest.approx(accuracy.value)


def test_a_sample_in_both_sets_is_counted(new_job: Callable[[], Job]) -> None:
    job = new_job()
    job.config["data"]["validation"]["arguments"] = {"n": 40, "seed": 1}  # the first 30 are the calibration set
    completed = job.run("data.allow_overlap=true", "policy.max_overlap=5", "fallback.evaluations=0")
    assert completed.returncode == 1, completed.stderr
    results = Results.read(job.output / "results.json")
    assert results.overlap == 30
    assert results.verdict.rules[-1].name == "calibration leakage"
    assert results.verdict.rules[-1].outcome == "fail"
