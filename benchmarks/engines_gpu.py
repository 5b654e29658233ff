"""Engines of real models on a GPU: accuracy of engine and simulation, their distance, INT8 that ran, and time.

    python benchmarks/engine_models.py models                 # anywhere: writes the models, their samples and configs
    python benchmarks/engines_gpu.py models/*                 # on a machine with an NVIDIA GPU and a TensorRT that runs
    python benchmarks/engines_gpu.py models/minilm --set quantization.fp32_scales=never

Every model goes through the whole job of `python -m calibrate run` (MLflow left out), and the table is made of its
results.json alone. The tables of the last run stand in docs/engines.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


from calibrate import pipeline  # noqa: E402
from calibrate.config import load  # noqa: E402
from calibrate.journal import Journal  # noqa: E402
from calibrate.output_folder import start_folder  # noqa: E402
from validate.exceptions import JobError  # noqa: E402
from validate.results import Baseline, Candidate, EngineRun, Latency, Results  # noqa: E402

HEADINGS = (
    "engine",
    "engine's metric",
    "simulation's",
    "drop",
    "same answers",
    "to float, dB",
    "to simulation, dB",
    "floor, dB",
    "INT8 ran",
    "us",
    "of FP16",
)


def main() -> None:
    """Run the job of every folder, and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="with a config.yaml each")
    parser.add_argument("--set", action="append", default=[], help="dotted.key=value, of every config")
    options = parser.parse_args()
    for folder in options.folders:
        print(f"\n## {' '.join([folder.name, *options.set])}\n", flush=True)
        try:
            print("\n".join(table(run(folder, options.set))), flush=True)
        except JobError as error:
            print(f"The job failed: {error}", flush=True)


def run(folder: Path, overrides: list[str]) -> Results:
    """Run the job of a folder, and write its output into the folder `run` in it."""
    output = folder / "run"
    start_folder(output)
    with Journal(Console(stderr=True), progress=False) as journal:
        return pipeline.run(load(folder / "config.yaml", overrides), output, " ".join(sys.argv), journal)


def table(results: Results) -> Iterator[str]:
    """Yield the lines of a table in Markdown: the float model's engines, then the candidates."""
    float_accuracy = results.reference.accuracy
    yield f"{results.verdict.decision.value}, {float_accuracy.metric} {float_accuracy.value:.4f} in float, "
    yield f"{float_accuracy.n} samples. {' '.join(f'{reason}.' for reason in results.verdict.reasons)}"
    yield ""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|{' --- |' * len(HEADINGS)}"
    fp16 = next((b.latency for b in results.baselines if b.name == "TensorRT FP16"), None)
    for one in (*results.baselines, *results.candidates):
        yield f"| {' | '.join((one.name, *_cells(one, fp16)))} |"
    yield ""
    for one in (*results.baselines, *results.candidates):
        if (said := _remark(one)) is not None:
            yield f"- {one.name}: {said}"


def _cells(one: Baseline | Candidate, fp16: Latency | None) -> Iterator[str]:
    engine, accuracy = one.engine, one.accuracy
    if engine is None or accuracy is None:
        yield from ["-"] * (len(HEADINGS) - 1)
        return
    yield f"{accuracy.value:.4f}"
    yield "-" if one.simulated is None else f"{one.simulated.value:.4f}"
    yield f"{accuracy.drop:.4f} [{accuracy.ci_low:.4f}, {accuracy.ci_high:.4f}]"
    yield "-" if engine.agreement is None else f"{100 * engine.agreement:.2f}%"
    yield from (_decibels(engine, name) for name in ("to_float_db", "to_simulation_db", "floor_db"))
    yield "-" if engine.int8 is None else f"{100 * engine.int8.share:.0f}% ({engine.int8.ran}/{engine.int8.planned})"
    yield "-" if one.latency is None else f"{1000 * one.latency.p50_ms:.0f}"
    yield "-" if one.latency is None or fp16 is None else f"{fp16.p50_ms / one.latency.p50_ms:.2f}x"


def _decibels(engine: EngineRun, name: str) -> str:
    """Return the lowest SQNR of all outputs."""
    values = [float(getattr(output, name)) for output in engine.outputs]
    return "-" if not values or any(map(math.isnan, values)) else f"{min(values):.1f}"


def _remark(one: Baseline | Candidate) -> str | None:
    """Return what is wrong with an engine; None where nothing is."""
    if isinstance(one, Candidate) and one.tensorrt_build.ok is False:
        return f"TensorRT does not build it: {one.tensorrt_build.message}"
    if isinstance(one, Baseline) and one.reason is not None:
        return one.reason
    if one.engine is not None and (departure := one.engine.departure) is not None:
        return f"{departure.detail}, first at {departure.node} ({departure.op_type})"
    return None


if __name__ == "__main__":
    main()
