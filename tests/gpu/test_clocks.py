"""What the driver says of a real GPU; elsewhere it is skipped, with the reason."""

from __future__ import annotations

import os
import subprocess

import pytest

from validate.backends import local_gpu
from validate.latency import read_clocks

GPU = local_gpu()
pytestmark = pytest.mark.skipif(GPU is None, reason="there is no NVIDIA GPU here")


def test_clocks_are_those_that_nvidia_smi_prints():
    assert GPU is not None
    query = "--query-gpu=name,clocks.max.sm,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--id={GPU.bus_id}", query, "--format=csv,noheader,nounits"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    found = read_clocks([], gpu=True)
    assert printed[0] == GPU.name
    assert found.sm_max_mhz == float(printed[1])
    assert found.temperature_c == pytest.approx(float(printed[2]), abs=5)
    assert found.power_w == pytest.approx(float(printed[3]), rel=0.3)  # two moments
    assert found.sm_mhz is not None and 0 < found.sm_mhz <= found.sm_max_mhz
    assert found.gpu_idle is not None and isinstance(found.slowed_by, list)


@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="CUDA_VISIBLE_DEVICES is set already")
def test_a_gpu_that_is_hidden_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    script = "from validate.latency import read_clocks; print(read_clocks([], gpu=True).sm_mhz)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    printed = subprocess.run(["python", "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "None"
