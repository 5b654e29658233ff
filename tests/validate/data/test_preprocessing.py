"""Preprocessing by name: against the libraries' own calls, or the same steps written out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict

from validate.data.preprocessing import ImagePreprocessing, NamedPreprocessing
from validate.data.stream import UNION_BRANCHES, DataConfig, SampleStream
from validate.exceptions import JobError, UsageError
from validate.settings import read_settings

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "un", "##happy"]


class Job(BaseModel):
    model_config = ConfigDict(extra="ignore")
    union_branches: ClassVar = UNION_BRANCHES

    data: DataConfig


def named(**keys: Any) -> NamedPreprocessing:
    return NamedPreprocessing.model_validate(keys)


def applied(row: dict[str, Any], label: str | None = None, **keys: Any) -> Any:
    call = named(**keys).prepare(label).call
    assert call is not None
    return call(row)


def refusal(folder: Path, preprocess: str) -> str:
    (folder / "rows.py").write_text("def rows():\n    yield {'text': 'a cat', 'label': 0}\n")
    (folder / "my.yaml").write_text(
        "data:\n  calibration: {callable: 'rows.py:rows'}\n  validation: {callable: 'rows.py:rows'}\n"
        f"  preprocess: {preprocess}\n"
    )
    with pytest.raises(UsageError) as caught:
        read_settings(Job, folder / "my.yaml")
    return str(caught.value).removeprefix(f"{folder / 'my.yaml'}, line 4: ")


# --- images ---


@pytest.mark.parametrize("weights", ["ResNet18_Weights.IMAGENET1K_V1", "EfficientNet_B0_Weights.DEFAULT"])
def test_torchvisions_transforms_are_those_of_the_weights(weights: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    kind, _, name = weights.partition(".")
    expected = getattr(torchvision.models, kind)[name].transforms()(Image.fromarray(IMAGE)).numpy()
    assert (applied({"image": IMAGE}, torchvision=weights) == expected).all()
    said = named(torchvision=weights).prepare(None).description
    assert weights in said
    assert "crop_size=[224]" in said and "0.485" in said and "\n" not in said


def test_torchvisions_transforms_are_our_settings() -> None:
    pytest.importorskip("torchvision")
    ours = ImagePreprocessing(resize=256, crop=224)({"image": IMAGE})
    theirs = applied({"photo": IMAGE}, torchvision="ResNet18_Weights.IMAGENET1K_V1", column="photo")
    assert theirs == pytest.approx(ours, abs=1e-5)


def test_timms_data_config_is_our_settings() -> None:
    """timm's resnet18.a1_in1k says: 224 pixels out of 224 / 0.95, bicubic, ImageNet's mean and std."""
    pytest.importorskip("timm")
    ours = ImagePreprocessing(resize=235, crop=224, interpolation="bicubic")({"image": IMAGE})
    assert applied({"image": IMAGE}, timm="resnet18.a1_in1k") == pytest.approx(ours, abs=1e-5)
    said = named(timm="resnet18.a1_in1k").prepare(None).description
    assert "crop_pct 0.95" in said and "bicubic" in said and "\n" not in said


def test_a_hugging_face_processor_does_what_its_folder_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 48}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
    ).save_pretrained(tmp_path / "processor")
    found = applied({"image": IMAGE}, processor=str(tmp_path / "processor"))
    assert found.shape == (3, 32, 48)
    resized = np.asarray(Image.fromarray(IMAGE).resize((48, 32), Image.Resampling.BILINEAR)) / 255
    expected = ((resized - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).transpose(2, 0, 1)
    assert found == pytest.approx(expected, abs=0.02)  # a grey level here or there is rounded otherwise
    said = named(processor=str(tmp_path / "processor")).prepare(None).description
    assert "0.1, 0.2, 0.3" in said


def test_what_is_done_is_said_in_a_sentence() -> None:
    said = ImagePreprocessing(resize=256, crop=224, rescale=1, mean=(127, 127, 127), std=(128, 128, 128)).describe()
    assert said == (
        "shorter side to 256 (bilinear), centre crop 224, RGB, (pixel * 1 - (127, 127, 127)) / (128, 128, 128)"
    )


# --- texts ---


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Return a folder with a tokenizer of a few words, made here."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
    ).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def ids(*words: str) -> list[int]:
    return [(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *WORDS]).index(word) for word in words]


def test_a_text_is_padded_and_cut(tokenizer: str) -> None:
    found = applied({"text": "the cat sat"}, tokenizer=tokenizer, max_length=7)
    assert found["input_ids"].tolist() == ids("[CLS]", "the", "cat", "sat", "[SEP]", "[PAD]", "[PAD]")
    assert found["attention_mask"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    short = applied({"text": "the cat sat"}, tokenizer=tokenizer, max_length=4)
    assert short["input_ids"].tolist() == ids("[CLS]", "the", "cat", "[SEP]")


def test_two_texts_are_a_row_each_or_one_together(tokenizer: str) -> None:
    row = {"a": "the cat", "b": "a dog ran"}
    each = named(tokenizer=tokenizer, text=["a", "b"], max_length=5).prepare(None)
    assert each.rows == 2
    assert each.call is not None
    assert each.call(row)["input_ids"].tolist() == [  # type: ignore[call-overload]
        ids("[CLS]", "the", "cat", "[SEP]", "[PAD]"),
        ids("[CLS]", "a", "dog", "ran", "[SEP]"),
    ]
    both = named(tokenizer=tokenizer, text=["a", "b"], together=True, max_length=9).prepare(None)
    assert both.rows == 1
    assert both.call is not None
    assert both.call(row)["input_ids"].tolist() == ids(  # type: ignore[call-overload]
        "[CLS]", "the", "cat", "[SEP]", "a", "dog", "ran", "[SEP]", "[PAD]"
    )


def test_labels_of_words_go_to_their_first_tokens(tokenizer: str) -> None:
    row = {"text": ["the", "unhappy", "cat"], "tags": [5, 6, 7]}
    found = applied(row, "tags", tokenizer=tokenizer, max_length=7)
    assert found["input_ids"].tolist() == ids("[CLS]", "the", "un", "##happy", "cat", "[SEP]", "[PAD]")
    assert found["tags"].tolist() == [-100, 5, 6, -100, 7, -100, -100]


def test_masked_tokens_are_what_is_to_be_found(tokenizer: str) -> None:
    text = "the cat sat on a mat the dog ran on a mat"
    plain = applied({"text": text}, tokenizer=tokenizer, max_length=20)["input_ids"]
    found = applied({"text": text}, "wanted", tokenizer=tokenizer, max_length=20, mask=0.25)
    masked = found["wanted"] != -100
    assert masked.sum() == 3  # of 12 words
    assert (found["input_ids"][masked] == ids("[MASK]")).all()
    assert (found["wanted"][masked] == plain[masked]).all()
    assert (found["input_ids"][~masked] == plain[~masked]).all()
    assert not np.isin(plain[masked], ids("[CLS]", "[SEP]", "[PAD]")).any()
    again = applied({"text": text}, "wanted", tokenizer=tokenizer, max_length=20, mask=0.25)
    assert (again["input_ids"] == found["input_ids"]).all()
    assert (
        set(found)
        == set(again)
        == {"input_ids", "token_type_ids", "attention_mask", "wanted"}
        - (set() if "token_type_ids" in found else {"token_type_ids"})
    )


def test_many_threads_tokenize_as_one(tokenizer: str) -> None:
    call: Any = named(tokenizer=tokenizer, max_length=9).prepare(None).call
    rows = [{"text": " ".join(WORDS[: i % 8])} for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: call(row)["input_ids"].tolist(), rows))
    assert found == [call(row)["input_ids"].tolist() for row in rows]


# --- in a stream ---


def stream(folder: Path, rows: str, preprocess: Any, names: tuple[str, ...], **keys: Any) -> SampleStream:
    (folder / "rows.py").write_text(f"import numpy as np\ndef rows():\n{rows}")
    source = {"callable": "rows.py:rows"}
    config = DataConfig.model_validate(
        {"calibration": source, "validation": source, "preprocess": preprocess} | keys, context={"base": folder}
    )
    return config.stream("validation", names, 4)


def test_pairs_are_two_rows_of_the_batch_and_one_sample(tmp_path: Path, tokenizer: str) -> None:
    rows = "    for i in range(3):\n        yield {'a': 'the cat', 'b': 'dog ' * i, 'score': i}\n"
    split = stream(
        tmp_path, rows, {"tokenizer": tokenizer, "text": ["a", "b"], "max_length": 6}, ("input_ids",), label="score"
    )
    batches = list(split.batches())
    assert [len(batch) for batch in batches] == [2, 1]
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(4, 6), (2, 6)]
    assert [batch.labels for batch in batches] == [[0, 1], [2]]
    assert (batches[0].inputs["input_ids"][2] == batches[0].inputs["input_ids"][0]).all()


def test_pairs_do_not_fit_into_an_odd_batch(tmp_path: Path, tokenizer: str) -> None:
    config = {"tokenizer": tokenizer, "text": ["a", "b"]}
    split = stream(tmp_path, "    yield {}\n", config, ("input_ids",))
    assert split.batch_size == 2
    source = {"callable": "rows.py:rows"}
    data = DataConfig.model_validate(
        {"calibration": source, "validation": source, "preprocess": config}, context={"base": tmp_path}
    )
    with pytest.raises(JobError, match="2 rows of the model's batch, which batches of 3 cannot hold"):
        data.stream("validation", ("input_ids",), 3)


def test_a_preprocessing_may_give_the_label_too(tmp_path: Path) -> None:
    rows = (
        "    yield {'image': np.zeros((2, 4)), 'boxes': [1, 2], 'label': 'no'}\n"
        "def halve(row):\n    return {'x': row['image'][:, :2], 'boxes': np.array(row['boxes']) / 2}\n"
    )
    (batch,) = stream(tmp_path, rows, "rows.py:halve", ("x",), label="boxes").batches()
    assert batch.labels[0].tolist() == [0.5, 1.0]
    (batch,) = stream(tmp_path, rows, "rows.py:halve", ("x",), label=["boxes", "label"]).batches()
    assert batch.labels[0]["boxes"].tolist() == [0.5, 1.0]
    assert batch.labels[0]["label"] == "no"


def test_an_input_that_is_called_like_the_label_is_an_input(tmp_path: Path) -> None:
    rows = "    yield {'label': 3}\ndef make(row):\n    return {'label': np.zeros(2)}\n"
    (batch,) = stream(tmp_path, rows, "rows.py:make", ("label",)).batches()
    assert batch.labels == [3]


# --- mistakes ---


@pytest.mark.parametrize(
    ("preprocess", "sentence"),
    [
        ("{torchvision: ResNet81_Weights.DEFAULT}", "data.preprocess: torchvision has no weights 'ResNet81_Weights"),
        ("{torchvison: ResNet18_Weights.DEFAULT}", "data.preprocess.torchvison is not a known key; did you mean"),
        ("{timm: resnet81}", "data.preprocess: timm has no model 'resnet81'"),
        ("{timm: resnet18, tokenizer: x}", "data.preprocess: give exactly one of torchvision, timm, processor and tok"),
        ("{column: image}", "data.preprocess: give exactly one of"),
        ("{timm: resnet18, max_length: 4}", "data.preprocess: max_length belongs to tokenizer, not to timm"),
        ("{tokenizer: ./nowhere}", "data.preprocess.tokenizer: "),
        ("{tokenizer: x, together: true}", "data.preprocess: together needs two columns in text"),
        ("{tokenizer: x, mask: 1.5}", "data.preprocess.mask: input should be less than 1"),
        ("nowhere.py:f", "data.preprocess: there is no file"),
        ("5", "data.preprocess: input should be a valid string"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(tmp_path: Path, preprocess: str, sentence: str) -> None:
    for package in ("torchvision", "timm", "transformers"):
        pytest.importorskip(package)
    message = refusal(tmp_path, preprocess)
    assert message.startswith(sentence)
    assert ";" not in message.replace("; did you mean", "").replace("; see timm", "").replace("; they are", "")


def test_a_folder_without_a_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    for key, what in (("tokenizer", "tokenizer"), ("processor", "image processor")):
        with pytest.raises(JobError, match=f"empty cannot be loaded as {what}"):
            named(**{key: str(tmp_path / "empty")}).prepare(None)


@pytest.mark.parametrize(("package", "keys"), [("timm", {"timm": "resnet18"}), ("torchvision", {"torchvision": "X.Y"})])
def test_a_package_that_is_not_installed_is_named(
    package: str, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from validate.data import preprocessing

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    for cached in (preprocessing._timm, preprocessing._torchvision):
        cached.cache_clear()
    with pytest.raises(ValueError, match=f"pip install {package}"):
        named(**keys)
