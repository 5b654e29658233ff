"""Runs the small engines of `tests/engine_cases.py` and records what they give: made tests/data/engines.

    python benchmarks/record_engines.py FOLDER

on a GPU. Per case a JSON file with what the inspector says and what each layer took, or why there is no engine, and an
NPZ file with the outputs of the engine (``plain/``), and outputs and inner tensors of a second one that was built to
show what fusion leaves (``unfused/``), by the names that the engine gives them. Values of
those that have no name of the ONNX graph and are finite are not kept; the JSON file names them.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.engine_cases import CASES, Models, models_of  # noqa: E402
from validate.backends import local_gpu, write_onnx  # noqa: E402
from validate.backends.tensorrt import BuildOptions, ShapeRanges, TensorRTBackend, TensorRTEngine, build_engine  # noqa: E402
from validate.exceptions import JobError  # noqa: E402


def record(name: str, folder: Path) -> None:
    """Record one case."""
    models = models_of(CASES[name])
    facts: dict[str, Any] = {"gpu": str(local_gpu())}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for debug in ("none", "unfused"):
        label = "plain" if debug == "none" else debug
        try:
            facts[label], found = _run(models, BuildOptions(tf32=CASES[name].tf32, debug=debug))
        except JobError as error:
            facts[label] = {"error": str(error)}
            continue
        kept = {tensor for tensor, array in found.items() if _tells(tensor, array, facts[label]["outputs"])}
        arrays |= {f"{label}/{tensor}": found[tensor] for tensor in sorted(kept)}
        facts[label]["finite"] = sorted(found.keys() - kept)
    (folder / f"{name}.json").write_text(json.dumps(facts, separators=(",", ":")) + "\n", encoding="utf-8")
    np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    print(name, {label: facts[label].get("error", "ran") for label in ("plain", "unfused")}, flush=True)


def _tells(tensor: str, values: np.ndarray[Any, Any], outputs: list[str]) -> bool:
    """Return whether values are kept: not of what is finite and has the engine's own name."""
    own = tensor.startswith("__") or not re.fullmatch(r".+\.\d+_myl\d+", tensor)
    return tensor in outputs or not own or not np.isfinite(values).all()


def _run(models: Models, options: BuildOptions) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    shapes = ShapeRanges()
    for batch in models.batches:
        shapes.add(batch.inputs)
    with tempfile.TemporaryDirectory() as name:
        file, engine = Path(name, "model.onnx"), Path(name, "model.engine")
        write_onnx(models.deployed, file)
        made = build_engine(file, engine, shapes.profile(fixed_batch=None), options)
        backend = TensorRTBackend(engine)
        runnable, silent = _showing(backend, models)
        outputs = [runnable.run(batch.inputs) for batch in models.batches]
        facts = {
            "library": f"{made.flavour} {made.version}",
            "outputs": list(backend.output_names),
            "tensors": backend.tensors,
            "silent": silent,
            "inspection": json.loads(runnable.inspection()),
            "times": runnable.layer_times(models.batches[0].inputs),
        }
    return facts, {tensor: np.concatenate([one[tensor] for one in outputs]) for tensor in outputs[0]}


def _showing(backend: TensorRTBackend, models: Models) -> tuple[TensorRTEngine, list[str]]:
    """Return the engine with all tensors that it shows, and the names of those that it does not show."""
    names = list(backend.tensors)
    try:
        backend.load(names).run(models.batches[0].inputs)
        silent: list[str] = []
    except JobError as error:
        silent = [name for name in names if re.search(rf"(tensor |, ){re.escape(name)}(,|;)", str(error))]
        if not silent:
            raise
    return backend.load([name for name in names if name not in silent]), silent


def main() -> None:
    """Record every case."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        record(name, folder)


if __name__ == "__main__":
    main()
