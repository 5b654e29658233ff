"""Records of the runs that are logged to MLflow, as data.

All candidates and trials have the same parameters, and the same metrics as far as they were measured, so that
MLflow's own pages compare them, across jobs too. A record does not depend on when or how often it is sent.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from reports import format as fmt
from validate.backends import PLAN_KEY, read_onnx
from validate.exceptions import JobError
from validate.results import Candidate, CandidateAccuracy, EngineRun, LayerError, Results, Trial

__all__ = ["JobRecord", "Measurement", "RunRecord", "job_record"]

FILES = (
    "results.json",
    "plan.json",
    "plan.weights.npz",
    "statistics.npz",
    "samples.parquet",
    "illustrations.json",
    "report.html",
)
"""Artifacts of the job's run, as far as the files exist. `reports.release` finds them by these names."""
MODEL = "model.int8.onnx"
TABLES_TAG = "mlflow.loggedArtifacts"
"""Tag that lists the artifacts that MLflow shows as tables; `mlflow.log_table` sets it."""
_LONGEST_PARAM, _LONGEST_TAG, _LONGEST_KEY = 6000, 8000, 250  # more is refused: mlflow/utils/validation.py


class Measurement(NamedTuple):
    """A metric with a finite value; `step` is the depth of a layer, else 0."""

    key: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class RunRecord:
    """Record of one MLflow run.

    Attributes:
        name: of the run.
        plan: hash of the run's plan; empty for the run of the job.
        tags, params, metrics: of the run.
        texts: content of text artifacts, by file name.
    """

    name: str
    plan: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[Measurement]
    texts: dict[str, str]


@dataclass(frozen=True)
class JobRecord:
    """Record of a job: its run, and the runs nested in it.

    Attributes:
        key: identifies the job; it depends on the results alone.
        version: hash of the results; it changes where they are judged again.
        started_ms, ended_ms: milliseconds since the epoch.
        job: the run of the job.
        plans: the runs of its candidates and trials.
        data: `Results.data`.
        files: artifacts of the job's run that exist.
        model: ONNX file of the selected candidate; None where it does not exist.
    """

    key: str
    version: str
    started_ms: int
    ended_ms: int
    job: RunRecord
    plans: list[RunRecord]
    data: dict[str, Any]
    files: list[Path]
    model: Path | None


def job_record(results: Results, folder: Path) -> JobRecord:
    """Return the record of a job.

    Args:
        results: of the job.
        folder: with the job's files.

    Raises:
        JobError: the model in the folder was not made from the selected candidate's plan.
    """
    ended = int(1000 * datetime.fromisoformat(results.created).timestamp())
    return JobRecord(
        key=_key(results),
        version=_digest(results.model_dump(mode="json")),
        started_ms=ended - int(1000 * sum(results.timings.values())),
        ended_ms=ended,
        job=_job(results),
        plans=list(_plans(results, folder)),
        data=results.data,
        files=[path for name in FILES if (path := folder / name).is_file()],
        model=_model(results, folder / MODEL),
    )


def _model(results: Results, path: Path) -> Path | None:
    """Return the selected candidate's ONNX file; None where it does not exist.

    Raises JobError where it was not made from the candidate's plan: it would be logged as the model that was judged.
    """
    if not path.is_file():
        return None
    made_from, selected = read_onnx(path).metadata_props.get(PLAN_KEY), results.selected_candidate
    if selected is None or made_from != selected.plan_hash:
        found = f"from plan {made_from[:12]}" if made_from else "without a plan"
        wanted = f"of plan {selected.plan_hash[:12]}" if selected else "about no candidate"
        raise JobError(
            f"{path} was made {found} and the results are {wanted}, so that it is not what was judged; copy both from "
            "one run"
        )
    return path


def _key(results: Results) -> str:
    """Return the hash that identifies the job. The verdict is not in it, as it may be judged again."""
    plans = [candidate.plan_hash for candidate in results.candidates]
    return _digest([results.created, results.command, results.model.sha256, results.timings, plans])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _job(results: Results) -> RunRecord:
    reference, selected = results.reference, results.selected_candidate
    name = f"eval/{reference.accuracy.metric}"
    metrics = {f"{name}_float": reference.accuracy.value}
    if reference.latency:
        metrics["perf/float_latency_p50_ms"] = reference.latency.p50_ms
        metrics["perf/float_latency_p99_ms"] = reference.latency.p99_ms
    for baseline in results.baselines:
        slug = _slug(baseline.name)
        if baseline.accuracy:
            metrics[f"{name}_{slug}"] = baseline.accuracy.value
        if baseline.latency:
            metrics[f"perf/{slug}_latency_p50_ms"] = baseline.latency.p50_ms
    if selected:
        metrics |= _candidate_metrics(selected)
    metrics |= {f"seconds/{stage}": value for stage, value in results.timings.items()}
    reasons = "\n".join(f"- {reason}" for reason in results.verdict.reasons)
    tags = {
        "gate.decision": results.verdict.decision.value,
        "gate.basis": results.verdict.basis or "none",
        "selected": results.selected or "none",
        "mlflow.note.content": f"**{fmt.headline(results)}**\n\n{reasons}",
    } | _context_tags(results)
    params = {
        **{f"config.{key}": value for key, value in _flat(results.config)},
        **_shared_params(results),
        "model.path": results.model.path,
        "model.parameters": str(results.model.parameters),
        "calib.strategy": selected.strategy if selected else "none",
    }
    points = {"pareto": [point.model_dump(mode="json") for point in results.pareto]}
    texts = {"pareto.json": json.dumps(points, indent=1)} if results.pareto else {}
    return RunRecord(results.config.get("name", "run"), "", _tags(tags), _params(params), _finite(metrics), texts)


def _plans(results: Results, folder: Path) -> Iterator[RunRecord]:
    """Yield candidates, then the trials that did not become one. A plan that was both is one run."""
    trials = {trial.plan_hash: trial for trial in results.search.trials} if results.search else {}
    for candidate in results.candidates:
        yield _candidate(results, candidate, trials.pop(candidate.plan_hash, None), folder)
    for trial in trials.values():
        yield _trial(results, trial)


def _candidate(results: Results, candidate: Candidate, trial: Trial | None, folder: Path) -> RunRecord:
    cost, build = candidate.cost, candidate.tensorrt_build
    tags = (
        {
            "selected": str(candidate.name == results.selected).lower(),
            "tensorrt_build": str(build.ok).lower(),
            "eval.split": "validation",
            "eval.basis": candidate.accuracy.basis or "none",
            "cost.basis": cost.basis,
            "cost.unit": cost.unit,
            "cost.source": cost.source,
        }
        | _engine_tags(candidate.engine)
        | _trial_tags(trial)
        | _context_tags(results)
    )
    texts = {}
    if candidate.layers:
        texts["layers.json"] = _table(_layer_columns(candidate.layers))
    if (plan := folder / candidate.plan).is_file():
        texts["plan.json"] = plan.read_text(encoding="utf-8")
        if scales := json.loads(texts["plan.json"]).get("scales"):
            texts["scales.json"] = _table({"tensor": list(scales), "scale": list(scales.values())})
    tables = [{"path": name, "type": "table"} for name in texts if name != "plan.json"]
    if tables:
        tags[TABLES_TAG] = json.dumps(tables)
    metrics = [*_finite(_candidate_metrics(candidate)), *_layer_metrics(candidate.layers)]
    params = _plan_params(results, candidate.strategy, candidate.plan_hash, candidate.float_layers)
    return RunRecord(candidate.name, candidate.plan_hash, _tags(tags), params, metrics, texts)


def _trial(results: Results, trial: Trial) -> RunRecord:
    metrics = _accuracy_metrics(trial.accuracy) | {"perf/cost": trial.cost.value}
    tags = (
        {
            "selected": "false",
            "tensorrt_build": "none",
            "eval.split": "calibration",
            "eval.basis": trial.accuracy.basis or "none",
            "cost.basis": trial.cost.basis,
            "cost.unit": trial.cost.unit,
            "cost.source": trial.cost.source,
        }
        | _engine_tags(None)
        | _trial_tags(trial)
        | _context_tags(results)
    )
    params = _plan_params(results, _strategy(results, trial), trial.plan_hash, trial.float_layers)
    return RunRecord(trial.name, trial.plan_hash, _tags(tags), params, _finite(metrics), {})


def _strategy(results: Results, trial: Trial) -> str:
    """Return the strategy of a trial's scales: a trial's name begins with that of the candidate it derives from."""
    strategies = {candidate.name: candidate.strategy for candidate in results.candidates}
    return strategies.get(trial.name.rpartition("+")[0], "unknown")


def _shared_params(results: Results) -> dict[str, str]:
    params = {"task": results.task, "model.sha256": results.model.sha256}
    for split, prefix in (("calibration", "calib"), ("validation", "validation")):
        if split in results.data:
            params[f"{prefix}.samples"] = str(results.data[split]["samples"])
            params[f"{prefix}.digest"] = str(results.data[split]["digest"])
    return params


def _plan_params(results: Results, strategy: str, plan: str, float_layers: list[str]) -> dict[str, str]:
    precision = results.search.precision if results.search and float_layers else "none"
    return _params(
        _shared_params(results)
        | {"calib.strategy": strategy, "plan.hash": plan}
        | {"fallback.layers": str(len(float_layers)), "fallback.precision": precision}
    )


def _trial_tags(trial: Trial | None) -> dict[str, str]:
    if trial is None:
        return {"trial": "false", "stopped_early": "false", "meets_target": "none"}
    early, meets = str(trial.stopped_early).lower(), str(trial.meets_target).lower()
    return {"trial": "true", "stopped_early": early, "meets_target": meets}


def _engine_tags(engine: EngineRun | None) -> dict[str, str]:
    if engine is None:
        return {"engine.sha256": "none", "engine.gpu": "none", "engine.departs_at": "none"}
    departs_at = engine.departure.node if engine.departure else "none"
    return {"engine.sha256": engine.file.sha256, "engine.gpu": engine.file.gpu, "engine.departs_at": departs_at}


def _context_tags(results: Results) -> dict[str, str]:
    """Return tags of the command that made the run, and of the config's target device."""
    target = results.config.get("target") or {}
    capability = target.get("compute_capability")
    gpu = target.get("gpu") or (f"compute capability {capability}" if capability else "none")
    return {
        "mlflow.source.name": results.command,
        "target.device": str(target.get("device", "none")),
        "target.gpu": str(gpu),
    }


def _candidate_metrics(candidate: Candidate) -> dict[str, float]:
    nodes = candidate.nodes
    metrics = _accuracy_metrics(candidate.accuracy) | {
        "size_bytes": float(candidate.size_bytes),
        "perf/cost": candidate.cost.value,
        "perf/int8_mac_share": candidate.int8_mac_share,
        "nodes/int8": float(nodes.int8),
        "nodes/fp16": float(nodes.fp16),
        "nodes/bf16": float(nodes.bf16),
        "nodes/fp32": float(nodes.fp32),
    }
    if candidate.selection_error is not None:
        metrics["eval/selection_error"] = candidate.selection_error
    if candidate.integer_kernels:
        metrics[f"eval/{candidate.accuracy.metric}_integer_kernels"] = candidate.integer_kernels.accuracy.value
    if candidate.simulated:
        metrics[f"eval/{candidate.accuracy.metric}_simulated"] = candidate.simulated.value
    if candidate.engine:
        metrics |= _engine_metrics(candidate.engine)
    if candidate.latency:
        metrics["perf/latency_p50_ms"] = candidate.latency.p50_ms
        metrics["perf/latency_p90_ms"] = candidate.latency.p90_ms
        metrics["perf/latency_p99_ms"] = candidate.latency.p99_ms
    for speedup in candidate.speedups:
        metrics[f"perf/speedup_{_slug(speedup.against)}"] = speedup.value
    sqnr = [layer.sqnr_db for layer in candidate.layers if math.isfinite(layer.sqnr_db)]
    clipped = [layer.clipped_share for layer in candidate.layers if math.isfinite(layer.clipped_share)]
    if sqnr:
        metrics["layers/worst_sqnr_db"] = min(sqnr)
    if clipped:
        metrics["layers/most_clipped_share"] = max(clipped)
    return metrics


def _engine_metrics(engine: EngineRun) -> dict[str, float]:
    metrics = {} if engine.agreement is None else {"engine/agreement": engine.agreement}
    if engine.int8:
        metrics["engine/int8_share"] = engine.int8.share
    if engine.outputs:  # of the output that is farthest beyond its floor
        worst = max(engine.outputs, key=lambda found: (found.not_finite, found.excess_db))
        metrics |= {"engine/to_simulation_db": worst.to_simulation_db, "engine/floor_db": worst.floor_db}
    return metrics


def _accuracy_metrics(accuracy: CandidateAccuracy) -> dict[str, float]:
    name = f"eval/{accuracy.metric}"
    return {
        name: accuracy.value,
        f"{name}_drop": accuracy.drop,
        f"{name}_drop_ci_low": accuracy.ci_low,
        f"{name}_drop_ci_high": accuracy.ci_high,
        "eval/samples": float(accuracy.n),
    }


def _layer_metrics(layers: Iterable[LayerError]) -> list[Measurement]:
    return [
        Measurement(key, value, layer.depth)
        for layer in layers
        for key, value in (
            ("layer_sqnr_db", layer.sqnr_db),
            ("layer_isolated_sqnr_db", layer.isolated_sqnr_db),
            ("layer_clipped_share", layer.clipped_share),
        )
        if math.isfinite(value)
    ]


def _layer_columns(layers: list[LayerError]) -> dict[str, list[Any]]:
    """Return a column per field. JSON has no infinity: `exact` tells an infinite SQNR from an undefined one."""
    rows = [layer.model_dump() for layer in sorted(layers, key=lambda layer: layer.depth)]
    columns: dict[str, list[Any]] = {field: [row[field] for row in rows] for field in LayerError.model_fields}
    return columns | {"exact": [row["sqnr_db"] == math.inf for row in rows]}


def _table(columns: Mapping[str, list[Any]]) -> str:
    """Return a table as `mlflow.log_table` writes it, which appends to one that is there and so cannot be resent."""
    cells = [[_cell(value) for value in row] for row in zip(*columns.values(), strict=True)]
    return json.dumps({"columns": list(columns), "data": cells})


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values; what was not given is left out."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _finite(metrics: Mapping[str, float]) -> list[Measurement]:
    return [Measurement(key, value) for key, value in metrics.items() if math.isfinite(value)]


def _params(params: Mapping[str, str]) -> dict[str, str]:
    return {re.sub(r"[^\w.\-/ ]", "_", key)[:_LONGEST_KEY]: value[:_LONGEST_PARAM] for key, value in params.items()}


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value[:_LONGEST_TAG] for key, value in tags.items()}
