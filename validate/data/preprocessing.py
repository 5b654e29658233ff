"""Preprocessing of a row to model inputs: by settings, or as torchvision, timm or transformers know it.

Whatever is used can say what it does in a sentence, which results and reports show: a wrong preprocessing is the usual
reason for an accuracy that is too low.
"""

from __future__ import annotations

import hashlib
import io
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from validate.exceptions import JobError
from validate.references import config_folder
from validate.settings import Section

__all__ = ["ImagePreprocessing", "NamedPreprocessing", "Preparation", "Preprocess", "as_image"]

Array = NDArray[Any]
Row = Mapping[str, Any]
Preprocess = Callable[[Row], Array | Mapping[str, Array]]

_IGNORED = -100  # label of a token that is not scored, by Hugging Face's and PyTorch's convention
_KINDS = ("torchvision", "timm", "processor", "tokenizer")


@dataclass(frozen=True)
class Preparation:
    """A preprocessing of rows to inputs, and its description.

    Attributes:
        call: None: the columns with the inputs' names are the inputs.
        description: what it does, a sentence.
        rows: how many rows of the model's batch one sample becomes; with more than one they are axis 0 of every array.
    """

    call: Preprocess | None
    description: str
    rows: int = 1


class ImagePreprocessing(BaseModel):
    """An image column to one NCHW float32 input: resize, centre crop, rescale, normalise.

    ``value = (pixel * rescale - mean) / std`` with pixel in 0..255, per channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = "image"
    resize: int | None = Field(default=None, ge=1, description="shorter side, in pixels, before the crop")
    crop: int | None = Field(default=None, ge=1, description="side of the square centre crop, in pixels")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    channels: Literal["RGB", "BGR"] = "RGB"
    rescale: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, row: Row) -> Array:
        """Return the image of `row` as float32 of shape (3, height, width).

        Examples:
            >>> to_input = ImagePreprocessing(resize=8, crop=6, mean=(0, 0, 0), std=(1, 1, 1))
            >>> array = to_input({"image": np.full((10, 20, 3), 255, np.uint8)})
            >>> array.shape, array.dtype.name, float(array.max())
            ((3, 6, 6), 'float32', 1.0)
        """
        from PIL import Image

        image = _rgb(row[self.column])
        if self.resize:
            # Rounded down, as torchvision's Resize does, with which most models were trained and scored.
            short = min(image.size)
            size = (self.resize * image.width // short, self.resize * image.height // short)
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        if self.crop:
            if min(image.size) < self.crop:
                raise ValueError(f"the image is {image.width} x {image.height}, smaller than the crop of {self.crop}")
            left, top = round((image.width - self.crop) / 2), round((image.height - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(image, np.float32)
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((pixels * np.float32(self.rescale) - mean) / std).transpose(2, 0, 1))

    def describe(self) -> str:
        """Return what is done, as a sentence."""
        steps = [f"shorter side to {self.resize} ({self.interpolation})"] if self.resize else []
        steps += [f"centre crop {self.crop}"] if self.crop else []
        mean, std = (", ".join(f"{x:g}" for x in values) for values in (self.mean, self.std))
        return ", ".join([*steps, f"{self.channels}, (pixel * {self.rescale:.6g} - ({mean})) / ({std})"])


class NamedPreprocessing(Section):
    """Preprocessing as torchvision, timm or transformers define it for a model: exactly one of the first four keys."""

    torchvision: str | None = Field(
        default=None, description="weights whose transforms are applied, e.g. ResNet18_Weights.IMAGENET1K_V1"
    )
    timm: str | None = Field(default=None, description="model whose data config is applied, e.g. resnet18.a1_in1k")
    processor: str | None = Field(
        default=None, description="a folder with a Hugging Face image processor, or its name on the hub"
    )
    tokenizer: str | None = Field(
        default=None, description="a folder with a Hugging Face tokenizer, or its name on the hub"
    )
    revision: str | None = Field(default=None, description="commit or tag on the hub; pin it")
    column: str = Field(default="image", description="column of the image")
    text: tuple[str, ...] = Field(
        default=("text",), min_length=1, max_length=2, description="tokenizer: column of the text, or of two"
    )
    together: bool = Field(
        default=False, description="tokenizer: two texts are one input (cross-encoder), else a model row each"
    )
    max_length: int = Field(default=128, ge=1, description="tokenizer: tokens that each text is padded or cut to")
    mask: float | None = Field(
        default=None, gt=0, lt=1, description="tokenizer: share of tokens to mask; the label becomes what was there"
    )

    @field_validator("processor", "tokenizer")
    @classmethod
    def _folder_or_hub(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        folder = config_folder(info) / Path(value).expanduser()
        if folder.is_dir():
            return str(folder.resolve())
        if value.startswith((".", "/", "~")):
            raise ValueError(f"{folder.resolve()} is no folder")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> NamedPreprocessing:
        given = [kind for kind in _KINDS if getattr(self, kind)]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of torchvision, timm, processor and tokenizer (found {found})")
        tokenizer = ("tokenizer",)
        owners = {
            "revision": ("processor", "tokenizer"),
            "column": _KINDS[:3],
            "text": tokenizer,
            "together": tokenizer,
            "max_length": tokenizer,
            "mask": tokenizer,
        }
        for key, of in owners.items():
            if key in self.model_fields_set and given[0] not in of:
                raise ValueError(f"{key} belongs to {' and '.join(of)}, not to {given[0]}")
        if self.together and len(self.text) != 2:
            raise ValueError("together needs two columns in text")
        if self.mask is not None and len(self.text) != 1:
            raise ValueError("mask needs one column in text")
        if self.torchvision:  # what needs no file is made now, so that a mistake in a name has a line
            _torchvision(self.torchvision)
        elif self.timm:
            _timm(self.timm)
        return self

    def prepare(self, label: str | None) -> Preparation:
        """Load the preprocessing and return it with its description.

        Args:
            label: column of the label, where samples have one: a tokenizer moves labels of words to their tokens.

        Raises:
            JobError: the processor or the tokenizer cannot be loaded.
        """
        if self.torchvision:
            transform = _torchvision(self.torchvision)
            return Preparation(
                lambda row: np.asarray(transform(_rgb(row[self.column]))),
                f"torchvision {self.torchvision}: {_line(transform)}",
            )
        if self.timm:
            transform, settings = _timm(self.timm)
            return Preparation(
                lambda row: np.asarray(transform(_rgb(row[self.column]))),
                f"timm {self.timm}: {', '.join(f'{k} {v}' for k, v in settings.items())}; {_line(transform)}",
            )
        if self.processor:
            processor = _from_hub("AutoImageProcessor", self.processor, self.revision)
            kept = {k: v for k, v in sorted(processor.to_dict().items()) if v is not None and not k.endswith("_type")}
            return Preparation(
                lambda row: _only(processor(images=_rgb(row[self.column]), return_tensors="pt")),
                f"{type(processor).__name__} of {self.processor}: {', '.join(f'{k} {v}' for k, v in kept.items())}",
            )
        assert self.tokenizer is not None  # `_one_kind`
        call = _Tokenize(_from_hub("AutoTokenizer", self.tokenizer, self.revision), self, label)
        return Preparation(call, call.describe(), 1 if self.together else len(self.text))


class _Tokenize:
    """Texts of a row to token ids, padded to one length; and labels to match, where they go by words or are masked."""

    def __init__(self, tokenizer: Any, settings: NamedPreprocessing, label: str | None) -> None:
        self._tokenizer, self._settings, self._label = tokenizer, settings, label
        self._lock = threading.Lock()  # fast tokenizers are not safe to call from several threads
        if settings.mask is not None and tokenizer.mask_token_id is None:
            raise JobError(f"data.preprocess.mask: the tokenizer {settings.tokenizer} has no mask token")

    def __call__(self, row: Row) -> Mapping[str, Array]:
        settings = self._settings
        texts = [row[column] for column in settings.text]
        words = not isinstance(texts[0], str)
        texts = [list(text) if words else text for text in texts]
        arguments = texts if settings.together or len(texts) == 1 else [texts]
        with self._lock:
            encoded = self._tokenizer(
                *arguments,
                is_split_into_words=words,
                padding="max_length",
                truncation=True,
                max_length=settings.max_length,
                return_special_tokens_mask=settings.mask is not None,
            )
        arrays = {name: np.asarray(values, np.int64) for name, values in encoded.items()}
        if settings.mask is not None:
            # The same tokens every time, and others in every text. All become the mask: what is said of 80, 10 and 10
            # percent (Devlin et al. 2019, appendix A.1) is for training.
            rng = np.random.default_rng(zlib.crc32(str(texts[0]).encode()))
            places = np.flatnonzero(arrays.pop("special_tokens_mask") == 0)
            masked = rng.permutation(places)[: max(1, round(settings.mask * len(places)))]
            wanted = np.full_like(arrays["input_ids"], _IGNORED)
            wanted[masked] = arrays["input_ids"][masked]
            arrays["input_ids"][masked] = self._tokenizer.mask_token_id
            arrays |= {self._label: wanted} if self._label else {}
        elif words and self._label is not None and self._label in row and len(row[self._label]) == len(texts[0]):
            arrays[self._label] = _of_first_tokens(encoded.word_ids(0), row[self._label])
        return arrays

    def describe(self) -> str:
        settings = self._settings
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        digest = hashlib.sha256(backend.to_str().encode()).hexdigest()[:12] if backend is not None else "unknown"
        how = " together" if settings.together else " each" if len(settings.text) == 2 else ""
        masked = f", {settings.mask:g} of the tokens masked" if settings.mask is not None else ""
        return (
            f"{type(self._tokenizer).__name__} of {settings.tokenizer} (content {digest}): "
            f"{' and '.join(settings.text)}{how}, padded or cut to {settings.max_length} tokens{masked}"
        )


def _of_first_tokens(words: list[int | None], labels: Any) -> Array:
    """Return a label per token: that of its word for the first token of each, else -100."""
    found, previous = [], None
    for word in words:
        found.append(_IGNORED if word is None or word == previous else int(labels[word]))
        previous = word
    return np.array(found, np.int64)


def as_image(value: Any) -> Any:
    """Decode the image that a row holds, and return it as a PIL image.

    The pixels are those of the file: EXIF's orientation is ignored, as it is by torchvision and timm, with which most
    models are trained and scored.

    Args:
        value: a PIL image, an array, undecoded bytes, a path, or a mapping of ``bytes`` and ``path``, one of which may
            be null.

    Raises:
        ValueError: it is none of these, or no image can be read from it.

    Examples:
        >>> as_image(np.zeros((2, 3, 3), np.uint8)).size  # width, height
        (3, 2)
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    image: Image.Image
    try:
        if isinstance(value, bytes):
            image = Image.open(io.BytesIO(value))
        elif isinstance(value, str | Path):
            image = Image.open(value)
        elif isinstance(value, np.ndarray):
            image = _of_array(value)
        elif isinstance(value, Image.Image):
            image = value
        else:
            raise ValueError(f"an image must be encoded bytes, a path or an array, but it is {value!r:.80}")
        image.load()
    except UnidentifiedImageError:
        where = f"its {len(value)} bytes" if isinstance(value, bytes) else value
        raise ValueError(f"no image in a format that Pillow knows is in {where}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's, of a broken PNG
        raise ValueError(f"the image cannot be read: {error}") from error
    return image


def _of_array(array: Array) -> Any:
    from PIL import Image

    try:
        return Image.fromarray(array)
    except TypeError:
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype} is no image") from None


def _rgb(value: Any) -> Any:
    """Return a PIL image with three channels of eight bits. Raises ValueError where there is none, or it has more bits.

    Pillow would cut these off at 255 without a word, so that the model would see white.
    """
    image = as_image(value)
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"the image has more than 8 bits for a pixel (Pillow's mode {image.mode}), and how these are scaled is for "
            "the model's training to say; do it in a preprocessing of your own (data.preprocess: file.py:name)"
        )
    return image.convert("RGB")


@cache
def _torchvision(weights: str) -> Any:
    """Return the transforms of torchvision weights. Raises ValueError where there are none."""
    try:
        from torchvision.models import get_weight
    except ImportError:
        raise ValueError("the package torchvision is not installed (pip install torchvision)") from None
    try:
        return get_weight(weights).transforms()
    except (ValueError, KeyError, AttributeError):
        raise ValueError(
            f"torchvision has no weights {weights!r}; they are written like ResNet18_Weights.IMAGENET1K_V1"
        ) from None


@cache
def _timm(model: str) -> tuple[Any, dict[str, Any]]:
    """Return the transforms of a timm model and its data config. Raises ValueError where there are none."""
    try:
        import timm
        import timm.data
    except ImportError:
        raise ValueError("the package timm is not installed (pip install timm)") from None
    found = timm.get_pretrained_cfg(model)
    if found is None:
        raise ValueError(f"timm has no model {model!r} with a data config; see timm.list_pretrained()")
    settings = timm.data.resolve_data_config(pretrained_cfg=found.to_dict())
    return timm.data.create_transform(**settings, is_training=False), settings


@cache
def _from_hub(kind: str, name: str, revision: str | None) -> Any:
    """Load a Hugging Face processor or tokenizer. Raises JobError where that fails."""
    try:
        import transformers
    except ImportError:
        raise JobError("data.preprocess needs the package transformers (pip install transformers)") from None
    try:
        return getattr(transformers, kind).from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError, ImportError, KeyError) as error:  # what transformers raises on what it cannot load
        what = "tokenizer" if kind == "AutoTokenizer" else "image processor"
        raise JobError(f"{name} cannot be loaded as {what}: {' '.join(str(error).split())[:300]}") from error


def _only(found: Mapping[str, Any]) -> Array | Mapping[str, Array]:
    """Return the arrays of one image; without a name where there is one, as models call their input as they like."""
    arrays = {name: np.asarray(values[0]) for name, values in found.items()}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _line(transform: Any) -> str:
    return " ".join(str(transform).split())
