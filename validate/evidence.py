"""What a verdict is made on, as data: one candidate's measurements, and what belongs to it beside results.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from validate.backends.tensorrt.fingerprint import Fingerprint, sha256
from validate.exceptions import JobError
from validate.results import Accuracy, Candidate, Results
from validate.samples import SampleTable

__all__ = ["Champion", "Engine", "Evidence"]


@dataclass(frozen=True)
class Champion:
    """The model that is live.

    Attributes:
        name: as people know it, with its version.
        metric: of its scores.
        higher_is_better: the metric's direction.
        scores: of its run's samples, as that run's reference; see `SampleTable`.
    """

    name: str
    metric: str
    higher_is_better: bool
    scores: SampleTable

    @classmethod
    def of(cls, name: str, results: Results, samples: SampleTable) -> Champion:
        """Return the selected candidate of a run. Raises JobError where its samples are not that run's."""
        selected = results.selected
        if selected is None or selected not in samples.candidates:
            raise JobError(f"{name} cannot be compared with: its samples.parquet has no scores of {selected}")
        accuracy = results.candidate(selected).accuracy
        alone = SampleTable(samples.contents, samples.labels, samples.slices, samples.candidates[selected], {})
        return cls(name, accuracy.metric, accuracy.higher_is_better, alone)


@dataclass(frozen=True)
class Engine:
    """A TensorRT engine file.

    Attributes:
        path: of the file.
        size_bytes: of the file.
        fingerprint: what was written when it was built; None where it cannot be had.
        problem: why it cannot, or why the file is not the one that it was written for; empty where nothing is wrong.
    """

    path: Path
    size_bytes: int
    fingerprint: Fingerprint | None
    problem: str = ""

    @classmethod
    def at(cls, path: Path) -> Engine:
        """Return what is known of an engine file; it is read, not run. Raises JobError where it cannot be read."""
        digest, size = sha256(path), path.stat().st_size
        try:
            fingerprint = Fingerprint.read(path)
        except JobError as error:
            return cls(path, size, None, str(error))
        changed = digest != fingerprint.engine_sha256
        return cls(path, size, fingerprint, "its SHA-256 is not that of its fingerprint" if changed else "")


@dataclass(frozen=True)
class Evidence:
    """All that is known of one candidate.

    Attributes:
        reference: accuracy of the float model.
        candidate: what was measured of it.
        overlap: validation samples that are calibration samples too; None where they were not counted.
        samples: scores of every sample; None where they are not at hand.
        champion: the model to hold it against; None where there is none.
        engine: built from the candidate's file; None where none was given.
    """

    reference: Accuracy
    candidate: Candidate
    overlap: int | None = None
    samples: SampleTable | None = None
    champion: Champion | None = None
    engine: Engine | None = None
