"""An ONNX file as an MLflow model: MLflow's own flavor, with a signature, for files of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema

__all__ = ["save"]

# What is loaded computes what was judged: an integer kernel without VNNI saturates, and would not.
_SIMULATED = {"extra_session_config": {"session.disable_quant_qdq": "1"}}


def save(file: Path, folder: Path, model: Model) -> None:
    """Save an ONNX file as an MLflow model in the onnx flavor.

    External data are not loaded: the saved model has links to them.

    Args:
        file: ONNX; its external data, if any, are beside it.
        folder: to write; must not exist.
        model: MLflow's description of the model; signature and flavor are added to it.
    """
    import mlflow.onnx
    import onnx
    from mlflow.models.model import MLMODEL_FILE_NAME
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    proto = onnx.load(file, load_external_data=False)
    mlflow.onnx.save_model(
        proto,
        str(folder),
        mlflow_model=model,
        signature=_signature(proto),
        pip_requirements=mlflow.onnx.get_default_pip_requirements(),  # or it runs the model to find out
        onnx_session_options=_SIMULATED,
        save_as_external_data=False,
    )
    beside = {ExternalDataInfo(x).location for x in proto.graph.initializer if uses_external_data(x)}
    for name in beside:
        (folder / name).symlink_to((file.parent / name).resolve())
    if beside:
        model.model_size_bytes = sum(path.stat().st_size for path in folder.iterdir())
        model.save(str(folder / MLMODEL_FILE_NAME))


def _signature(model: onnx.ModelProto) -> ModelSignature:
    from mlflow.models import ModelSignature

    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    return ModelSignature(inputs=_schema(inputs), outputs=_schema(model.graph.output))


def _schema(values: list[onnx.ValueInfoProto]) -> Schema:
    """Return name, dtype and shape of each; what is not fixed has size -1."""
    import numpy as np
    from mlflow.types import ColSpec, Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    specs: list[ColSpec | TensorSpec] = []
    for value in values:
        tensor = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        specs.append(TensorSpec(np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)), shape, value.name))
    return Schema(specs)
