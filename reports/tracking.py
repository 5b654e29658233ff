"""Logs results to MLflow: the job is a run, every candidate and every trial of fallback a run nested in it."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

from validate.results import Candidate, CandidateAccuracy, Cost, Results, Trial

__all__ = ["default_uri", "log_results", "ui_command"]

DEFAULT_URI = "sqlite:///mlflow.db"
_MAX_METRICS = 1000  # of one request to a tracking server


def default_uri(configured: str | None) -> str:
    """Return the tracking URI: the config's, else MLFLOW_TRACKING_URI, else a sqlite file in this folder."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def ui_command(uri: str) -> str:
    """Return what to type, or where to look, to see the runs."""
    return uri if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {uri}"


def log_results(results: Results, folder: Path, uri: str, experiment: str, name: str) -> None:
    """Log a run that is already on disk in `folder`.

    Raises mlflow.exceptions.MlflowException, or OSError, where the server cannot be reached or refuses.
    """
    import mlflow

    for chatty in ("alembic", "mlflow"):  # they announce every table of a new sqlite file on the terminal
        logging.getLogger(chatty).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=name):
        mlflow.set_tags({"gate.decision": results.verdict.decision.value, "selected": results.selected or "none"})
        mlflow.log_params({
            "model.path": results.model.path, "model.sha256": results.model.sha256,
            "model.parameters": results.model.parameters, "task": results.task,
            "calib.samples": results.data["calibration"]["samples"],
            "calib.digest": results.data["calibration"]["digest"],
            "validation.samples": results.data["validation"]["samples"],
            "validation.digest": results.data["validation"]["digest"],
        })  # fmt: skip
        reference = results.reference
        metrics = {f"eval/{reference.accuracy.metric}_float": reference.accuracy.value}
        if reference.latency:
            metrics["perf/float_latency_p50_ms"] = reference.latency.p50_ms
        if selected := results.selected_candidate:
            metrics |= _metrics(selected)
        mlflow.log_metrics(metrics)
        trials = {trial.plan_hash: trial for trial in results.search.trials} if results.search else {}
        for candidate in results.candidates:
            with mlflow.start_run(run_name=candidate.name, nested=True) as run:
                _log_candidate(run.info.run_id, candidate, folder, candidate.name == results.selected)
                # The plan is one run, which says both what was tried and all that was measured of it.
                if trial := trials.pop(candidate.plan_hash, None):
                    mlflow.set_tags(_trial_tags(trial))
        for trial in trials.values():
            with mlflow.start_run(run_name=trial.name, nested=True):
                _log_trial(trial)
        if results.pareto:
            mlflow.log_dict({"pareto": [point.model_dump(mode="json") for point in results.pareto]}, "pareto.json")
        for artifact in ("results.json", "plan.json", "report.html", "model.int8.onnx"):
            if (folder / artifact).exists():
                mlflow.log_artifact(str(folder / artifact))


def _log_candidate(run_id: str, candidate: Candidate, folder: Path, selected: bool) -> None:
    import mlflow
    from mlflow.entities import Metric

    mlflow.log_params({
        "calib.strategy": candidate.strategy, "plan.hash": candidate.plan_hash,
        "nodes.int8": candidate.nodes.int8, "nodes.fp16": candidate.nodes.fp16, "nodes.fp32": candidate.nodes.fp32,
        "fallback.layers": len(candidate.float_layers),
    })  # fmt: skip
    build = str(candidate.tensorrt_build.ok).lower()
    mlflow.set_tags({"selected": str(selected).lower(), "tensorrt_build": build, **_cost_tags(candidate.cost)})
    mlflow.log_metrics(_metrics(candidate))
    now = int(1000 * time.time())
    sqnr = [
        Metric("layer_sqnr_db", layer.sqnr_db, now, layer.depth)
        for layer in candidate.layers
        if math.isfinite(layer.sqnr_db)
    ]
    for first in range(0, len(sqnr), _MAX_METRICS):
        mlflow.MlflowClient().log_batch(run_id, sqnr[first : first + _MAX_METRICS])
    mlflow.log_artifact(str(folder / candidate.plan))


def _log_trial(trial: Trial) -> None:
    import mlflow

    mlflow.log_params({"plan.hash": trial.plan_hash, "fallback.layers": len(trial.float_layers)})
    mlflow.set_tags(_trial_tags(trial) | _cost_tags(trial.cost))
    mlflow.log_metrics(_finite(_accuracy_metrics(trial.accuracy) | {"perf/cost": trial.cost.value}))


def _trial_tags(trial: Trial) -> dict[str, str]:
    return {
        "trial": "true",
        "stopped_early": str(trial.stopped_early).lower(),
        "meets_target": str(trial.meets_target).lower(),
    }


def _cost_tags(cost: Cost) -> dict[str, str]:
    return {"cost.basis": cost.basis, "cost.unit": cost.unit, "cost.source": cost.source}


def _metrics(candidate: Candidate) -> dict[str, float]:
    metrics = _accuracy_metrics(candidate.accuracy) | {
        "size_bytes": float(candidate.size_bytes),
        "perf/cost": candidate.cost.value,
        "perf/int8_mac_share": candidate.int8_mac_share,
    }
    if candidate.selection_error is not None:
        metrics["eval/selection_error"] = candidate.selection_error
    if candidate.latency:
        metrics["perf/latency_p50_ms"] = candidate.latency.p50_ms
        metrics["perf/latency_p99_ms"] = candidate.latency.p99_ms
    return _finite(metrics)


def _accuracy_metrics(accuracy: CandidateAccuracy) -> dict[str, float]:
    name = f"eval/{accuracy.metric}"
    return {
        name: accuracy.value, f"{name}_drop": accuracy.drop, f"{name}_drop_ci_low": accuracy.ci_low,
        f"{name}_drop_ci_high": accuracy.ci_high, "eval/samples": float(accuracy.n),
    }  # fmt: skip


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
