"""The whole job on one page. Read `run` first; each step is a function that takes and returns frozen records."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibrate.config import Config
from calibrate.cost import price
from calibrate.journal import Journal
from calibrate.loading import Inputs, SplitFingerprint, load_inputs
from calibrate.measurement import (
    ENGINE,
    CandidateBench,
    EngineBench,
    EvaluationCache,
    MeasuredCandidate,
    ReferenceRun,
    Times,
    engine_profile,
    evaluate_reference,
    evaluation_context,
    illustrate,
    time_models,
    why_no_engine,
)
from calibrate.observation import (
    CalibrationRun,
    StoredStatistics,
    measure_clipping,
    nodes_beyond_fp16,
    observe_calibration_set,
)
from calibrate.output_folder import write_folder
from calibrate.plan import Origin, QuantizationPlan
from calibrate.recovery import RecoveryInputs, recover
from calibrate.search import (
    FloatTypeBench,
    Selection,
    TrialBench,
    check_float_type,
    put_layers_back,
    select,
    verdict_confidences,
)
from calibrate.strategies import ScaleHistory, make_plans, threshold_function, with_fp32_scales
from validate.data import Batch, SampleStream
from validate.environment import environment
from validate.results import (
    SAMPLES_FILE,
    Baseline,
    Candidate,
    Fp16Check,
    Reference,
    Results,
    SampleTable,
    Verdict,
    pareto_points,
)
from validate.verdict import Evidence, decide

__all__ = ["run"]


def run(config: Config, output: Path, command: str, journal: Journal) -> Results:
    """Run the whole job, write its output folder, and return the results.

    Args:
        config: of the run.
        output: folder to write.
        command: command line, for the results.
        journal: records times, passes and warnings.

    Raises:
        JobError: the job cannot be finished; `output` then holds no results.json.
    """
    with tempfile.TemporaryDirectory(prefix="calibrate-") as temporary:
        job = Job(config, Path(temporary), output, command, journal)
        inputs = load(job)
        reference = evaluate_reference(config, inputs, journal)
        observed = observe(job, inputs, reference)
        plans, fp16 = judge_fp16(job, inputs, reference, observed, plan(job, inputs, observed))
        plans = recover_accuracy(job, inputs, observed, plans)
        benches = set_up(job, inputs, reference, observed, plans)
        measured = measure(job, benches, plans)
        searched = search(job, benches, measured)
        baselines = run_baselines(job, benches, searched)
        timed = time(job, benches, searched)
        judged = judge(job, benches, observed, fp16, searched, baselines, timed)
        return write(job, benches, observed, fp16, searched, judged)


@dataclass(frozen=True)
class Job:
    """Config, folders and journal of a run. `folder` is temporary; `output` is what the run leaves."""

    config: Config
    folder: Path
    output: Path
    command: str
    journal: Journal


@dataclass(frozen=True)
class Observed:
    """Results of the calibration pass, the history of scales, and how many samples are in both splits."""

    calibration: CalibrationRun
    history: ScaleHistory
    origin: Origin
    overlap: int


@dataclass(frozen=True)
class Benches:
    """The benches that measure plans: candidates on validation samples, trials on calibration samples alone."""

    candidates: CandidateBench
    trials: TrialBench


@dataclass(frozen=True)
class Judged:
    """All measurements of the float model, its engines and the candidates, the scores of samples, and the verdict."""

    reference: Reference
    baselines: Sequence[Baseline]
    candidates: Sequence[Candidate]
    samples: SampleTable
    verdict: Verdict


def load(job: Job) -> Inputs:
    """Load and prepare the model, and open the data."""
    with job.journal.stage("load", "load and prepare the model"):
        return load_inputs(job.config, job.config.quantization, job.folder)


def observe(job: Job, inputs: Inputs, reference: ReferenceRun) -> Observed:
    """Run the calibration pass, which gives the statistics for all strategies."""
    data, journal = job.config.data, job.journal
    history = ScaleHistory(job.config.quantization.strategies, inputs.model.placement.tensors())
    validation = reference.fingerprint
    apart_from = None if data.allow_overlap else validation
    calibration = observe_calibration_set(inputs, journal, apart_from, history.note)
    if warning := data.repeats("calibration", calibration.fingerprint.order):
        journal.warn(warning)
    overlap = sum(content in calibration.fingerprint.contents for content in validation.order)
    if overlap:
        journal.warn(
            f"{overlap} samples are in both sets, as data.allow_overlap permits; the verdict is too favourable"
        )
    return Observed(calibration, history, calibration.origin(inputs), overlap)


def plan(job: Job, inputs: Inputs, observed: Observed) -> list[QuantizationPlan]:
    """Make a plan for every strategy; nodes whose values leave FP16's range stay in FP32 wherever others are FP16."""
    settings, calibration = job.config.quantization, observed.calibration
    with job.journal.stage("plan", "find scales"):
        plans = make_plans(settings, calibration.observation, inputs.model.placement, observed.origin, job.journal)
    # Also where the rest is not FP16: layers may go back to it, and the FP16 model that INT8 has to beat is.
    wide = nodes_beyond_fp16(inputs, calibration.statistics, job.journal)
    return [with_fp32_scales(made.model_copy(update={"wide_nodes": wide}), settings, inputs.model) for made in plans]


def judge_fp16(
    job: Job, inputs: Inputs, reference: ReferenceRun, observed: Observed, plans: list[QuantizationPlan]
) -> tuple[list[QuantizationPlan], Fp16Check | None]:
    """Measure what FP16 costs without INT8; where that alone misses the policy, nodes go to FP32 in all plans."""
    if plans[0].float_precision == "fp32":
        return plans, None
    bench = FloatTypeBench(inputs, observed.calibration, _evaluation_cache(job, reference, observed), job.journal)
    with job.journal.stage("fp16", "judge FP16 without INT8"):
        check = check_float_type(plans[0], job.config.policy.max_drop, bench)
    if check is None:
        return plans, None
    if check.fp32_nodes or check.misses:
        job.journal.warn(check.message)
    more = frozenset(check.fp32_nodes)
    return [made.model_copy(update={"wide_nodes": made.wide_nodes | more}) for made in plans], check


def recover_accuracy(
    job: Job, inputs: Inputs, observed: Observed, plans: list[QuantizationPlan]
) -> list[QuantizationPlan]:
    """Apply the recovery steps that the config names to every plan."""
    steps, calibration = job.config.quantization.recovery, observed.calibration
    if not steps:
        return plans

    def batches() -> Iterator[Batch]:
        return job.journal.forward("recover", calibration.fingerprint.verify(inputs.calibration.batches()))

    with job.journal.stage("recover", "recover accuracy", len(plans)) as advance:
        recovered = []
        for made, strategy in zip(plans, job.config.quantization.strategies, strict=True):
            threshold = threshold_function(strategy, made.number_format)
            given = RecoveryInputs(inputs.model, calibration.statistics, batches, threshold)
            edited = recover(made, steps, given)
            recovered.append(with_fp32_scales(edited, job.config.quantization, inputs.model))
            advance(1)
    return recovered


def set_up(
    job: Job, inputs: Inputs, reference: ReferenceRun, observed: Observed, plans: Sequence[QuantizationPlan]
) -> Benches:
    """Set up the benches that measure plans, which share the cache of evaluations."""
    config, calibration = job.config, observed.calibration
    evaluations = _evaluation_cache(job, reference, observed)
    pricing = price(
        config.target,
        config.latency.batch_size,
        config.fallback.precision,
        inputs,
        plans[0],
        job.folder,
        job.journal,
    )
    no_engines, engines = why_no_engine(config.target), None
    if no_engines and config.target.device == "gpu" and "engine" not in config.policy.optional:
        job.journal.warn(f"no engine is run, so that the verdict is by simulation: {no_engines}")
    if not no_engines:
        profile = engine_profile(config.latency, inputs, [reference.fingerprint, calibration.fingerprint])
        engines = EngineBench(inputs, reference, evaluations, pricing, profile, job.folder, job.journal)
    return Benches(
        CandidateBench(
            inputs=inputs,
            reference=reference,
            calibration=calibration,
            evaluations=evaluations,
            pricing=pricing,
            target=config.target,
            compare_samples=config.compare_samples,
            folder=job.folder,
            journal=job.journal,
            engines=engines,
            no_engines=no_engines,
        ),
        TrialBench(inputs, calibration, evaluations, pricing, job.journal),
    )


def measure(job: Job, benches: Benches, plans: Sequence[QuantizationPlan]) -> Selection:
    """Measure every plan, and select one by its error on calibration samples, which the verdict does not use."""
    confidence = verdict_confidences(job.config.policy, job.config.fallback)[0]
    candidates = [benches.candidates.measure(plan, confidence) for plan in plans]
    return select(job.config.policy, benches.candidates.reference_accuracy, candidates)


def search(job: Job, benches: Benches, measured: Selection) -> Selection:
    """Where the selected candidate misses the policy, search the fastest plan with layers in float that meets it."""
    return put_layers_back(job.config.fallback, job.config.policy, benches.candidates, benches.trials, measured)


def run_baselines(job: Job, benches: Benches, searched: Selection) -> list[Baseline]:
    """Run the float model as engines, which the candidates have to beat; none where no engine can be run here."""
    bench = benches.candidates
    if bench.engines is None:
        return []
    with job.journal.stage("baselines", "run the float model's engines"):
        return bench.engines.baselines(searched.chosen.plan, job.config.policy.confidence)


def time(job: Job, benches: Benches, searched: Selection) -> Times:
    """Time the float model and the candidates in turns, so that other load on the machine affects all alike."""
    config, bench, plans = job.config, benches.candidates, [candidate.plan for candidate in searched.candidates]
    with job.journal.stage("latency", f"time {len(plans) + 1} models"):
        return time_models(
            config.latency, config.target, config.model.torch, bench.inputs, plans, job.folder, bench.engines
        )


def judge(
    job: Job,
    benches: Benches,
    observed: Observed,
    fp16: Fp16Check | None,
    searched: Selection,
    baselines: Sequence[Baseline],
    times: Times,
) -> Judged:
    """Judge the selected candidate by all rules of the policy."""
    policy, bench = job.config.policy, benches.candidates
    latency, latency_reason = times.of_reference()
    reference = Reference(accuracy=bench.reference_accuracy, latency=latency, latency_reason=latency_reason)
    candidates = [times.add_to(candidate.record) for candidate in searched.candidates]
    candidates = [c.with_engine_kept(ENGINE) if c.name == searched.selected else c for c in candidates]
    if policy.max_clipped_share is not None:
        plans = [candidate.plan for candidate in searched.candidates]
        clipping = measure_clipping(bench.inputs, bench.reference.fingerprint, plans, job.journal)
        candidates = [c.model_copy(update={"clipping": x}) for c, x in zip(candidates, clipping, strict=True)]
    samples = _sample_table(bench.reference, searched.candidates)
    evidence = Evidence(
        reference.accuracy,
        next(candidate for candidate in candidates if candidate.name == searched.selected),
        bench.inputs.task.metric,
        bench.inputs.model.info.sha256,
        observed.overlap,
        samples,
        baselines=baselines,
        fp16=fp16,
    )
    verdict = decide(policy.of_a_run(), evidence)
    if searched.search is None and job.config.fallback.evaluations:
        _warn_of_rules_beside_accuracy(verdict, job.journal)
    timed = [times.of_baseline(baseline) for baseline in baselines]
    return Judged(reference, timed, candidates, samples, verdict)


def write(
    job: Job, benches: Benches, observed: Observed, fp16: Fp16Check | None, searched: Selection, judged: Judged
) -> Results:
    """Write all files, the results last."""
    bench, inputs = benches.candidates, benches.candidates.inputs
    plans = [candidate.plan for candidate in searched.candidates]
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=job.command,
        model=inputs.model.info,
        task=inputs.task.name,
        data={
            "calibration": _describe(inputs.calibration, bench.calibration.fingerprint),
            "validation": _describe(inputs.validation, bench.reference.fingerprint),
        },
        overlap=observed.overlap,
        reference=judged.reference,
        baselines=list(judged.baselines),
        candidates=list(judged.candidates),
        selected=searched.selected,
        search=searched.search,
        fp16=fp16,
        samples_sha256=judged.samples.write(job.output / SAMPLES_FILE),
        pareto=pareto_points(
            judged.reference, bench.pricing.float32, judged.candidates, inputs.model.path.stat().st_size
        ),
        verdict=judged.verdict,
        environment=environment(),
        timings={stage: round(seconds, 3) for stage, seconds in job.journal.timings.items()},
        forward_passes=job.journal.forward_passes,
        warnings=job.journal.warnings,
        config=job.config.model_dump(mode="json"),
    )
    statistics = StoredStatistics(observed.calibration.observation, observed.origin, observed.calibration.samples)
    illustrations = illustrate(results, bench, searched.candidates, observed.history)
    write_folder(results, plans, statistics, illustrations, job.folder, job.output)
    return results


def _evaluation_cache(job: Job, reference: ReferenceRun, observed: Observed) -> EvaluationCache:
    """Return the cache of evaluations in the output folder, so that an interrupted run resumes."""
    context = evaluation_context(
        job.config.task, observed.origin, reference.fingerprint, observed.calibration.fingerprint
    )
    return EvaluationCache(job.output / "evaluations", context)


def _sample_table(reference: ReferenceRun, candidates: Sequence[MeasuredCandidate]) -> SampleTable:
    """Return the scores of every validation sample with every model."""
    split = reference.fingerprint
    return SampleTable(
        [content.hex() for content in split.order],
        split.classes,
        split.slices,
        reference.scores,
        {candidate.record.name: candidate.scores for candidate in candidates},
        {c.record.name: c.kernel_scores for c in candidates if c.kernel_scores is not None},
    )


def _warn_of_rules_beside_accuracy(verdict: Verdict, journal: Journal) -> None:
    """Warn that no search ran, where only rules other than accuracy are missed."""
    missed = {rule.name for rule in verdict.rules if rule.outcome in {"fail", "undecided"}}
    if missed and not missed & {"accuracy", "accuracy with integer kernels"}:
        journal.warn(
            "no layers were put back to float: the search is for the accuracy alone, which keeps to the policy, and "
            f"not for what misses it: {', '.join(sorted(missed))}"
        )


def _describe(stream: SampleStream, split: SplitFingerprint) -> dict[str, Any]:
    """Return the description of a split for the results."""
    source = stream.source.model_dump(exclude_none=True, exclude_defaults=True)
    return {
        "source": source,
        "samples": len(split.order),
        "digest": split.digest(),
        "preprocessing": stream.preparation.description,
    }
