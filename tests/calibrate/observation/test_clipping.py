"""The clipped share of activations on validation samples, against a count of the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from calibrate.observation.clipping import clipped_share
from validate.results import Results
from validate.results.samples import SampleTable
from validate.stats.histograms import Statistics

if TYPE_CHECKING:
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
