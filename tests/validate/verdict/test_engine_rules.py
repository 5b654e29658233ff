"""Rules on the engine: that it was run, that it computes what was simulated, and that it is the file to be deployed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Job, Run, finished
from tests.validate.conftest import engine_run, speedup
from validate.backends import local_gpu
from validate.backends.tensorrt.fingerprint import Fingerprint, sha256
from validate.backends.tensorrt.options import BuildOptions
from validate.results import (
    Accuracy,
    Baseline,
    Candidate,
    CandidateAccuracy,
    Decision,
    Departure,
    Evaluation,
    Fp16Check,
    Int8InEngine,
    IntegerKernels,
    ModelEvaluation,
    Results,
    Rule,
    Verdict,
)
from validate.verdict.decision import decide
from validate.verdict.evidence import Engine, Evidence
from validate.verdict.policy import Policy
from validate.verdict.rejudging import gate

GO, NO_GO, INCONCLUSIVE = Decision.GO, Decision.NO_GO, Decision.INCONCLUSIVE
DECISIONS = {"pass": GO, "fail": NO_GO, "not_measured": INCONCLUSIVE}


def judge(evidence: Evidence, **policy: Any) -> Verdict:
    return decide(Policy.model_validate({"max_drop": 0.02, **policy}), evidence)


def with_candidate(evidence: Evidence, **changes: Any) -> Evidence:
    assert isinstance(evidence.candidate, Candidate)
    return replace(evidence, candidate=evidence.candidate.model_copy(update=changes))


def rule_of(verdict: Verdict, name: str = "engine") -> Rule:
    """Return the rule of that name, by which alone the decision was made."""
    (rule,) = [rule for rule in verdict.rules if rule.name == name]
    assert verdict.decision is (GO if rule.optional and rule.outcome == "not_measured" else DECISIONS[rule.outcome])
    assert rule.message in verdict.reasons
    return rule


@pytest.fixture
def evidence(reference: Accuracy, measured: Candidate) -> Evidence:
    return Evidence(reference=reference, candidate=measured, overlap=0)


@pytest.fixture
def simulated(evidence: Evidence, measured: Candidate) -> Evidence:
    """Return what a machine without a GPU knows of the candidate."""
    accuracy = measured.accuracy.model_copy(update={"basis": "simulation"})
    return with_candidate(evidence, accuracy=accuracy, engine=None, engine_reason="no NVIDIA GPU is found here")


def test_what_no_engine_ran_is_no_go(simulated: Evidence) -> None:
    verdict = judge(simulated)
    rule = rule_of(verdict)
    assert (verdict.decision, verdict.basis, rule.outcome) == (INCONCLUSIVE, "simulation", "not_measured")
    assert verdict.reasons[0] == "by simulation: no engine was run"
    for said in ("no NVIDIA GPU is found here", "the target's GPU", "policy.optional: [engine]"):
        assert said in rule.message


def test_a_policy_may_leave_it_at_a_simulation_and_the_verdict_says_so_first(simulated: Evidence) -> None:
    verdict = judge(simulated, optional=["engine"])
    assert (verdict.decision, verdict.basis) == (GO, "simulation")
    assert verdict.reasons[0] == "by simulation: no engine was run"
    assert rule_of(verdict).optional


def test_a_cpu_that_is_the_target_needs_no_engine(simulated: Evidence) -> None:
    """Its integer kernels are what runs there, and they were measured."""
    accuracy = simulated.candidate.accuracy.model_copy(update={"basis": "kernels"})
    kernels = IntegerKernels(runtime="onnxruntime", accuracy=accuracy, difference=0.0)
    verdict = judge(with_candidate(simulated, integer_kernels=kernels))
    assert verdict.decision is GO
    assert "engine" not in [rule.name for rule in verdict.rules]
    assert verdict.reasons[0] == "by the CPU's integer kernels, and by simulation"


def test_an_engine_that_is_its_simulation_is_a_go_and_is_named(evidence: Evidence) -> None:
    verdict = judge(evidence)
    assert (verdict.decision, verdict.basis) == (GO, "engine")
    file = engine_run().file
    assert verdict.reasons[0] == f"by the engine: {file.library} on {file.gpu}, SHA-256 {file.sha256}"
    message = rule_of(verdict).message
    assert "SHA-256 5e5e5e5e5e5e, tensorrt 11.0.0.114 on NVIDIA L4" in message
    assert "1 outputs and 7 inner tensors, 16 samples" in message


DEPARTURE = Departure(
    node="encoder/layer.0/intermediate/MatMul",
    op_type="MatMul",
    tensor="y",
    kind="not finite",
    before=["quantize", "LayerNormalization", "Add", "MatMul_3"],
    detail="384 of 6144 values are not finite",
)


@pytest.mark.parametrize("optional", [[], ["engine"]])
def test_an_engine_that_departs_from_its_simulation_fails_with_the_node(
    evidence: Evidence, optional: list[str]
) -> None:
    """That it was measured cannot be waived: only that it was not."""
    verdict = judge(with_candidate(evidence, engine=engine_run(departure=DEPARTURE)), optional=optional)
    message = rule_of(verdict).message
    assert verdict.decision is NO_GO
    assert "384 of 6144 values are not finite, first at encoder/layer.0/intermediate/MatMul (MatMul)" in message
    assert message.endswith("after quantize, LayerNormalization, Add")  # the three that are nearest


def test_a_departure_at_the_first_node_has_nothing_before_it(evidence: Evidence) -> None:
    first = DEPARTURE.model_copy(update={"before": []})
    message = rule_of(judge(with_candidate(evidence, engine=engine_run(departure=first)))).message
    assert message.endswith("(MatMul)")


def test_an_engine_that_was_compared_on_nothing_was_not_measured(evidence: Evidence) -> None:
    assert judge(with_candidate(evidence, engine=engine_run(compared=0))).decision is INCONCLUSIVE


def test_an_engine_slower_than_fp16_says_what_to_ship(evidence: Evidence) -> None:
    verdict = judge(with_candidate(evidence, speedups=[speedup(0.53, ci_low=0.52, ci_high=0.54)]))
    assert verdict.decision is GO
    assert verdict.reasons[-1].endswith("ship FP16")


@pytest.fixture
def engine_file(tmp_path: Path, measured: Candidate) -> Path:
    """Write an engine for an L4, with its fingerprint."""
    path = tmp_path / "model.engine"
    path.write_bytes(b"an engine")
    Fingerprint(
        gpu="NVIDIA L4",
        compute_capability="8.9",
        flavour="tensorrt",
        version="11.0.0.114",
        driver="13.0",
        model="model.int8.onnx",
        model_sha256="0" * 64,
        plan_sha256=measured.plan_hash,
        engine_sha256=sha256(path),
        profile={},
        options=BuildOptions(),
    ).write(path)
    return path


@pytest.fixture
def judged(evidence: Evidence, engine_file: Path) -> Evidence:
    """Return evidence of a candidate whose engine is that file, which is given to the gate."""
    file = engine_run().file.model_copy(update={"sha256": sha256(engine_file)})
    return replace(
        with_candidate(evidence, engine=engine_run(file=file)),
        engine=Engine.at(engine_file),
    )


def test_another_file_than_the_engine_that_was_judged_fails(evidence: Evidence, judged: Evidence) -> None:
    assert rule_of(judge(judged)).outcome == "pass"
    foreign = replace(evidence, engine=judged.engine)
    message = rule_of(judge(foreign, optional=["engine"])).message
    assert "model.engine has SHA-256" in message
    assert "is not the engine (SHA-256 5e5e5e5e5e5e" in message
    assert judge(foreign).decision is NO_GO


TARGET = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "tensorrt": "11.0.0.114"}


def fingerprint_rule(evidence: Evidence, target: dict[str, Any]) -> Rule:
    return rule_of(judge(evidence, engine=target), "engine fingerprint")


@pytest.mark.parametrize(
    ("target", "outcome", "said"),
    [
        (TARGET, "pass", "tensorrt 11.0.0.114, for NVIDIA L4"),
        ({"compute_capability": 8.9}, "pass", "NVIDIA L4"),
        (TARGET | {"gpu": "NVIDIA A10"}, "fail", "built for NVIDIA L4 (compute capability 8.9)"),
        ({"compute_capability": "8.6"}, "fail", "8.6"),
        ({"tensorrt": "11.0.0.115"}, "fail", "11.0.0.115"),
        ({}, "pass", "NVIDIA L4"),
    ],
)
def test_the_engine_is_for_the_target(judged: Evidence, target: Any, outcome: str, said: str) -> None:
    rule = fingerprint_rule(judged, target)
    assert rule.outcome == outcome
    assert said in rule.message


@pytest.mark.parametrize(
    ("built", "target", "outcome"),
    [
        ({"flavour": "tensorrt_rtx", "gpu": None}, {"gpu": "NVIDIA L4", "compute_capability": "8.9"}, "pass"),
        ({"flavour": "tensorrt_rtx", "gpu": None, "compute_capability": None}, {"compute_capability": "8.6"}, "pass"),
        ({"flavour": "tensorrt_rtx", "gpu": None, "compute_capability": None}, {"compute_capability": "7.5"}, "fail"),
        ({"options": BuildOptions(version_compatible=True)}, {"tensorrt": "11.2.0.1"}, "pass"),
        ({"options": BuildOptions(version_compatible=True)}, {"tensorrt": "10.9.0.1"}, "fail"),
        ({"options": BuildOptions(hardware_compatible="ampere_plus")}, {"compute_capability": "8.6"}, "pass"),
    ],
)
def test_an_engine_may_be_for_more_than_one_target(
    judged: Evidence, engine_file: Path, built: Any, target: Any, outcome: str
) -> None:
    Fingerprint.read(engine_file).model_copy(update=built).write(engine_file)
    given = replace(judged, engine=Engine.at(engine_file))
    assert fingerprint_rule(given, target).outcome == outcome


def test_an_engine_of_another_plan_fails(judged: Evidence) -> None:
    assert "plan abab" in fingerprint_rule(with_candidate(judged, plan_hash="cd" * 32), TARGET).message


def test_an_engine_that_was_changed_after_it_was_judged_fails_twice(judged: Evidence, engine_file: Path) -> None:
    engine_file.write_bytes(b"another engine")
    changed = replace(judged, engine=Engine.at(engine_file))
    assert "that was judged" in rule_of(judge(changed, engine=TARGET)).message
    rule = fingerprint_rule(changed, TARGET)
    assert rule.outcome == "fail"
    assert "its SHA-256 is not that of its fingerprint" in rule.message


def test_an_engine_without_a_fingerprint_or_none_at_all_was_not_measured(
    evidence: Evidence, judged: Evidence, engine_file: Path
) -> None:
    assert fingerprint_rule(evidence, TARGET).outcome == "not_measured"
    engine_file.with_name("model.engine.json").unlink()
    rule = fingerprint_rule(replace(judged, engine=Engine.at(engine_file)), TARGET)
    assert rule.outcome == "not_measured"
    assert "no fingerprint" in rule.message


@pytest.mark.parametrize(("most", "outcome"), [(9, "pass"), (8, "fail")])
def test_the_size_of_the_engine(evidence: Evidence, judged: Evidence, most: int, outcome: str) -> None:
    rule = rule_of(judge(judged, engine={"max_bytes": most}), "engine size")
    assert (rule.outcome, rule.value, rule.threshold) == (outcome, 9, most)
    unknown = judge(evidence, engine={"max_bytes": most})
    assert [rule.outcome for rule in unknown.rules[-2:]] == ["not_measured", "not_measured"]


INT8: dict[str, Any] = {"int8_in_engine": {"at_least": 0.9}}


class TestInt8InTheEngine:
    @staticmethod
    def ran(evidence: Evidence, share: float, not_run: list[str]) -> Evidence:
        assert isinstance(evidence.candidate, Candidate) and evidence.candidate.engine is not None
        found = Int8InEngine(planned=4, ran=4 - len(not_run), share=share, not_run=not_run, stray_kernels=0)
        return with_candidate(evidence, engine=evidence.candidate.engine.model_copy(update={"int8": found}))

    @pytest.mark.parametrize(("share", "outcome"), [(1.0, "pass"), (0.9, "pass"), (0.899, "fail"), (0.0, "fail")])
    def test_the_share_decides(self, judged: Evidence, share: float, outcome: str) -> None:
        rule = rule_of(judge(self.ran(judged, share, []), **INT8), "INT8 in the engine")
        assert (rule.outcome, rule.value, rule.threshold) == (outcome, share, 0.9)

    def test_layers_that_did_not_are_named(self, judged: Evidence) -> None:
        four = ["down", "up", "q", "k"]
        rule = rule_of(judge(self.ran(judged, 0.0, four), **INT8), "INT8 in the engine")
        assert "0 of the 4 planned INT8 layers in INT8 (not down, up, q, ...)" in rule.message

    def test_what_no_engine_ran_is_not_known(self, simulated: Evidence) -> None:
        verdict = judge(simulated, **INT8, optional=["engine"])
        rule = rule_of(verdict, "INT8 in the engine")
        assert rule.outcome == "not_measured"
        assert "no NVIDIA GPU is found here" in rule.message
        assert judge(simulated, **INT8, optional=["engine", "int8_in_engine"]).decision is GO

    def test_it_is_there_only_where_it_is_asked_for(self, judged: Evidence) -> None:
        assert "INT8 in the engine" not in {rule.name for rule in judge(judged).rules}


@pytest.fixture
def evaluation() -> Evaluation:
    """Return what `evaluate` finds of a float model and of an engine: 1,000 samples, of which the engine loses two."""
    scores = [1.0] * 900 + [0.0] * 100
    lost = [0.0, 0.0, *scores[2:]]
    top1 = {"metric": "top1", "higher_is_better": True, "is_rate": True, "n": 1000}
    drop = {"drop": 0.002, "ci_low": 0.0, "ci_high": 0.007, "confidence": 0.95, "method": "Tango score"}
    reference = ModelEvaluation(
        model="model.onnx",
        runtime="onnxruntime",
        device="CPU",
        accuracy=Accuracy.model_validate({**top1, "value": 0.9}),
        agreement=None,
        scores=scores,
    )
    engine = ModelEvaluation(
        model="model.engine",
        runtime="tensorrt 11.0.0.114",
        device="NVIDIA L4",
        accuracy=CandidateAccuracy.model_validate({**top1, **drop, "value": 0.898, "basis": "engine"}),
        agreement=0.998,
        scores=lost,
        engine=engine_run().file,
    )
    return Evaluation(
        created="2026-11-30T07:00:00+00:00",
        command="python -m validate evaluate model.onnx model.engine",
        task="classification",
        data={},
        samples=[f"{i:064x}" for i in range(1000)],
        models=[reference, engine],
        warnings=[],
        environment={},
    )


def test_an_engine_that_was_evaluated_is_judged_as_itself(evaluation: Evaluation, engine_file: Path) -> None:
    policy = Policy(max_drop=0.02, require_tensorrt_build=False)
    verdict = gate(evaluation, policy)
    assert (verdict.decision, verdict.basis) == (GO, "engine")
    assert verdict.reasons[0].endswith(f"SHA-256 {'5e' * 32}")
    assert "it was not held against a simulation" in rule_of(verdict).message
    assert gate(evaluation, policy, engine=engine_file).decision is NO_GO


def test_a_file_that_was_evaluated_in_simulation_needs_the_waiver(evaluation: Evaluation) -> None:
    first, second = evaluation.models
    accuracy = second.accuracy.model_copy(update={"basis": "simulation"})
    onnx = second.model_copy(update={"engine": None, "accuracy": accuracy, "model": "model.int8.onnx"})
    simulated = evaluation.model_copy(update={"models": [first, onnx]})
    open_verdict = gate(simulated, Policy(max_drop=0.02, require_tensorrt_build=False))
    assert open_verdict.decision is INCONCLUSIVE
    assert "the model that was evaluated is no engine" in rule_of(open_verdict).message
    waived = gate(simulated, Policy(max_drop=0.02, require_tensorrt_build=False, optional=["engine"]))
    assert (waived.decision, waived.reasons[0]) == (GO, "by simulation: no engine was run")


@pytest.mark.skipif(local_gpu() is not None, reason="a GPU is here, so that the engine is run")
def test_a_run_without_a_gpu_waits_for_the_engine(job: Job) -> None:
    """A GPU target, no waiver: a real run measures all it can, and says what is missing and where to get it."""
    del job.config["policy"]["optional"]
    run = finished(job, "latency.runs=0")
    said = " ".join(run.stdout.replace("│", " ").split())
    assert run.code == 3
    assert "INCONCLUSIVE" in said
    assert "By simulation: The measurements do not decide whether minmax may be released." in said
    assert "- by simulation: no engine was run" in said
    assert "no engine was run (" in said
    assert "run this on a machine with the target's GPU" in said
    verdict, selected = run.results["verdict"], run.selected
    assert (verdict["decision"], verdict["basis"]) == ("INCONCLUSIVE", "simulation")
    blocking = [rule["name"] for rule in verdict["rules"] if rule["outcome"] != "pass"]
    assert blocking == ["engine"]
    assert (selected["engine"], selected["simulated"], selected["accuracy"]["basis"]) == (None, None, "simulation")
    assert selected["engine_reason"]
    waived = gate(job.output, Policy(max_drop=0.1, optional=["engine"]))
    assert (waived.decision, waived.reasons[0]) == (GO, "by simulation: no engine was run")


def test_a_run_for_a_cpu_has_no_rule_on_engines(job: Job) -> None:
    del job.config["policy"]["optional"]
    run = finished(job, "target.device=cpu", "latency.runs=0")
    verdict = run.results["verdict"]
    assert "engine" not in [rule["name"] for rule in verdict["rules"]]
    assert verdict["reasons"][0] == "by the CPU's integer kernels, and by simulation"
    assert "By integer kernels and simulation: " in run.stdout


def test_an_engine_in_the_runs_folder_that_was_replaced_fails(go: Run, engine_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copyfile(go.job.output / "samples.parquet", folder / "samples.parquet")
    shutil.copyfile(engine_file, folder / "model.engine")
    results = Results.read(go.job.output)
    ran = engine_run(file=engine_run().file.model_copy(update={"sha256": sha256(engine_file)}))
    candidates = [
        c.model_copy(update={"engine": ran, "accuracy": c.accuracy.model_copy(update={"basis": "engine"})})
        for c in results.candidates
    ]
    results.model_copy(update={"candidates": candidates}).write(folder / "results.json")
    policy = Policy(max_drop=0.1, optional=["engine"])  # which waives nothing that was measured
    assert gate(folder, policy).basis == "engine"
    assert rule_of(gate(folder, policy)).outcome == "pass"
    (folder / "model.engine").write_bytes(b"an engine that nobody judged")
    verdict = gate(folder, policy)
    assert verdict.decision is NO_GO
    assert "model.engine has SHA-256" in rule_of(verdict).message
    assert gate(folder, policy, engine=engine_file).decision is GO  # what is deployed is the one that was judged
    (folder / "model.engine").unlink()
    assert gate(folder, policy).decision is GO  # it was run, and may be kept elsewhere


FP16_CHECK = Fp16Check(
    precision="fp16",
    metric="top1",
    drop=0.001,
    drop_after=0.001,
    samples=64,
    fp32_nodes=[],
    evaluations=1,
    misses=False,
    message="FP16 alone costs 0.1 percentage points of top1 on 64 calibration samples",
)


def test_the_verdict_says_what_fp16_costs_and_what_int8(evidence: Evidence) -> None:
    """By the engines where they were run, and else by the simulation."""
    drop = evidence.candidate.accuracy.drop
    assert FP16_CHECK.message in judge(replace(evidence, fp16=FP16_CHECK)).reasons
    fp16 = evidence.candidate.accuracy.model_copy(update={"drop": drop - 0.002})
    baseline = Baseline(name="TensorRT FP16", engine=None, accuracy=fp16)
    reasons = judge(replace(evidence, fp16=FP16_CHECK, baselines=[baseline])).reasons
    assert FP16_CHECK.message not in reasons
    assert any(
        f"FP16 alone costs {100 * (drop - 0.002):.2f}%" in reason and "INT8 0.20%" in reason for reason in reasons
    )


def test_one_sample_that_is_not_finite_is_one_too_many(judged: Evidence) -> None:
    assert isinstance(judged.candidate, Candidate)
    assert judged.candidate.engine is not None
    engine = judged.candidate.engine.model_copy(update={"not_finite_samples": 1})
    verdict = judge(with_candidate(judged, engine=engine))
    assert verdict.decision is NO_GO
    assert "of 1 validation samples it gives values that are not finite" in rule_of(verdict).message
