"""Verdicts, builds and names of a result as text."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

from validate.results import Basis, BuildResult, Decision, Results

__all__ = [
    "basis",
    "build_answer",
    "build_backend",
    "decision",
    "file_name",
    "headline",
    "outcome",
    "printable",
    "shorten",
    "timed_on_target",
]

_BASES: dict[Basis, str] = {
    "engine": "by the engine",
    "simulation": "by simulation",
    "kernels": "by integer kernels",
}


def decision(value: Decision) -> str:
    """Return a decision as people write it.

    Examples:
        >>> [decision(value) for value in Decision]
        ['GO', 'NO-GO', 'INCONCLUSIVE']
    """
    return value.value.replace("_", "-")


def outcome(value: str) -> str:
    """Return a rule's outcome in words.

    Examples:
        >>> outcome("not_measured")
        'not measured'
    """
    return value.replace("_", " ")


def basis(results: Results) -> str:
    """Return what gave the accuracy that was judged, in words; empty where results do not say it."""
    judged = results.verdict.basis
    if judged is None:
        return ""
    if judged == "simulation" and any(candidate.integer_kernels for candidate in results.candidates):
        return "by integer kernels and simulation"  # the CPU is the target: both are judged
    return _BASES[judged]


def timed_on_target(results: Results) -> bool:
    """Return whether the latencies are of what the model will run on."""
    speedups = (speedup for candidate in results.candidates for speedup in candidate.speedups)
    return any(speedup.on_target for speedup in speedups if speedup.basis == "measured")


def headline(results: Results) -> str:
    """Return the verdict as one sentence about the candidate that it is about, with its basis where that is known."""
    by, said = basis(results), _said(results)
    return f"{by.capitalize()}: {said}" if by else said


def _said(results: Results) -> str:
    name = results.selected
    match results.verdict.decision:
        case Decision.GO:
            return f"{name} may be released." if name is not None else "The model may be released."
        case Decision.NO_GO:
            return f"{name} must not be released." if name is not None else "No candidate may be released."
        case Decision.INCONCLUSIVE:
            return f"The measurements do not decide whether {name or 'a candidate'} may be released."


def build_answer(build: BuildResult) -> str:
    """Return whether TensorRT built the candidate: ``yes``, ``no`` or ``not checked``.

    Examples:
        >>> build_answer(BuildResult(ok=True, backend="tensorrt_rtx", version="1.2", message=""))
        'yes'
    """
    return "not checked" if build.ok is None else "yes" if build.ok else "no"


def build_backend(build: BuildResult) -> str:
    """Return the builder with its version; empty where none is known.

    Examples:
        >>> build_backend(BuildResult(ok=True, backend="tensorrt_rtx", version="1.2", message=""))
        'tensorrt_rtx 1.2'
    """
    return " ".join(part for part in (build.backend, build.version) if part)


def file_name(path: str) -> str:
    r"""Return the last part of a path of any operating system.

    Examples:
        >>> file_name("models/model.onnx"), file_name(r"C:\models\model.onnx")
        ('model.onnx', 'model.onnx')
    """
    name = PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
    return name or path


def shorten(text: str, limit: int) -> str:
    """Return `text`, with its middle replaced by ``...`` where it is longer than `limit` (at least 5).

    Examples:
        >>> shorten("backbone/layer4/conv2", 11)
        'back...onv2'
    """
    if len(text) <= limit:
        return text
    tail = (limit - 3) // 2
    return f"{text[: limit - 3 - tail]}...{text[-tail:]}"


def printable(text: str) -> str:
    r"""Return `text` with every invisible character as an escape such as ``\x1b``.

    Names come from files that others made. A terminal escape, or a character that changes the direction of text, must
    not act in a report. Newline, tab and the spaces stay.

    Examples:
        >>> print(printable("conv\x1b[31m"))
        conv\x1b[31m
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs" else _escape(char)
        for char in text
    )


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
