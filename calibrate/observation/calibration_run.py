"""One pass over the calibration set: statistics of activations, and the float model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from calibrate.journal import Journal
from calibrate.loading import CalibrationInputs, SplitFingerprint
from calibrate.observation.streaming import Observation, OnDoubling, observable, observe, workers
from calibrate.plan import Origin
from validate.accuracy import OutputStore
from validate.data import Batch
from validate.exceptions import JobError
from validate.layerwise import TensorErrors
from validate.stats import Statistics
from validate.tasks import Outputs

__all__ = ["CalibrationRun", "observe_calibration_set", "unquantizable"]

_PREPARED_DB = 60.0
"""Least SQNR, in dB, of the prepared model against the given one. Folding constants changes only how float32 rounds,
which gives far more; a wrong conversion gives less."""


@dataclass(frozen=True)
class CalibrationRun:
    """Results of the pass over the calibration set.

    Attributes:
        observation: statistics of every tensor that a plan may quantize.
        outputs: the prepared float model's outputs on every sample.
        fingerprint: identifies the samples; every later pass must see the same.
    """

    observation: Observation
    outputs: OutputStore
    fingerprint: SplitFingerprint

    @cached_property
    def statistics(self) -> Mapping[str, Statistics]:
        """The statistics over all samples, by tensor."""
        return self.observation.statistics

    @property
    def samples(self) -> int:
        """How many samples were seen."""
        return len(self.fingerprint.order)

    def origin(self, inputs: CalibrationInputs) -> Origin:
        """Return the provenance of the statistics and plans of this pass."""
        return Origin(
            model_sha256=inputs.model.info.sha256,
            data_sha256=self.fingerprint.digest(),
            preprocessing_sha256=inputs.preprocessing_sha256,
        )


def observe_calibration_set(
    inputs: CalibrationInputs,
    journal: Journal,
    apart_from: SplitFingerprint | None = None,
    on_doubling: OnDoubling | None = None,
) -> CalibrationRun:
    """Observe every tensor that a plan may quantize, in one pass.

    Args:
        inputs: the model and its calibration set.
        journal: counts the pass and gets warnings.
        apart_from: a split that must share no sample with this one; None: it may.
        on_doubling: see `observe`.

    Raises:
        JobError: the prepared model does not compute what the given one does, or a sample is in both splits.
    """
    tensors = inputs.model.placement.tensors()
    side_by_side, threads = workers()
    outputs, fingerprint = OutputStore(), SplitFingerprint()

    def watched(batches: Iterable[Batch]) -> Iterator[Batch]:
        return fingerprint.record(batches) if apart_from is None else fingerprint.record_disjoint(apart_from, batches)

    with journal.stage("observe", f"observe {len(tensors)} tensors") as advance:
        expected = _reference_outputs(inputs)

        def on_batch(batch: Batch, computed: Outputs) -> None:
            if batch.first == 0:
                _check_prepared(expected, computed)
            outputs.append(dict(computed))
            advance(len(batch))

        source = observable(inputs.model.prepared, tensors, threads)
        batches = watched(journal.forward("observe", inputs.calibration.batches()))
        observation = observe(source, batches, on_batch, side_by_side, on_doubling=on_doubling)
    for tensor, reason in sorted(unquantizable(observation.statistics).items()):
        journal.warn(f"tensor {tensor} {reason}; what it feeds stays in float")
    return CalibrationRun(observation, outputs, fingerprint)


def unquantizable(statistics: Mapping[str, Statistics]) -> dict[str, str]:
    """Return why a tensor has no scale, by tensor, for those that have none; their layers stay in float.

    Examples:
        >>> unquantizable({"never_computed": Statistics()})
        {'never_computed': 'was computed for no calibration sample'}
    """
    return {
        name: "was zero for every calibration sample" if s.count else "was computed for no calibration sample"
        for name, s in statistics.items()
        if s.amax == 0
    }


def _reference_outputs(inputs: CalibrationInputs) -> Outputs:
    """Run the model as given on the first batch, and free it, so that a large model is not held twice."""
    stream = inputs.calibration
    first = next(iter(stream.limited(stream.batch_size).batches()))
    outputs = inputs.reference.run(first.inputs)
    inputs.reference.release()
    return outputs


def _check_prepared(expected: Outputs, outputs: Outputs) -> None:
    """Compare a batch of the prepared model with the model as given; JobError where a graph pass has changed it."""
    for name, values in expected.items():
        error = TensorErrors()
        error.add(values, outputs[name])
        if error.sqnr_db < _PREPARED_DB:
            raise JobError(
                f"output {name} of the model changes when its graph is prepared for quantization (SQNR "
                f"{error.sqnr_db:.1f} dB); export the model again with opset 19 or newer, so that it need not be "
                "converted"
            )
