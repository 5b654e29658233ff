"""A verdict as JUnit XML, which CI systems show rule by rule."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from reports import format as fmt
from validate.records import write_text
from validate.results import Results, Rule

__all__ = ["text", "write_junit"]


def write_junit(results: Results, path: Path) -> None:
    """Write the verdict as JUnit XML, in UTF-8; see `text`."""
    write_text(text(results), path)


def text(results: Results) -> str:
    """Return the verdict as a JUnit XML document: the policy is a test suite and each rule a test case.

    The name of the suite ends with what the verdict is based on: by the engine, or by simulation. A rule that fails, or
    is undecided, is a failure. A rule that was not measured is an error, since it says nothing of the model, or skipped
    where it is optional. CI systems show the document as passed exactly where the decision is GO.
    """
    rules = results.verdict.rules
    selected = results.selected or "no candidate"
    blocking = [rule for rule in rules if rule.blocks_release]
    counts = {
        "tests": len(rules),
        "failures": sum(rule.outcome != "not_measured" for rule in blocking),
        "errors": sum(rule.outcome == "not_measured" for rule in blocking),
        "skipped": sum(rule.outcome == "not_measured" and rule.optional for rule in rules),
    }
    by = fmt.basis(results)
    attributes = {"name": f"policy on {selected}{f', {by}' if by else ''}", "timestamp": results.created, "time": "0"}
    attributes |= {key: str(value) for key, value in counts.items()}
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", {key: fmt.printable(value) for key, value in attributes.items()})
    for rule in rules:
        _case(suite, rule, selected)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode", xml_declaration=False) + "\n"


def _case(suite: ElementTree.Element, rule: Rule, selected: str) -> None:
    name, message = fmt.printable(rule.name), fmt.printable(rule.message)
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": fmt.printable(f"gate.{selected}"), "name": name, "time": "0"}
    )
    if rule.blocks_release:
        kind = "error" if rule.outcome == "not_measured" else "failure"
        found = ElementTree.SubElement(case, kind, {"message": message, "type": rule.outcome})
        found.text = message
    elif rule.outcome == "not_measured":
        ElementTree.SubElement(case, "skipped", {"message": message})
    else:
        ElementTree.SubElement(case, "system-out").text = message
