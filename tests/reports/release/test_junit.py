"""JUnit XML, as a parser of JUnit reads it, and as CI systems count it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import junitparser
import pytest

from reports.release import junit
from tests.reports.conftest import BuildResults
from validate.results import Decision, Results, Rule, Verdict

HOSTILE = "<script>alert('&')</script> ]]> \x00\x1b[31m \ud800 \ufffe \u202e \"quoted\" | pipe"


def rule(outcome: str, name: str = "accuracy", optional: bool = False) -> Rule:
    return Rule.model_validate(
        {"name": name, "outcome": outcome, "message": f"what was found: {outcome}", "optional": optional}
    )


@pytest.fixture
def judged(build_results: BuildResults) -> Results:
    rules = [
        rule("pass"),
        rule("fail", "TensorRT build"),
        rule("undecided", "accuracy of every class"),
        rule("not_measured", "latency p99"),
        rule("not_measured", "model size", optional=True),
    ]
    verdict = Verdict(decision=Decision.NO_GO, reasons=["it fails"], rules=rules)
    return build_results().model_copy(update={"verdict": verdict})


def parsed(results: Results, tmp_path: Path) -> junitparser.TestSuite:
    junit.write_junit(results, tmp_path / "gate.xml")
    (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "gate.xml"))
    return suite


def test_every_rule_is_a_case_with_its_outcome(judged: Results, tmp_path: Path) -> None:
    suite = parsed(judged, tmp_path)
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (5, 2, 1, 1)
    found = {case.name: case for case in suite}
    assert list(found) == [rule.name for rule in judged.verdict.rules]
    assert found["accuracy"].is_passed
    assert found["model size"].is_skipped
    for name, kind, outcome in (
        ("TensorRT build", junitparser.Failure, "fail"),
        ("accuracy of every class", junitparser.Failure, "undecided"),
        ("latency p99", junitparser.Error, "not_measured"),
    ):
        (result,) = found[name].result
        assert (type(result), result.type) == (kind, outcome)
        assert result.message == f"what was found: {outcome}"


def test_the_counts_are_those_of_the_cases(judged: Results, tmp_path: Path) -> None:
    suite = parsed(judged, tmp_path)
    counts = suite.tests, suite.failures, suite.errors, suite.skipped
    suite.update_statistics()  # counts again
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == counts


@pytest.mark.parametrize(
    ("outcome", "optional", "green"),
    [
        ("pass", False, True),
        ("fail", False, False),
        ("undecided", False, False),
        ("not_measured", False, False),
        ("not_measured", True, True),
        ("fail", True, False),
        ("undecided", True, False),
    ],
)
def test_it_is_green_just_where_there_can_be_a_go(
    judged: Results, tmp_path: Path, outcome: str, optional: bool, green: bool
) -> None:
    verdict = judged.verdict.model_copy(update={"rules": [rule(outcome, optional=optional)]})
    suite = parsed(judged.model_copy(update={"verdict": verdict}), tmp_path)
    assert (suite.failures + suite.errors == 0) == green


@pytest.mark.parametrize("outcome", ["pass", "fail", "not_measured"])
def test_hostile_names_stay_text(judged: Results, tmp_path: Path, outcome: str) -> None:
    hostile = Rule.model_validate({"name": HOSTILE, "outcome": outcome, "message": HOSTILE})
    verdict = judged.verdict.model_copy(update={"rules": [hostile]})
    junit.write_junit(judged.model_copy(update={"verdict": verdict, "selected": HOSTILE}), tmp_path / "gate.xml")
    root = ElementTree.parse(tmp_path / "gate.xml").getroot()
    tags = [element.tag for element in root.iter()]
    kind = {"pass": "system-out", "fail": "failure", "not_measured": "error"}[outcome]
    assert tags == ["testsuites", "testsuite", "testcase", kind]
    name = root[0][0].get("name")
    assert name is not None
    assert name.startswith("<script>alert('&')</script> ]]> \\x00\\x1b[31m")
    assert "\u202e" not in name
