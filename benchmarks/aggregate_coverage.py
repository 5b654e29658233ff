"""How often the intervals of `validate.stats.jackknife` hold the truth, in simulated studies: docs/significance.md.

    python benchmarks/aggregate_coverage.py                 # 1,000 studies in each setting; six minutes on two cores
    python benchmarks/aggregate_coverage.py --bootstrap     # the same of scipy's BCa bootstrap

The metrics are no means: a study draws records of n samples (errors and characters of a line, intersections and unions
of an image, ...) of both models. The true drop is that of a very large study. 95% intervals; what is missed below is a
false GO, as in interval_coverage.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
Records = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Records, Records]]
STUDIES, SIZES, CONFIDENCE = 1000, (60, 100, 200, 400), 0.95
_RESAMPLES = 1999  # of scipy's bootstrap


def lines(rng: np.random.Generator, n: int) -> tuple[Records, Records]:
    """Errors and characters of lines, a quarter of which are read otherwise in int8."""
    length = rng.integers(5, 30, n).astype(float)
    errors = rng.binomial(length.astype(int), 0.05).astype(float)
    more = np.where(rng.random(n) < 0.25, rng.integers(-2, 5, n), 0)
    return np.c_[errors, length], np.c_[np.maximum(errors + more, 0), length]


def tags(rng: np.random.Generator, n: int, share: float) -> tuple[Records, Records]:
    """Tokens that are tagged right, and all tokens, of sentences; a share of them loses up to three."""
    length = rng.integers(5, 60, n).astype(float)
    right = rng.binomial(length.astype(int), 0.95).astype(float)
    lost = np.where(rng.random(n) < share, rng.integers(1, 4, n), 0)
    return np.c_[right, length], np.c_[np.maximum(right - lost, 0), length]


def texts(rng: np.random.Generator, n: int, ruined: float) -> tuple[Records, Records]:
    """Loss and tokens of texts; int8 changes all a little, and a share of them by half a nat per token."""
    length, loss = rng.integers(5, 60, n).astype(float), rng.gamma(4, 0.6, n)
    more = rng.normal(0.02, 0.05, n) + 0.5 * (rng.random(n) < ruined)
    return np.c_[loss * length, length], np.c_[(loss + more) * length, length]


def masks(rng: np.random.Generator, n: int, evenness: float) -> tuple[Records, Records]:
    """Intersections and unions of six classes; with little evenness, a class has many pixels in few images."""
    size = rng.dirichlet(np.full(6, evenness), n) * 1e4
    share = rng.beta(8, 2, (n, 6))
    worse = np.clip(share - rng.exponential(0.02, (n, 6)) + 0.005, 0, 1)
    first, second = (np.c_[size * x, size + size * (1 - x) * 0.5] for x in (share, worse))
    return first, second


def one_class(rng: np.random.Generator, n: int) -> tuple[Records, Records]:
    """Intersections and unions of one class of the last."""
    first, second = masks(rng, n, 0.3)
    return first[:, [0, 6]], second[:, [0, 6]]


def pairs(rng: np.random.Generator, n: int) -> tuple[Records, Records]:
    """Similarity and human score of pairs of sentences."""
    human, none = rng.normal(size=n), np.zeros(n)
    first = human + rng.normal(0, 0.6, n)
    return np.c_[first, human, none], np.c_[first + rng.normal(0, 0.3, n), human, none]


def squares(rng: np.random.Generator, n: int) -> tuple[Records, Records]:
    """Squared errors of a regression, a fifth of which are larger in int8."""
    error = rng.exponential(1, n)
    return error[:, None], (error * (1 + 0.2 * (rng.random(n) < 0.2)))[:, None]


def settings() -> dict[str, tuple[Any, Draw]]:
    """Return the metric and the draw of each setting."""
    from validate.tasks import Regression, Segmentation, SentenceEmbedding, TextRecognition, TokenAccuracy, TokenLoss

    accuracy, perplexity = TokenAccuracy("").metric, TokenLoss("", "perplexity").metric
    return {
        "character error rate": (TextRecognition(["", "a"], metric="character_error_rate").metric, lines),
        "token accuracy, 5% differ": (accuracy, partial(tags, share=0.05)),
        "token accuracy, 1% differ": (accuracy, partial(tags, share=0.01)),
        "perplexity": (perplexity, partial(texts, ruined=0)),
        "perplexity, 3% ruined": (perplexity, partial(texts, ruined=0.03)),
        "mIoU, even classes": (Segmentation(6).metric, partial(masks, evenness=2)),
        "mIoU, uneven classes": (Segmentation(6).metric, partial(masks, evenness=0.3)),
        "IoU of one class": (Segmentation(1).metric, one_class),
        "Spearman": (SentenceEmbedding().metric, pairs),
        "RMSE": (Regression("rmse").metric, squares),
    }


def study(name: str, n: int, seed: int, bootstrap: bool) -> tuple[float, float]:
    """Return the interval of one study."""
    metric, draw = settings()[name]
    reference, candidate = draw(np.random.default_rng([n, seed]), n)
    if bootstrap:
        return _bootstrap(metric, reference, candidate)
    from validate.stats import drop_interval

    found = drop_interval(metric, reference, candidate, CONFIDENCE)
    return found.low, found.high


def _bootstrap(metric: Any, reference: Records, candidate: Records) -> tuple[float, float]:
    from scipy import stats

    n = len(reference)

    def drops(indices: NDArray[np.intp], axis: int = -1) -> NDArray[np.float64]:
        rows = indices.reshape(-1, indices.shape[-1])
        counts = np.bincount((rows + n * np.arange(len(rows))[:, None]).ravel(), minlength=n * len(rows))
        weights = counts.reshape(-1, n).astype(float)
        found = metric.worsening(metric.values(reference, weights), metric.values(candidate, weights))
        return np.asarray(found.reshape(indices.shape[:-1]))

    found = stats.bootstrap(
        (np.arange(n),),
        drops,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def main() -> None:
    """Print the table: missed below / missed above in percent, by the number of samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bootstrap", action="store_true", help="scipy's BCa in place of ours")
    parser.add_argument("--studies", type=int, default=STUDIES)
    options = parser.parse_args()
    print(f"| metric | {' | '.join(f'{n} samples' for n in SIZES)} |\n| --- |{' ---: |' * len(SIZES)}")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name, (metric, draw) in settings().items():
            large = 20_000 if name == "Spearman" else 300_000
            truth = np.mean([metric.drop(*draw(np.random.default_rng(seed), large)) for seed in range(3)])
            cells = []
            for n in SIZES:
                each = partial(study, name, n, bootstrap=options.bootstrap)
                low, high = np.array(list(pool.map(each, range(options.studies), chunksize=20))).T
                cells.append(f"{100 * (high < truth).mean():.1f} / {100 * (low > truth).mean():.1f}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
