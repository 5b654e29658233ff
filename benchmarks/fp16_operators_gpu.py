"""Which operators does TensorRT compute wrongly in FP16? Each alone in a strongly typed engine, against float64.

    python benchmarks/fp16_operators_gpu.py --out DIR        # on a machine with an NVIDIA GPU
    python benchmarks/fp16_operators_gpu.py --out DIR --no-engine --types float16     # references only, on a CPU
    python benchmarks/fp16_operators_gpu.py --table DIR      # the table of docs/fp16.md, from what a run wrote

Operands are numbers of the type that is tried, and true results are in its normal range; the reference is
`onnx.reference` in float64. Beside the engine stands the product's simulation: float32, rounded after every node.
Cases are in fp16_operator_cases.py. A case runs in a worker process, so that a crash loses no other one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from fp16_operator_cases import CASES, Case, model_of, not_arithmetic, rounded  # noqa: E402

WORKERS = 8
MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23}
SMALLEST_EXPONENT = {"float16": -14, "bfloat16": -126, "float32": -126}
LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38}
FAR_BELOW = 10.0  # dB


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a folder for the raw results")
    parser.add_argument("--table", type=Path, help="a folder with raw results; prints them as Markdown")
    parser.add_argument("--types", default="float16,bfloat16,float32")
    parser.add_argument("--seconds", type=float, default=240, help="no case is started after this")
    parser.add_argument("--no-engine", action="store_true", help="references and simulation only")
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
    elif options.worker is not None:
        for key in options.worker:
            name, kind = key.rsplit("@", 1)
            print(json.dumps({"starts": key}), flush=True)
            print(json.dumps(measure(name, kind, not options.no_engine)), flush=True)
    else:
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    """Share the cases among workers and write what they find."""
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + options.seconds
    with (options.out / "operators.jsonl").open("w") as lines:

        def work(keys: list[str]) -> None:
            while keys and time.monotonic() < until:
                command = [sys.executable, __file__, *(["--no-engine"] if options.no_engine else []), "--worker", *keys]
                left = until - time.monotonic()
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
                    out, said = done.stdout, f"worker ended with {done.returncode}: {done.stderr[-400:]}"
                except subprocess.TimeoutExpired as expired:
                    out, said = (expired.stdout or b"").decode(), "out of time"
                found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
                keys = keys[sum("starts" in one for one in found) :] if found else []
                results = [one for one in found if "starts" not in one]
                if found and "starts" in found[-1]:
                    name, kind = found[-1]["starts"].rsplit("@", 1)
                    results.append({"case": name, "type": kind, "builds": None, "error": said})
                if not found:
                    print(said, flush=True)
                for one in results:
                    lines.write(json.dumps(one) + "\n")
                lines.flush()

        for kind in options.types.split(","):
            keys = [f"{name}@{kind}" for name in CASES]
            with ThreadPoolExecutor(WORKERS) as pool:
                list(pool.map(work, [keys[i::WORKERS] for i in range(WORKERS)]))
    (options.out / "machine.json").write_text(json.dumps(machine(not options.no_engine), indent=1))
    print(table(options.out))


def machine(on_gpu: bool) -> dict[str, Any]:
    """Return what this was seen on, and what the parser says of each ONNX operator."""
    import onnx

    from validate.backends.gpu import local_gpu
    from validate.backends.tensorrt.library import find_builder

    library, builder = find_builder(None if on_gpu else "8.9", gpu=None)
    parser = library.trt.OnnxParser(builder.create_network(0), library.logger)
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
    known = [name for name in names if parser.supports_operator(name)]
    tried = {one for case in CASES.values() for one in case.operators()}
    return {
        "library": str(library),
        "gpu": str(local_gpu()),
        "driver": getattr(local_gpu(), "driver", None),
        "onnx": onnx.__version__,
        "known to the parser": known,
        "tried": sorted(tried),
        "known and not tried": sorted(set(known) - tried - not_arithmetic()),
    }


def measure(name: str, kind: str, engine: bool) -> dict[str, Any]:
    """Return one case's record: the engine's and the simulation's distance to float64."""
    case = CASES[name]
    feeds = {key: rounded(value, kind) for key, value in case.feeds.items()}
    record: dict[str, Any] = {"case": name, "group": case.group, "type": kind, "note": case.note}
    try:
        truth = reference(case, kind, feeds)
    except Exception as error:  # noqa: BLE001  a case that fails is a line of the table
        return record | {"builds": None, "error": f"reference: {type(error).__name__}: {error}"[:300]}
    for key, per_node in (("ideal", False), ("simulation", True)):
        try:
            record[key] = distance(simulate(case, kind, feeds, per_node), truth, kind)
        except Exception as error:  # noqa: BLE001
            record[f"{key}_error"] = f"{type(error).__name__}: {error}"[:300]
    if engine:
        try:
            found, layers = run_engine(case, kind, feeds)
            record |= {
                "builds": True,
                "engine": distance(found, truth, kind),
                "layers": layers,
                "first": [found.ravel()[:8].tolist(), truth.ravel()[:8].tolist()],
            }
        except Exception as error:  # noqa: BLE001
            record |= {
                "builds": type(error).__name__ != "RefusedError",
                "error": f"{type(error).__name__}: {error}"[:300],
            }
            if record["builds"]:
                record["builds"] = None
    return record


def reference(case: Case, kind: str, feeds: dict[str, Any]) -> Any:
    """Return the first output in float64."""
    if case.reference:
        return case.reference(**feeds, **{key: rounded(value, kind) for key, value in case.weights.items()})
    from onnx.reference import ReferenceEvaluator

    model = model_of(case, kind, computed_in="double")
    return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0], np.float64)


def simulate(case: Case, kind: str, feeds: dict[str, Any], per_node: bool) -> Any:
    """Return the first output computed in float32, rounded at the end or after every node."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    model = model_of(case, kind, computed_in="float", round_nodes=per_node)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    typed = {key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in feeds.items()}
    return rounded(np.asarray(session.run(None, typed)[0], np.float64), kind)


def run_engine(case: Case, kind: str, feeds: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return the engine's first output and the kinds of its layers."""
    import onnx

    from validate.backends.tensorrt.building import build_engine
    from validate.backends.tensorrt.engine import TensorRTEngine, deserialize
    from validate.backends.tensorrt.library import find_builder

    with tempfile.TemporaryDirectory() as folder:
        path, plan = Path(folder, "case.onnx"), Path(folder, "case.engine")
        onnx.save(model_of(case, kind, computed_in=kind), path)
        fingerprint = build_engine(path, plan)
        library, _ = find_builder(None, gpu=None)
        runnable = TensorRTEngine(library, deserialize(plan, library, fingerprint))
    typed = {key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in feeds.items()}
    found = runnable.run(typed)["y"]
    try:
        layers = [str(layer)[:160] for layer in runnable.layers()][:12]
    except (KeyError, ValueError, TypeError) as error:
        layers = [f"no layers: {error}"]
    return np.asarray(found, np.float64), layers


def distance(found: Any, truth: Any, kind: str) -> dict[str, Any]:
    """Return SQNR in dB, the worst error in units of the last place, and the share that is not finite.

    Only results that the type holds count: a true result beyond its range is no fault of the engine.
    """
    if found.shape != truth.shape:
        raise ValueError(f"shape {found.shape} is not {truth.shape}")
    counts = np.isfinite(truth) & (np.abs(truth) <= LARGEST[kind])
    truth, found = truth[counts], found[counts]
    finite = np.isfinite(found)
    normal = finite & (np.abs(truth) >= 2.0 ** SMALLEST_EXPONENT[kind])
    error = found[finite] - truth[finite]
    signal, noise = float(np.sum(truth[finite] ** 2)), float(np.sum(error**2))
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(truth), 1e-300))), SMALLEST_EXPONENT[kind])
    places = np.abs(found - truth) / 2.0 ** (exponent - MANTISSA_BITS[kind])
    return {
        "sqnr_db": None if noise == 0 or signal == 0 else round(10 * float(np.log10(signal / noise)), 1),
        "exact": noise == 0 and bool(finite.all()),
        "worst_ulp": round(float(places[normal].max()), 2) if normal.any() else None,
        "not_finite": round(float(1 - finite.mean()), 4) if finite.size else None,
        "counted": int(counts.sum()),
        "of": int(counts.size),
        "truth_range": [float(truth.min()), float(truth.max())] if truth.size else None,
    }


def is_bad(record: dict[str, Any], against: str) -> bool:
    """Whether an engine is far below what it is compared with, or is not finite where that is."""
    engine, other = record.get("engine"), record.get(against)
    if not engine or not other:
        return False
    if (engine["not_finite"] or 0) > (other["not_finite"] or 0):
        return True
    expected = 100.0 if other["exact"] else other["sqnr_db"]
    if engine["exact"] or expected is None:  # None: nothing is finite there either
        return False
    return engine["sqnr_db"] is None or expected - engine["sqnr_db"] > FAR_BELOW


def table(folder: Path) -> str:
    """Return the results as tables in Markdown, a group each."""
    records = [json.loads(line) for line in (folder / "operators.jsonl").read_text().splitlines()]
    lines: list[str] = []
    by_case = {(one["case"], one["type"]): one for one in records}
    for group in dict.fromkeys(case.group for case in CASES.values()):
        lines += [
            f"\n### {group}\n",
            "| operator: operands | FP16 engine | worst, ulp | not finite | simulation | BF16 engine | FP32 engine |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name in (name for name, case in CASES.items() if case.group == group):
            half, brain, single = (by_case.get((name, kind), {}) for kind in ("float16", "bfloat16", "float32"))
            mark = "**" if is_bad(half, "simulation") else ""
            label = f"{name}{': ' + CASES[name].note if CASES[name].note else ''}"
            cells = [
                label,
                f"{mark}{_db(half)}{mark}",
                _worst(half),
                _share(half),
                _db(half, "simulation"),
                _db(brain),
                _db(single),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _db(record: dict[str, Any], of: str = "engine") -> str:
    found = record.get(of)
    if not found:
        return (
            (
                "crashed"
                if "worker ended" in str(record.get("error"))
                else "refused"
                if record.get("builds") is False
                else "-"
            )
            if of == "engine"
            else "-"
        )
    if found["exact"]:
        return "exact"
    return "none" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"


def _worst(record: dict[str, Any]) -> str:
    found = record.get("engine")
    return "-" if not found or found["worst_ulp"] is None else f"{found['worst_ulp']:.6g}"


def _share(record: dict[str, Any]) -> str:
    found = record.get("engine")
    return "-" if not found else (f"{100 * found['not_finite']:.1f} %" if found["not_finite"] else "0")


if __name__ == "__main__":
    main()
