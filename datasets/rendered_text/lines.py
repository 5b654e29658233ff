"""Text-line images with their text, rendered on the fly for the PP-OCRv4 recognition model.

The i-th line is a pure function of ``(seed, i)``: a longer stream begins with the shorter one, and nothing
is stored. The texts look like what is read off invoices, labels and nameplates; the images are degraded
(low resolution, blur, noise, low contrast, rotation, JPEG) until the float model makes some mistakes, so that
a loss by INT8 can show. README.md is the data card.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["HEIGHT", "WIDTH", "lines", "to_input"]

HEIGHT = 48
"""Rows of the model's input."""

WIDTH = 320
"""Columns of the model's input: one width for every line, so that lines can be batched."""

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
)
"""Files in the folder of fonts that matplotlib ships."""

CODE_LETTERS = "ACDEFGHJKLMNPRTUVWXY"
"""Capitals of serial numbers: without B, I, O, Q, S and Z, which degrade into digits."""

CODE_DIGITS = "23456789"
"""Digits next to CODE_LETTERS: without 0 and 1, which degrade into letters."""

LABELS = (
    "Account",
    "Amount",
    "Batch",
    "Contract",
    "Customer",
    "Delivery",
    "Gross",
    "Invoice",
    "Item",
    "Net",
    "Number",
    "Order",
    "Price",
    "Receipt",
    "Ref",
    "Subtotal",
    "Ticket",
    "Weight",
)

PRODUCTS = (
    "Adapter",
    "Battery",
    "Bearing",
    "Cable",
    "Charger",
    "Compressor",
    "Filter",
    "Gasket",
    "Hammer",
    "Monitor",
    "Motor",
    "Printer",
    "Pump",
    "Router",
    "Scanner",
    "Sensor",
    "Toner",
    "Valve",
)

UNITS = ("cm", "kg", "mm", "kW", "Hz", "bar", "pcs")

MAILBOXES = ("desk", "help", "mail", "order", "parts", "repair", "sales", "team")

DOMAINS = ("acme", "depot", "market", "north", "works")

BLUR = (0.01, 0.065)
"""Range of the radius of the blur, as a share of the image's height."""

NOISE = (0.02, 0.12)
"""Range of the standard deviation of the noise, as a share of the image's contrast."""

Rng = np.random.Generator


def lines(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields ``n`` labelled text lines, the i-th of which depends on ``seed`` and i only.

    Args:
        n: How many lines, >= 0.
        seed: >= 0. Lines of different seeds differ in their noise always, and in their text nearly always.

    Yields:
        ``image``: an RGB ``PIL.Image``, about 15 to 60 pixels high and 50 to 400 wide;
        ``text``: what it says, 5 to 21 printable ASCII characters, all in the model's dictionary.
    """
    for i in range(n):
        yield _line(np.random.default_rng([seed, i]))


def to_input(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Makes the model's input of one line, as PP-OCR does: resize to the height, normalise, pad on the right.

    Args:
        row: A row of `lines`; only ``image`` is read, of any size and mode.

    Returns:
        ``x``: float32 [3, HEIGHT, WIDTH], channels in the order blue, green, red. The pixels are in
        [-1, 1], the padding is 0. A line too long for WIDTH is squeezed into it.
    """
    image: Image.Image = row["image"].convert("RGB")
    width = min(WIDTH, max(1, round(image.width * HEIGHT / image.height)))
    resized = image.resize((width, HEIGHT), Image.Resampling.BILINEAR)
    rgb = np.asarray(resized, dtype=np.float32)
    x = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    x[:, :, :width] = (rgb[:, :, ::-1].transpose(2, 0, 1) / 255.0 - 0.5) / 0.5
    return {"x": x}


def _line(rng: Rng) -> dict[str, Any]:
    """Writes a text, draws it and degrades the image."""
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    text = template(rng)
    image = _degrade(_paint(_ink(text, rng), rng), rng)
    return {"image": image, "text": text}


# Texts


def _pick(rng: Rng, options: tuple[str, ...]) -> str:
    """One of the options, each as likely as the other."""
    return options[int(rng.integers(len(options)))]


def _chars(rng: Rng, alphabet: str, n: int) -> str:
    """``n`` characters of the alphabet, independent of each other."""
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=n))


def _digits(rng: Rng, n: int) -> str:
    """A number of ``n`` digits whose first is not 0."""
    return str(rng.integers(10 ** (n - 1), 10**n))


def _invoice(rng: Rng) -> str:
    """Such as INV-2024-048213."""
    prefix = _pick(rng, ("INV", "RE", "RMA", "CN", "DN"))
    return f"{prefix}-{rng.integers(2005, 2030)}-{rng.integers(10**6):06d}"


def _date(rng: Rng) -> str:
    """Such as 2024-03-17T14:35, 17.03.2024, 03/17/2024 or 17-MAR-2024."""
    day, month, year = rng.integers(1, 29), int(rng.integers(1, 13)), rng.integers(1990, 2035)
    time = f"{rng.integers(24):02d}:{rng.integers(60):02d}"
    name = "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC"[3 * month - 3 : 3 * month]
    forms = (
        f"{year}-{month:02d}-{day:02d}T{time}",
        f"{day:02d}.{month:02d}.{year}",
        f"{month:02d}/{day:02d}/{year}",
        f"{day:02d}-{name}-{year}",
    )
    return _pick(rng, forms)


def _price(rng: Rng) -> str:
    """Such as $1,249.50 or EUR870.20."""
    amount = 10 ** rng.uniform(2.0, 5.0)
    return f"{_pick(rng, ('$', 'EUR', 'USD', 'Total:', ''))}{amount:,.2f}"


def _serial(rng: Rng) -> str:
    """Such as WY648-8XV3 or GJ973-2JPX-9885: groups of characters that do not look alike."""
    groups = (
        _chars(rng, CODE_LETTERS, 2) + _chars(rng, CODE_DIGITS, 3),
        _chars(rng, CODE_DIGITS + CODE_LETTERS, 4),
        _chars(rng, CODE_DIGITS, 4),
    )
    return "-".join(groups[: int(rng.integers(2, 4))])


def _product(rng: Rng) -> str:
    """Such as Bearing-N6204 or Pump X350; the only texts with spaces, since the model drops many of them."""
    model = _chars(rng, CODE_LETTERS, 1) + _digits(rng, int(rng.integers(2, 5)))
    return f"{_pick(rng, PRODUCTS)}{_pick(rng, ('-', '-', '-', ' '))}{model}"


def _measure(rng: Rng) -> str:
    """Such as 24.75kg or 230.4-256.1mm."""
    unit = _pick(rng, UNITS)
    if rng.random() < 0.5:
        return f"{rng.uniform(1, 10000):.2f}{unit}"
    return f"{rng.uniform(1, 500):.1f}-{rng.uniform(500, 1000):.1f}{unit}"


def _labelled(rng: Rng) -> str:
    """Such as Weight:482.50 or Order#4821736."""
    number = _digits(rng, 7) if rng.random() < 0.5 else f"{rng.uniform(10, 100000):.2f}"
    return f"{_pick(rng, LABELS)}{_pick(rng, (':', '#', '='))}{number}"


def _contact(rng: Rng) -> str:
    """Such as +49-30-4821736 or sales2746@acme.com."""
    if rng.random() < 0.5:
        return f"+{_digits(rng, 2)}-{_digits(rng, 2)}-{_digits(rng, 7)}"
    return f"{_pick(rng, MAILBOXES)}{_chars(rng, CODE_DIGITS, 4)}@{_pick(rng, DOMAINS)}.com"


TEMPLATES: tuple[Callable[[Rng], str], ...] = (
    _invoice,
    _date,
    _price,
    _serial,
    _serial,
    _product,
    _measure,
    _labelled,
    _contact,
)


# Images


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's, with the layout engine that every build of Pillow has."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _ink(text: str, rng: Rng) -> Image.Image:
    """Draws the text, slightly rotated, in white on black: mode L, with a margin of up to size / 3."""
    size = int(rng.integers(15, 31))
    font = _font(_pick(rng, FONTS), size)
    left, top, right, bottom = (int(v) for v in font.getbbox(text))
    across, above, below = (int(v) for v in rng.integers(size // 8, 1 + size // 3, size=3))
    ink = Image.new("L", (right - left + 2 * across, bottom - top + above + below))
    ImageDraw.Draw(ink).text((across - left, above - top), text, fill=255, font=font)
    return ink.rotate(float(rng.normal(0.0, 0.8)), Image.Resampling.BICUBIC, expand=True)


def _colours(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Background and text colour: float64 [3] each, in [0, 255], dark on light three times of four.

    The contrast is between 45 and 200 grey levels, with some colour on top.
    """
    contrast = rng.uniform(45.0, 200.0)
    dark = rng.uniform(0.0, 255.0 - contrast)
    tint = rng.normal(0.0, 10.0, size=(2, 3))
    grey = (dark + contrast, dark) if rng.random() < 0.75 else (dark, dark + contrast)
    back, fore = np.clip(np.array(grey)[:, None] + tint, 0.0, 255.0)
    return back, fore


def _paint(ink: Image.Image, rng: Rng) -> np.ndarray:
    """Puts the ink on a background that is lit unevenly: float64 [H, W, 3], around [0, 255]."""
    back, fore = _colours(rng)
    first, last = rng.uniform(-20.0, 20.0, size=2)
    light = np.linspace(first, last, ink.width)
    alpha = np.asarray(ink, dtype=np.float64)[:, :, None] / 255.0
    painted: np.ndarray = back + alpha * (fore - back) + light[None, :, None]
    return painted


def _degrade(pixels: np.ndarray, rng: Rng) -> Image.Image:
    """Blurs float64 [H, W, 3], adds noise and compresses as JPEG.

    The blur is relative to the height and the noise to the contrast: that keeps most lines near the edge of
    what can be read, where INT8 hurts, and few far beyond it.
    """
    sharp = Image.fromarray(np.clip(pixels, 0.0, 255.0).astype(np.uint8))
    blurred = sharp.filter(ImageFilter.GaussianBlur(pixels.shape[0] * float(rng.uniform(*BLUR))))
    sigma = np.float32(np.ptp(pixels) * rng.uniform(*NOISE))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * sigma
    noisy = np.clip(np.asarray(blurred, dtype=np.float32) + noise, 0.0, 255.0).astype(np.uint8)
    return _jpeg(Image.fromarray(noisy), int(rng.integers(30, 91)))


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image as it comes back from a JPEG file of this quality, in 1..95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
