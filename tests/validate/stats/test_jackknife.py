"""Intervals of metrics that are functions of all samples: against a bootstrap by hand, theory, and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from validate.stats.intervals import paired_interval, tango_interval
from validate.stats.jackknife import drop_interval, projected_drop_interval, value_interval
from validate.tasks.base import Metric, ratio_of_sums
from validate.tasks.detection import Detection
from validate.tasks.embedding import SentenceEmbedding
from validate.tasks.segmentation import Segmentation
from validate.tasks.tokens import TokenLoss

Floats = NDArray[np.float64]
RATIO = Metric("rate", higher_is_better=False, is_rate=True, aggregate=ratio_of_sums)
MIOU = Segmentation(4).metric
PERPLEXITY = TokenLoss("masked_lm", "perplexity").metric
SPEARMAN = SentenceEmbedding().metric


def tokens(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Return records (loss, tokens) of two models on n sequences; the second loses 0.05 nats a token on average."""
    lengths = rng.integers(5, 60, n).astype(float)
    base = rng.gamma(4, 0.5, n)
    worse = base + rng.normal(0.05, 0.2, n)
    return np.c_[base * lengths, lengths], np.c_[worse * lengths, lengths]


def correlated(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    human = rng.normal(size=n)
    first = human + rng.normal(0, 0.6, n)
    second = first + rng.normal(0, 0.3, n)
    zeros = np.zeros(n)
    return np.c_[first, human, zeros], np.c_[second, human, zeros]


def images(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Return records of 4 classes: how much of each an image has differs, and so does how well it is found."""
    there = rng.gamma(1, 100, (n, 4)) * (rng.uniform(size=(n, 4)) < [1, 0.9, 0.7, 0.6])
    quality = rng.beta(8, 2, (n, 4))
    worse = np.clip(quality - np.abs(rng.normal(0.02, 0.05, (n, 4))), 0, 1)
    return np.c_[there * quality, there], np.c_[there * worse, there]


STUDIES: dict[str, tuple[Metric, Any]] = {
    "perplexity": (PERPLEXITY, tokens),
    "spearman": (SPEARMAN, correlated),
    "miou": (MIOU, images),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_interval_is_close_to_that_of_a_bootstrap(name: str) -> None:
    """scipy's BCa, on samples that are really drawn: another method, which agrees where samples are many."""
    metric, make = STUDIES[name]
    reference, candidate = make(np.random.default_rng(0), 400)
    found = drop_interval(metric, reference, candidate, 0.9)

    def drop(indices: Any) -> float:
        return metric.drop(reference[indices], candidate[indices])

    expected = stats.bootstrap(
        (np.arange(400),), drop, vectorized=False, confidence_level=0.9, n_resamples=2000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert found.method == "score of jackknife pseudo-values"
    assert found.low == pytest.approx(expected.low, abs=0.15 * width)
    assert found.high == pytest.approx(expected.high, abs=0.15 * width)
    assert found.low < metric.drop(reference, candidate) < found.high


def test_pairing_is_what_makes_it_narrow() -> None:
    rng = np.random.default_rng(0)
    reference, candidate = tokens(rng, 200)
    paired = drop_interval(PERPLEXITY, reference, candidate, 0.95)
    other = drop_interval(PERPLEXITY, reference, candidate[rng.permutation(200)], 0.95)
    assert (paired.high - paired.low) < 0.5 * (other.high - other.low)


def test_where_all_weigh_the_same_a_ratio_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    scores = rng.gamma(2, 1, (2, 150))
    mean = paired_interval(scores[1] - scores[0], 0.95)
    ratio = drop_interval(RATIO, np.c_[scores[0], np.ones(150)], np.c_[scores[1], np.ones(150)], 0.95)
    assert (ratio.low, ratio.high) == pytest.approx((mean.low, mean.high), abs=0.02)


def test_a_mean_has_the_interval_of_the_gate() -> None:
    metric = Metric("top1", higher_is_better=True, is_rate=True)
    a, b = np.random.default_rng(0).integers(0, 2, (2, 60)).astype(float)
    assert drop_interval(metric, a, b, 0.95) == paired_interval(a - b, 0.95, bound=1)


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_is_known_of_few_samples_equal_models_or_no_numbers(name: str) -> None:
    metric, make = STUDIES[name]
    reference, candidate = make(np.random.default_rng(0), 110)
    broken = candidate.copy()
    broken[7] = math.nan
    alike = [] if metric.is_rate else [(reference, reference)]
    for a, b in [(reference[:99], candidate[:99]), (reference, broken), (reference[:0],) * 2, *alike]:
        found = drop_interval(metric, a, b, 0.95)
        assert (found.low, found.high, found.method) == (-math.inf, math.inf, "none")


def test_it_is_the_same_every_time_and_wider_with_more_confidence() -> None:
    reference, candidate = tokens(np.random.default_rng(0), 100)
    found = [drop_interval(PERPLEXITY, reference, candidate, c) for c in (0.9, 0.9, 0.99)]
    assert found[0] == found[1]
    assert found[2].low < found[0].low and found[0].high < found[2].high


def test_a_projected_interval_shrinks_with_the_root_of_the_samples() -> None:
    reference, candidate = tokens(np.random.default_rng(0), 100)
    now = drop_interval(PERPLEXITY, reference, candidate, 0.95)
    later = projected_drop_interval(PERPLEXITY, reference, candidate, 0.95, 400)
    assert later.high - later.low == pytest.approx((now.high - now.low) / 2)
    same = projected_drop_interval(PERPLEXITY, reference, candidate, 0.95, 100)
    assert (same.low, same.high) == pytest.approx((now.low, now.high))


def test_map_has_an_interval_of_images() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 50, (120, 5, 2))
    labels = [{"bbox": np.hstack([b, np.full((5, 2), 10.0)]).tolist(), "category": [0, 0, 1, 1, 1]} for b in boxes]

    def answers(noise: float) -> dict[str, NDArray[Any]]:
        moved = boxes + rng.normal(0, noise, boxes.shape)
        scores, classes = rng.uniform(0.3, 1, (120, 5, 1)), np.tile([[0], [0], [1], [1], [1]], (120, 1, 1))
        return {"output": np.concatenate([moved, moved + 10, scores, classes], axis=2)}

    task = Detection(2)
    reference, candidate = task.scores(answers(0.3), labels), task.scores(answers(1.0), labels)
    found, drop = drop_interval(task.metric, reference, candidate, 0.95), task.metric.drop(reference, candidate)
    assert 0 < found.low < drop < found.high < 1
    assert value_interval(task.metric, reference, 0.95).low > value_interval(task.metric, candidate, 0.95).high


def test_wilsons_interval_of_a_share() -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263 gives 0.2553 to 0.3662."""
    metric = Metric("top1", higher_is_better=True, is_rate=True)
    found = value_interval(metric, np.repeat([1.0, 0.0], [81, 263 - 81]), 0.95)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def edits(rng: np.random.Generator, n: int, share: float = 0.04) -> tuple[Floats, Floats]:
    """Return records (edits, characters) of lines of which a small share differs, mostly for the worse."""
    lengths, base = rng.integers(5, 40, n), rng.binomial(3, 0.2, n)
    more = (rng.uniform(size=n) < share) * (1 + rng.poisson(1, n))
    fewer = (rng.uniform(size=n) < share / 2) * np.minimum(base, 1)
    return np.c_[base, lengths].astype(float), np.c_[base + more - fewer, lengths].astype(float)


def test_a_rate_that_nothing_changes_is_as_sure_as_a_mean_that_nothing_changes() -> None:
    """Lines of one length are 0/1 answers with other names: Tango's interval of 200 pairs of which none differs."""
    right = np.c_[np.repeat([10.0, 0.0], [150, 50]), np.full(200, 10.0)]
    metric = Metric("accuracy", higher_is_better=True, is_rate=True, aggregate=ratio_of_sums)
    found = drop_interval(metric, right, right, 0.95)
    assert (found.low, found.high) == pytest.approx(tango_interval(0, 0, 200, 0.95), rel=0.04)  # Student's t, not z


def test_few_lines_that_differ_leave_much_open() -> None:
    """More than three samples that lose as much as those that did could have been missed; that is not infinite."""
    records = np.c_[np.zeros(400), np.full(400, 10.0)]
    highs = []
    for differing in (0, 1, 2, 3, 8):
        worse = records.copy()
        worse[:differing, 0] = 3
        highs.append(drop_interval(RATIO, records, worse, 0.95).high)
    assert all(high > 0.005 + 0.3 * differing / 400 for differing, high in zip((0, 1, 2, 3, 8), highs, strict=True))
    assert max(highs) < 0.02


@pytest.mark.parametrize("share", [0.01, 0.04])
def test_a_drop_is_rarely_above_the_interval_where_few_lines_differ(share: float) -> None:
    """The side of a false GO: 2.5% are allowed (three standard errors are 1.9)."""
    truth = RATIO.drop(*edits(np.random.default_rng(10**6), 400_000, share))
    studies = [edits(np.random.default_rng(study), 150, share) for study in range(600)]
    above = sum(truth > drop_interval(RATIO, *study, 0.95).high for study in studies)
    assert above / 600 <= 0.035


@pytest.mark.parametrize("name", STUDIES)
def test_intervals_cover_the_true_drop_as_often_as_they_say(name: str) -> None:
    """600 simulated studies of 150 samples: 95% intervals cover 92.5 to 97.5% (three standard errors are 2.7)."""
    metric, make = STUDIES[name]
    truth = metric.drop(*make(np.random.default_rng(10**6), 400_000))
    covered = 0
    for study in range(600):
        found = drop_interval(metric, *make(np.random.default_rng(study), 150), 0.95)
        covered += found.low <= truth <= found.high
    assert 0.925 <= covered / 600 <= 0.975, covered / 600
