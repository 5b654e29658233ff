"""The data sets of a job, as MLflow's dataset inputs. Imports MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made at run time
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

__all__ = ["dataset_inputs"]

_LONGEST_DIGEST = 36  # more is refused: mlflow/utils/validation.py; params have all of it


class _Samples(MetaDataset):
    """Description of samples, without the samples."""

    def __init__(self, source: DatasetSource, name: str, digest: str, number: int) -> None:
        super().__init__(source, name, digest)
        self._number = number

    @property
    def profile(self) -> dict[str, int]:
        return {"num_rows": self._number}


def dataset_inputs(data: Mapping[str, Any]) -> list[DatasetInput]:
    """Return MLflow's dataset inputs, one per split of `Results.data`; the context is the name of the split."""
    inputs = []
    for split, description in data.items():
        name, source = _source(description["source"])
        digest = str(description["digest"])[:_LONGEST_DIGEST]
        samples = _Samples(source, name, digest, description["samples"])
        dataset = Dataset(**samples.to_dict(), profile=json.dumps(samples.profile))
        inputs.append(DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, split)]))
    return inputs


def _source(given: Any) -> tuple[str, DatasetSource]:
    """Return a data set's name and MLflow source, from a source as the config has it."""
    given = given if isinstance(given, Mapping) else {"callable": str(given)}
    if hub := given.get("hub"):
        return hub, HuggingFaceDatasetSource(
            path=hub, config_name=given.get("subset"), split=given.get("split", "train"), revision=given.get("revision")
        )
    if path := given.get("parquet") or given.get("imagefolder"):
        return PurePath(path).name, LocalArtifactDatasetSource(path)
    name = str(given.get("callable", "unknown"))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    return name[-100:], CodeDatasetSource(texts)
