"""Loading of a job's model, data and task, and the fingerprint that identifies the samples of a split."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel

from calibrate.graph import Placement, export_torch, place, prepare
from calibrate.plan import QuantizationRules
from validate.backends import OnnxRuntimeModel, file_hash, read_onnx
from validate.backends.tensorrt import Profile, ShapeRanges
from validate.data import Batch, DataConfig, SampleStream, label_text
from validate.exceptions import JobError
from validate.job import Job
from validate.references import load_object
from validate.results import ModelInfo
from validate.tasks import TASKS, Task, with_or_without_labels

__all__ = [
    "CalibrationInputs",
    "FloatModel",
    "Inputs",
    "SplitFingerprint",
    "load_inputs",
    "load_model",
    "onnx_file",
    "task_hash",
]


@dataclass(frozen=True)
class FloatModel:
    """The float model of a job.

    Attributes:
        info: path, hash and size, as results have them.
        path: of the ONNX file.
        prepared: what `calibrate.graph.prepare` returned.
        placement: where Q/DQ can go in it.
    """

    info: ModelInfo
    path: Path
    prepared: ir.Model
    placement: Placement


@dataclass(frozen=True)
class CalibrationInputs:
    """Model and calibration samples: what statistics and plans are made from.

    Attributes:
        model: the float model, prepared.
        reference: the float model as given, in ONNX Runtime.
        calibration: samples that scales are found on.
        preprocessing_sha256: hash of what turns a row of the data into model inputs.
    """

    model: FloatModel
    reference: OnnxRuntimeModel
    calibration: SampleStream
    preprocessing_sha256: str


@dataclass(frozen=True)
class Inputs(CalibrationInputs):
    """Model, task and data of a job.

    Attributes:
        task: that scores samples.
        validation: samples that the verdict is made on.
    """

    task: Task
    validation: SampleStream

    def rows_of_a_call(self, samples: int) -> int:
        """Return the size of axis 0 for a call with so many samples; the model's own where it is fixed."""
        return self.reference.fixed_batch or samples * self.calibration.preparation.rows


@dataclass
class SplitFingerprint:
    """Identity of the samples of a split. The first pass fills it (`record`); every later one must agree (`verify`).

    Attributes:
        contents: index of the first sample of each content, by the hash of its inputs.
        order: hash of every sample's inputs, in order.
        classes: label of every sample as text; None where it names no class.
        slices: slice of every sample as text; None where it has none.
        smallest, largest: least and largest size on each axis, by input name.
        labels: running SHA-256 of all labels.

    Examples:
        >>> import numpy as np
        >>> batch = Batch({"x": np.zeros((2, 3))}, labels=["cat", "dog"], contents=[b"hash 0", b"hash 1"], first=0)
        >>> fingerprint = SplitFingerprint()
        >>> len(list(fingerprint.record([batch]))), fingerprint.classes
        (1, ['cat', 'dog'])
        >>> list(fingerprint.verify([batch])) == [batch]
        True
    """

    contents: dict[bytes, int] = field(default_factory=dict)
    order: list[bytes] = field(default_factory=list)
    classes: list[str | None] = field(default_factory=list)
    slices: list[str | None] = field(default_factory=list)
    shapes: ShapeRanges = field(default_factory=ShapeRanges)
    labels: hashlib._Hash = field(default_factory=hashlib.sha256)

    def record(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and record their samples."""
        for batch in batches:
            for offset, content in enumerate(batch.contents):
                self.contents.setdefault(content, batch.first + offset)
            self.order += batch.contents
            self.classes += map(label_text, batch.labels)
            self.slices += map(label_text, batch.slices)
            for label in batch.labels:
                self.labels.update(pickle.dumps(label))
            self.shapes.add(batch.inputs)
            yield batch

    def record_disjoint(self, validation: SplitFingerprint, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield and record the batches of the calibration set; none may be in the validation set too.

        Raises:
            JobError: at the first sample that is in both.
        """
        for batch in self.record(batches):
            for offset, content in enumerate(batch.contents):
                if content in validation.contents:
                    raise JobError(
                        f"calibration sample {batch.first + offset} is also validation sample "
                        f"{validation.contents[content]}, and a verdict on samples that were tuned on flatters the "
                        "candidate; remove it from one set, or set data.allow_overlap: true"
                    )
            yield batch

    def verify(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches of a later pass over the split.

        Raises:
            JobError: at the first sample that differs from the one that was recorded at its place.
        """
        for batch in batches:
            for index, content in enumerate(batch.contents, batch.first):
                if content != self.order[index]:
                    raise JobError(
                        f"sample {index} is another one than on the first pass over the data, so that models cannot be "
                        "compared on it; make the source and the preprocessing give the same every time (seed them)"
                    )
            yield batch

    def digest(self) -> str:
        """Return the SHA-256 of all samples in their order, in hex."""
        return hashlib.sha256(b"".join(self.order)).hexdigest()

    def labels_digest(self) -> str:
        """Return the SHA-256 of all labels in their order, in hex."""
        return self.labels.hexdigest()

    def profile(self, fixed_batch: int | None) -> Profile:
        """Return the smallest, usual and largest shape of every input, for TensorRT's optimization profile.

        Args:
            fixed_batch: size of axis 0 where the model has it fixed; None: the smallest shape is of batch 1.
        """
        return self.shapes.profile(fixed_batch)


def load_inputs(job: Job, rules: QuantizationRules, folder: Path) -> Inputs:
    """Load and prepare the model, and open the data.

    Args:
        job: model, data and task.
        rules: settings of quantization that the user chose.
        folder: where a PyTorch model is exported to ``model.onnx``.

    Raises:
        JobError: the model or the data cannot be used.
    """
    path = onnx_file(job, folder)
    model = read_onnx(path)
    reference = OnnxRuntimeModel(path)
    batch_size = reference.fixed_batch or job.data.batch_size
    return Inputs(
        model=load_model(path, rules, model, job.model.torch),
        reference=reference,
        calibration=job.data.stream("calibration", reference.input_names, batch_size),
        preprocessing_sha256=_preprocessing_hash(job.data),
        task=with_or_without_labels(job.task.make(reference.metadata), job.data.label is not None),
        validation=job.data.stream("validation", reference.input_names, batch_size),
    )


def onnx_file(job: Job, folder: Path) -> Path:
    """Return the path of the job's ONNX file; a PyTorch model is exported to ``model.onnx`` in `folder`."""
    if job.model.onnx:
        return Path(job.model.onnx)
    path = folder / "model.onnx"
    names = tuple(job.model.inputs or ())
    example = next(iter(job.data.stream("calibration", names, job.data.batch_size).batches()))
    export_torch(str(job.model.torch), example.inputs, path)
    return path


def load_model(
    path: Path, rules: QuantizationRules, model: ir.Model | None = None, name: str | None = None
) -> FloatModel:
    """Prepare a model and find where it can be quantized.

    Args:
        path: of the ONNX file.
        rules: settings of quantization that the user chose.
        model: content of the file, where it was read already; it is changed.
        name: of the model in results; default: the path.

    Raises:
        JobError: the model cannot be read or prepared, or has no layer that can be int8.
    """
    model = model or read_onnx(path)
    sha256 = file_hash(path, model)
    prepared = prepare(model)
    parameters = sum(
        value.const_value.size
        for value in prepared.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    )
    placement = place(prepared, rules)
    if not placement.layers:
        reasons = "; ".join(f"{node}: {why}" for node, why in list(placement.left_in_float.items())[:3])
        raise JobError(
            f"{name or path} has no layer that can be int8 ({reasons or 'no Conv, ConvTranspose, Gemm or MatMul'})"
        )
    info = ModelInfo(path=name or str(path), sha256=sha256, nodes=prepared.graph.num_nodes(), parameters=parameters)
    return FloatModel(info, path, prepared, placement)


def task_hash(task: BaseModel) -> str:
    """Return the SHA-256, in hex, of a task's settings and of the files that they name, code among them."""
    digest = hashlib.sha256(task.model_dump_json().encode())
    code = getattr(sys.modules[type(task).__module__], "__file__", None)
    if code and type(task) not in TASKS.own.values():  # of an installed package
        digest.update(Path(code).read_bytes())
    for value in task.model_dump().values():
        if not isinstance(value, str):
            continue
        module, _, name = value.rpartition(":")
        if name and module and not Path(value).is_file():
            source = module if Path(module).is_file() else getattr(sys.modules.get(module), "__file__", None)
        else:
            source = value
        if source and Path(source).is_file():
            digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def _preprocessing_hash(data: DataConfig) -> str:
    """Return the SHA-256 of the preprocessing: of its settings, or of the file that its code is in."""
    digest = hashlib.sha256()
    if isinstance(data.preprocess, str):
        source = getattr(sys.modules[load_object(data.preprocess, Path()).__module__], "__file__", None)
        digest.update(data.preprocess.rpartition(":")[2].encode())
        digest.update(Path(source).read_bytes() if source else b"")
    elif data.preprocess:
        digest.update(data.preparation().description.encode())
    elif data.image:
        digest.update(data.image.model_dump_json().encode())
    return digest.hexdigest()
