"""How the numbers and words of a result are written for people. Pure functions, shared by every report.

Numbers are written in ASCII, with a point and with commas between thousands.
"""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath

from validate.results import BuildResult, Cost, Decision, Latency, Results, cost_kind

__all__ = [
    "NOT_AVAILABLE",
    "build_answer",
    "build_backend",
    "cost",
    "cost_ratio",
    "cost_unit",
    "count",
    "decibels",
    "decision",
    "drop",
    "drop_unit",
    "file_name",
    "growth",
    "headline",
    "interval",
    "level",
    "metric_value",
    "milliseconds",
    "minus",
    "outcome",
    "passes",
    "percent",
    "printable",
    "quantity",
    "seconds",
    "share",
    "shorten",
    "significant",
    "size",
    "speed_up",
    "timestamp",
]

NOT_AVAILABLE = "n/a"


def metric_value(value: float, rate: bool) -> str:
    """Return a metric's value: in percent where it is a rate, else with four significant digits.

    >>> metric_value(0.97312, rate=True), metric_value(31.2345, rate=False), metric_value(math.nan, rate=True)
    ('97.31%', '31.23', 'n/a')
    """
    if not math.isfinite(value):
        return NOT_AVAILABLE
    return percent(value) if rate else _number(value, ".4g")


def percent(share: float) -> str:
    """Return a share in [0, 1] in percent.

    >>> percent(0.97312)
    '97.31%'
    """
    return _number(100 * share, ".2f") + "%"


def share(value: float) -> str:
    """Return a share in [0, 1] in percent; one that rounds to zero still differs from 0.

    >>> share(0.0), share(0.00001), share(0.3557)
    ('0', '<0.01%', '35.57%')
    """
    if math.isnan(value):
        return NOT_AVAILABLE
    return "0" if value == 0 else "<0.01%" if value < 0.0001 else percent(value)


def drop_unit(rate: bool) -> str:
    """Return the unit of drops and their bounds: percentage points for a rate, else none.

    >>> drop_unit(rate=True), drop_unit(rate=False)
    ('pp', '')
    """
    return "pp" if rate else ""


def drop(value: float, rate: bool) -> str:
    """Return a drop with its sign and without its unit. A drop that rounds to zero has no sign.

    >>> drop(0.0042, rate=True), drop(0.0042, rate=False), drop(-0.00001, rate=True)
    ('+0.42', '+0.0042', '0.00')
    """
    if math.isnan(value):
        return NOT_AVAILABLE
    return _number(100 * value, "+.2f") if rate else _number(value, "+.3g")


def interval(low: float, high: float, rate: bool) -> str:
    """Return the bounds of a drop without their unit.

    >>> interval(-0.001, 0.0094, rate=True)
    '[-0.10, +0.94]'
    """
    return f"[{drop(low, rate)}, {drop(high, rate)}]"


def significant(value: float) -> str:
    """Return a number of any magnitude, such as an error or a scale, with three significant digits.

    >>> significant(0.000123456)
    '0.000123'
    """
    return NOT_AVAILABLE if math.isnan(value) else _number(value, "#.3g")


def milliseconds(value: float) -> str:
    """Return milliseconds without their unit, with about three significant digits.

    >>> milliseconds(1234.5), milliseconds(0.0123)
    ('1,234', '0.012')
    """
    if not math.isfinite(value):
        return NOT_AVAILABLE
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return _number(value, f",.{digits}f")


def cost(value: Cost) -> str:
    """Return a cost without its unit: milliseconds as they are, anything else with a decimal prefix.

    >>> cost(Cost(basis="multiply-accumulates", value=1_820_000_000, unit="INT8-equivalent MACs", source=""))
    '1.82 G'
    """
    if value.unit == "ms" or not math.isfinite(value.value):
        return milliseconds(value.value)
    number = value.value
    for prefix in ("", " k", " M", " G"):
        if round(number, 2) < 1000:
            return _number(number, ".4g") + prefix
        number /= 1000
    return _number(number, ",.4g") + " T"


def cost_unit(value: Cost) -> str:
    """Return the unit of a cost, with whether it is measured or an estimate.

    >>> cost_unit(Cost(basis="estimate", value=1.5, unit="ms", source="roofline"))
    'ms, estimate'
    """
    return value.unit if value.basis == "multiply-accumulates" else f"{value.unit}, {value.basis}"


def cost_ratio(reference: Cost | None, value: Cost) -> float | None:
    """Return how many times cheaper `value` is, or None where the two costs are not of the same kind.

    >>> times = [Cost(basis="estimate", value=value, unit="ms", source="roofline") for value in (3.0, 2.0)]
    >>> cost_ratio(*times)
    1.5
    """
    if reference is None or value.value <= 0 or cost_kind(reference) != cost_kind(value):
        return None
    return reference.value / value.value


def passes(value: float) -> str:
    """Return a number of passes over samples, which need not be whole.

    >>> passes(21.0), passes(3.41)
    ('21', '3.4')
    """
    return f"{round(value, 1):,g}"


def seconds(value: float) -> str:
    """Return a duration with its units.

    >>> seconds(0.42), seconds(12.3), seconds(125), seconds(3720)
    ('0.42 s', '12.3 s', '2 min 05 s', '1 h 02 min')
    """
    if not math.isfinite(value):
        return NOT_AVAILABLE
    if value < 10:
        return f"{value:.2f} s"
    if round(value, 1) < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def timestamp(iso: str) -> str:
    """Return an ISO 8601 time with an offset, in UTC; anything else as it is.

    >>> timestamp("2026-11-23T22:27:38+01:00")
    '2026-11-23 21:27 UTC'
    """
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return iso if time.tzinfo is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def size(byte_count: int) -> str:
    """Return a file size in decimal units.

    >>> size(812), size(4096), size(10_900_000)
    ('812 B', '4.1 kB', '10.9 MB')
    """
    if byte_count < 1000:
        return f"{byte_count} B"
    value = float(byte_count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if round(value, 1) < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def count(value: int) -> str:
    """Return a whole number with commas between thousands.

    >>> count(12345)
    '12,345'
    """
    return f"{value:,}"


def decibels(sqnr: float) -> str:
    """Return an SQNR without its unit; ``exact`` where nothing differs, ``n/a`` where it is not a number.

    Minus infinity, of a reference that is zero everywhere, is ``n/a`` too: there is no signal to compare with.

    >>> decibels(31.24), decibels(math.inf), decibels(-math.inf)
    ('31.2', 'exact', 'n/a')
    """
    if sqnr == math.inf:
        return "exact"
    return _number(sqnr, ".1f") if math.isfinite(sqnr) else NOT_AVAILABLE


def level(sqnr: float) -> str:
    """Return an SQNR with its unit, or in words where it is not finite.

    >>> level(31.24), level(math.inf), level(math.nan), level(-math.inf)
    ('31.2 dB', 'exact', 'could not be computed', 'zero in the reference')
    """
    if math.isnan(sqnr):
        return "could not be computed"
    return "zero in the reference" if sqnr == -math.inf else decibels(sqnr) + " dB" * math.isfinite(sqnr)


def growth(db: float) -> str:
    """Return by how many dB error grows, with its sign and without its unit; ``lost`` where it grows without bound.

    >>> growth(3.21), growth(math.inf)
    ('+3.2', 'lost')
    """
    return NOT_AVAILABLE if math.isnan(db) else "lost" if db == math.inf else _number(db, "+.1f")


def speed_up(reference: Latency | None, latency: Latency | None) -> float | None:
    """Return how many times faster `latency` is, or None where device, runtime or batch size differ.

    >>> common = {"runtime": "ONNX Runtime", "device": "CPU", "batch_size": 1, "runs": 10, "p90_ms": 9, "p99_ms": 9}
    >>> speed_up(Latency(p50_ms=3.0, **common), Latency(p50_ms=2.0, **common))
    1.5
    """
    if reference is None or latency is None or latency.p50_ms <= 0:
        return None
    conditions = {(timed.device, timed.runtime, timed.batch_size) for timed in (reference, latency)}
    return reference.p50_ms / latency.p50_ms if len(conditions) == 1 else None


def decision(value: Decision) -> str:
    """Return a decision as people write it.

    >>> [decision(value) for value in Decision]
    ['GO', 'NO-GO', 'INCONCLUSIVE']
    """
    return value.value.replace("_", "-")


def outcome(value: str) -> str:
    """Return a rule's outcome in words.

    >>> outcome("not_measured")
    'not measured'
    """
    return value.replace("_", " ")


def quantity(value: float | None, unit: str) -> str:
    """Return a rule's measured value or threshold with its unit; empty where there is none.

    >>> quantity(31.2, "dB"), quantity(12345, "bytes"), quantity(0.0123, ""), quantity(None, "dB")
    ('31.2 dB', '12,345 bytes', '0.0123', '')
    """
    if value is None:
        return ""
    if math.isnan(value):
        return NOT_AVAILABLE
    number = f"{value:,.0f}" if unit in {"bytes", "samples"} else _number(value, ".4g")
    return f"{number} {unit}".rstrip()


def headline(results: Results) -> str:
    """Return the verdict as one sentence about the candidate that it is about."""
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

    >>> build_answer(BuildResult(ok=True, backend="tensorrt_rtx", version="1.2", message=""))
    'yes'
    """
    return "not checked" if build.ok is None else "yes" if build.ok else "no"


def build_backend(build: BuildResult) -> str:
    """Return the builder with its version; empty where none is known.

    >>> build_backend(BuildResult(ok=True, backend="tensorrt_rtx", version="1.2", message=""))
    'tensorrt_rtx 1.2'
    """
    return " ".join(part for part in (build.backend, build.version) if part)


def file_name(path: str) -> str:
    r"""Return the last part of a path of any operating system.

    >>> file_name("models/model.onnx"), file_name(r"C:\models\model.onnx")
    ('model.onnx', 'model.onnx')
    """
    name = PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
    return name or path


def shorten(text: str, limit: int) -> str:
    """Return `text`, with its middle replaced by ``...`` where it is longer than `limit` (at least 5).

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


def _number(value: float, spec: str) -> str:
    """Format, without the sign of a zero."""
    text = format(value, spec)
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text


def minus(text: str) -> str:
    """Return the text of a number with typographic minus signs in place of hyphens.

    >>> minus("-0.42")
    '−0.42'
    """
    return text.replace("-", "\N{MINUS SIGN}")
