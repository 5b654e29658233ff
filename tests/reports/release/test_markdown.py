"""The Markdown summary, as a Markdown parser reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from reports import format as fmt
from reports.release import markdown
from tests.reports.conftest import BuildResults
from validate.results import Decision, Results, Rule, Verdict

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def read(text: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the texts of the list items, the rows of the table, and the kinds of all tokens."""
    tokens = PARSER.parse(text)
    items, rows, kinds = [], [], []
    for before, token in zip([None, *tokens], tokens, strict=False):
        kinds += [token.type, *(child.type for child in token.children or [])]
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and before is not None and before.type in {"td_open", "th_open"}:
            rows[-1].append(shown(token))
        elif token.type == "inline" and before is not None and before.level >= 2:
            items.append(shown(token))
    return items, rows, kinds


def shown(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def judged(results: Results, reasons: list[str], rules: list[Rule]) -> Results:
    return results.model_copy(update={"verdict": Verdict(decision=Decision.NO_GO, reasons=reasons, rules=rules)})


@pytest.fixture
def results(build_results: BuildResults) -> Results:
    return build_results()


def test_it_shows_the_decision_the_reasons_and_the_rules(results: Results, tmp_path: Path) -> None:
    rules = [
        Rule(name="accuracy", outcome="fail", message="m", value=0.05, threshold=0.01),
        Rule(name="latency p99", outcome="not_measured", message="m", threshold=5, unit="ms", optional=True),
        Rule(name="model size", outcome="pass", message="m", value=1234567, threshold=2e6, unit="bytes"),
    ]
    markdown.write_markdown(judged(results, ["-1.50% is too little", "a | b"], rules), tmp_path / "gate.md")
    items, rows, kinds = read((tmp_path / "gate.md").read_text(encoding="utf-8"))
    assert items == ["-1.50% is too little", "a | b"]
    assert rows == [
        ["rule", "outcome", "measured", "threshold"],
        ["accuracy", "fail", "0.05", "0.01"],
        ["latency p99", "not measured (optional)", "", "5 ms"],
        ["model size", "pass", "1,234,567 bytes", "2,000,000 bytes"],
    ]
    assert kinds.count("heading_open") == 1
    assert "## NO-GO" in (tmp_path / "gate.md").read_text(encoding="utf-8")


HARMLESS = {
    "heading_open",
    "inline",
    "heading_close",
    "paragraph_open",
    "paragraph_close",
    "bullet_list_open",
    "list_item_open",
    "list_item_close",
    "bullet_list_close",
    "table_open",
    "thead_open",
    "tr_open",
    "th_open",
    "th_close",
    "tr_close",
    "thead_close",
    "tbody_open",
    "td_open",
    "td_close",
    "tbody_close",
    "table_close",
    "text",
    "text_special",
}
MARKS = [
    "<script>alert(1)</script>",
    "![x](http://a.b/c.png)",
    "[x](javascript:alert(1))",
    "`code`",
    "**bold**",
    "a|b|c",
    "# title",
    "- item",
    "1. one",
    "12) two",
    "+ plus",
    "> quote",
    "~~gone~~",
    "&lt;",
    "a\nb",
    "a\n\n# b",
    "_x_",
    "\\",
    "---",
    "===",
    "<!--",
    "\x1b[31m",
    "```",
    "    code",
    "http://a.b",
    ":smile:",
    "| --- |",
    "\\|",
]


@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=8), min_size=1, max_size=4).map("".join))
@settings(deadline=None, max_examples=300)
def test_texts_of_others_are_shown_as_they_are(hostile: str) -> None:
    items, rows, kinds = read(
        f"- {markdown.escaped(hostile)}\n\n| a | b |\n| --- | --- |\n| {markdown.escaped(hostile)} | x |\n"
    )
    expected = " ".join(fmt.printable(hostile).split())
    assert set(kinds) <= HARMLESS
    if expected:
        assert items == [expected]
    assert rows == [["a", "b"], [expected, "x"]]


@pytest.mark.parametrize("text", ["http://a.b/c", "see https://a.b", ":smile:"])
def test_github_makes_no_link_and_no_emoji_of_it(text: str) -> None:
    escaped = markdown.escaped(text)
    assert not re.search(r"(?<!\\):(?=\S)", escaped)
