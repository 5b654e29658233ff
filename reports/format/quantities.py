"""Numbers of a result as text, in ASCII, with a point and with commas between thousands."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from validate.results import Cost, Latency, cost_kind

__all__ = [
    "NOT_AVAILABLE",
    "cost",
    "cost_ratio",
    "cost_unit",
    "count",
    "decibels",
    "drop",
    "drop_unit",
    "growth",
    "interval",
    "level",
    "metric_value",
    "milliseconds",
    "minus",
    "passes",
    "percent",
    "quantity",
    "seconds",
    "share",
    "significant",
    "size",
    "speed_up",
    "timestamp",
]

NOT_AVAILABLE = "n/a"


def metric_value(value: float, rate: bool) -> str:
    """Return a metric's value: in percent where it is a rate, else with four significant digits.

    Examples:
        >>> metric_value(0.97312, rate=True), metric_value(31.2345, rate=False), metric_value(math.nan, rate=True)
        ('97.31%', '31.23', 'n/a')
    """
    if not math.isfinite(value):
        return NOT_AVAILABLE
    return percent(value) if rate else _number(value, ".4g")


def percent(share: float) -> str:
    """Return a share in [0, 1] in percent.

    Examples:
        >>> percent(0.97312)
        '97.31%'
    """
    return _number(100 * share, ".2f") + "%"


def share(value: float) -> str:
    """Return a share in [0, 1] in percent; one that rounds to zero still differs from 0.

    Examples:
        >>> share(0.0), share(0.00001), share(0.3557)
        ('0', '<0.01%', '35.57%')
    """
    if math.isnan(value):
        return NOT_AVAILABLE
    return "0" if value == 0 else "<0.01%" if value < 0.0001 else percent(value)


def drop_unit(rate: bool) -> str:
    """Return the unit of drops and their bounds: percentage points for a rate, else none.

    Examples:
        >>> drop_unit(rate=True), drop_unit(rate=False)
        ('pp', '')
    """
    return "pp" if rate else ""


def drop(value: float, rate: bool) -> str:
    """Return a drop with its sign and without its unit. A drop that rounds to zero has no sign.

    Examples:
        >>> drop(0.0042, rate=True), drop(0.0042, rate=False), drop(-0.00001, rate=True)
        ('+0.42', '+0.0042', '0.00')
    """
    if math.isnan(value):
        return NOT_AVAILABLE
    return _number(100 * value, "+.2f") if rate else _number(value, "+.3g")


def interval(low: float, high: float, rate: bool) -> str:
    """Return the bounds of a drop without their unit.

    Examples:
        >>> interval(-0.001, 0.0094, rate=True)
        '[-0.10, +0.94]'
    """
    return f"[{drop(low, rate)}, {drop(high, rate)}]"


def significant(value: float) -> str:
    """Return a number of any magnitude, such as an error or a scale, with three significant digits.

    Examples:
        >>> significant(0.000123456)
        '0.000123'
    """
    return NOT_AVAILABLE if math.isnan(value) else _number(value, "#.3g")


def milliseconds(value: float) -> str:
    """Return milliseconds without their unit, with about three significant digits.

    Examples:
        >>> milliseconds(1234.5), milliseconds(0.0123)
        ('1,234', '0.012')
    """
    if not math.isfinite(value):
        return NOT_AVAILABLE
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return _number(value, f",.{digits}f")


def cost(value: Cost) -> str:
    """Return a cost without its unit: milliseconds as they are, anything else with a decimal prefix.

    Examples:
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

    Examples:
        >>> cost_unit(Cost(basis="estimate", value=1.5, unit="ms", source="roofline"))
        'ms, estimate'
    """
    return value.unit if value.basis == "multiply-accumulates" else f"{value.unit}, {value.basis}"


def cost_ratio(reference: Cost | None, value: Cost) -> float | None:
    """Return how many times cheaper `value` is, or None where the two costs are not of the same kind.

    Examples:
        >>> times = [Cost(basis="estimate", value=value, unit="ms", source="roofline") for value in (3.0, 2.0)]
        >>> cost_ratio(*times)
        1.5
    """
    if reference is None or value.value <= 0 or cost_kind(reference) != cost_kind(value):
        return None
    return reference.value / value.value


def passes(value: float) -> str:
    """Return a number of passes over samples, which need not be whole.

    Examples:
        >>> passes(21.0), passes(3.41)
        ('21', '3.4')
    """
    return f"{round(value, 1):,g}"


def seconds(value: float) -> str:
    """Return a duration with its units.

    Examples:
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

    Examples:
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

    Examples:
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

    Examples:
        >>> count(12345)
        '12,345'
    """
    return f"{value:,}"


def decibels(sqnr: float) -> str:
    """Return an SQNR without its unit; ``exact`` where nothing differs, ``n/a`` where it is not a number.

    Minus infinity, of a reference that is zero everywhere, is ``n/a`` too: there is no signal to compare with.

    Examples:
        >>> decibels(31.24), decibels(math.inf), decibels(-math.inf)
        ('31.2', 'exact', 'n/a')
    """
    if sqnr == math.inf:
        return "exact"
    return _number(sqnr, ".1f") if math.isfinite(sqnr) else NOT_AVAILABLE


def level(sqnr: float) -> str:
    """Return an SQNR with its unit, or in words where it is not finite.

    Examples:
        >>> level(31.24), level(math.inf), level(math.nan), level(-math.inf)
        ('31.2 dB', 'exact', 'could not be computed', 'zero in the reference')
    """
    if math.isnan(sqnr):
        return "could not be computed"
    return "zero in the reference" if sqnr == -math.inf else decibels(sqnr) + " dB" * math.isfinite(sqnr)


def growth(db: float) -> str:
    """Return by how many dB error grows, with its sign and without its unit; ``lost`` where it grows without bound.

    Examples:
        >>> growth(3.21), growth(math.inf)
        ('+3.2', 'lost')
    """
    return NOT_AVAILABLE if math.isnan(db) else "lost" if db == math.inf else _number(db, "+.1f")


def speed_up(reference: Latency | None, latency: Latency | None) -> float | None:
    """Return how many times faster `latency` is, or None where device, runtime or batch size differ.

    Examples:
        >>> common = {"runtime": "ONNX Runtime", "device": "CPU", "batch_size": 1, "runs": 10, "p90_ms": 9, "p99_ms": 9}
        >>> speed_up(Latency(p50_ms=3.0, **common), Latency(p50_ms=2.0, **common))
        1.5
    """
    if reference is None or latency is None or latency.p50_ms <= 0:
        return None
    alike = (reference.device, reference.runtime, reference.batch_size) == (
        latency.device,
        latency.runtime,
        latency.batch_size,
    )
    return reference.p50_ms / latency.p50_ms if alike else None


def quantity(value: float | None, unit: str) -> str:
    """Return a rule's measured value or threshold with its unit; empty where there is none.

    Examples:
        >>> quantity(31.2, "dB"), quantity(12345, "bytes"), quantity(0.0123, ""), quantity(None, "dB")
        ('31.2 dB', '12,345 bytes', '0.0123', '')
    """
    if value is None:
        return ""
    if math.isnan(value):
        return NOT_AVAILABLE
    number = f"{value:,.0f}" if unit in {"bytes", "samples"} else _number(value, ".4g")
    return f"{number} {unit}".rstrip()


def _number(value: float, spec: str) -> str:
    """Format, without the sign of a zero."""
    text = format(value, spec)
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text


def minus(text: str) -> str:
    """Return the text of a number with typographic minus signs in place of hyphens.

    Examples:
        >>> minus("-0.42")
        '−0.42'
    """
    return text.replace("-", "\N{MINUS SIGN}")
