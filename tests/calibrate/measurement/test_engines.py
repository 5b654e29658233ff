"""What of engine runs needs no GPU; tests/gpu has the rest."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.cost import TargetConfig
from calibrate.measurement import why_no_engine
from calibrate.measurement.engines import _finite_samples
from validate.backends import local_gpu


def test_each_sample_answers_for_itself() -> None:
    logits = np.zeros((4, 3), np.float32)
    logits[1, 2], logits[3, 0] = np.nan, np.inf
    outputs = {"logits": logits, "labels": np.array([0, 1, 2, 3])}
    assert _finite_samples(outputs, 4).tolist() == [True, False, True, False]


def test_an_output_without_samples_speaks_for_all() -> None:
    assert _finite_samples({"y": np.ones((4, 2)), "loss": np.array(np.nan)}, 4).tolist() == [False] * 4
    assert _finite_samples({"y": np.ones((4, 2)), "loss": np.array(1.0)}, 4).tolist() == [True] * 4


def test_a_cpu_that_is_the_target_runs_no_engine() -> None:
    assert why_no_engine(TargetConfig(device="cpu")) == "the target is the CPU"


@pytest.mark.skipif(local_gpu() is not None, reason="there is an NVIDIA GPU here")
def test_no_gpu_is_a_reason() -> None:
    assert why_no_engine(TargetConfig(gpu="L4")) == "no NVIDIA GPU is found here"
