"""Which engine may be loaded where: decided from a file, without a GPU and without TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from validate.backends import Gpu
from validate.backends.tensorrt import (
    BuildOptions,
    Fingerprint,
    Library,
    adopt,
    require,
)
from validate.backends.tensorrt.fingerprint import fingerprint_path, sha256
from validate.exceptions import JobError

A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", "12.4")
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "8.6", "13.0")
RTX_4080 = Gpu("NVIDIA GeForce RTX 4080", "8.9", "13.0")
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0")
H200 = Gpu("NVIDIA H200", "9.0", "13.0")
T4 = Gpu("Tesla T4", "7.5", "12.4")
FUTURE = Gpu("NVIDIA GeForce RTX 9090", "15.0", "16.0")

TENSORRT = Library("tensorrt", "11.4.1.2")
RTX = Library("tensorrt_rtx", "1.7.1.116", ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"))
BOTH = {"tensorrt": TENSORRT, "tensorrt_rtx": RTX}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(bytes(range(256)) * 40)
    return path


def written(engine: Path, gpu: Gpu | None = A100, library: Library = TENSORRT, **options: Any) -> Path:
    """Write the fingerprint of an engine that was built on `gpu`, or ahead of time where that is None."""
    made = Fingerprint(
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else options.get("compute_capability"),
        flavour=library.flavour,
        version=library.version,
        driver=gpu.driver if gpu else None,
        model="model.onnx",
        model_sha256="0" * 64,
        plan_sha256=None,
        engine_sha256=sha256(engine),
        profile={"x": ((1, 3), (2, 3), (8, 3))},
        options=BuildOptions(**options),
    )
    made.write(engine)
    return engine


def refused(engine: Path, gpu: Gpu | None, libraries: Any = BOTH) -> str:
    with pytest.raises(JobError) as caught:
        require(engine, gpu, libraries)
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] != "."
    assert str(engine) in message or "tensorrt_rtx" in message
    return message


def test_it_is_read_as_it_was_written(engine: Path) -> None:
    found = require(written(engine, debug=("a", "b"), workspace_bytes=1 << 30), A100, BOTH)
    assert found.gpu == A100.name
    assert found.profile == {"x": ((1, 3), (2, 3), (8, 3))}
    assert found.options == BuildOptions(debug=("a", "b"), workspace_bytes=1 << 30)
    assert fingerprint_path(engine).name == "model.engine.json"
    assert found.options.breaks_fusion
    assert not BuildOptions(debug="unfused").breaks_fusion


def test_an_engine_of_an_a100_on_a_4090(engine: Path) -> None:
    message = refused(written(engine), RTX_4090)
    assert "was built for NVIDIA A100-SXM4-80GB (compute capability 8.0)" in message
    assert "the GPU here is NVIDIA GeForce RTX 4090 (compute capability 8.9)" in message
    assert "build it again from model.onnx" in message
    assert "python -m validate build model.onnx --output model.engine" in message


def test_ahead_of_time_the_target_must_be_the_compute_capability(engine: Path) -> None:
    written(engine, None, RTX, compute_capability="8.9")
    assert require(engine, RTX_4090, BOTH) == require(engine, RTX_4080, BOTH)
    message = refused(engine, RTX_3090)
    assert "built for a GPU (compute capability 8.9)" in message
    assert "--compute-capability 8.6" in message
    assert "BuildOptions" not in refused(engine, FUTURE), "it cannot be named, and needs not"


def test_ahead_of_time_without_a_target_it_is_for_ampere_and_later(engine: Path) -> None:
    written(engine, None, RTX)
    for gpu in (A100, RTX_3090, RTX_4090, FUTURE):
        require(engine, gpu, BOTH)
    assert "--compute-capability 7.5" in refused(engine, T4)


@pytest.mark.parametrize(
    ("level", "fits"),
    [
        ("none", {RTX_4090}),
        ("same_compute_capability", {RTX_4090, RTX_4080}),
        ("ampere_plus", {RTX_4090, RTX_4080, RTX_3090, A100, H200, FUTURE}),
    ],
)
def test_hardware_compatibility_relaxes_the_hardware_and_nothing_else(engine: Path, level: str, fits: set[Gpu]) -> None:
    written(engine, RTX_4090, hardware_compatible=level)
    for gpu in (RTX_4090, RTX_4080, RTX_3090, A100, H200, FUTURE, T4):
        if gpu in fits:
            require(engine, gpu, BOTH)
        else:
            assert f"the GPU here is {gpu.name}" in refused(engine, gpu)
    assert "pip install tensorrt==11.4.1.2" in refused(engine, RTX_4090, {"tensorrt": Library("tensorrt", "11.4.1.3")})


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("11.4.1.2", "11.4.1.2", True),
        ("11.4.1.2", "11.4.1.3", True),
        ("11.4.1.2", "11.10.0.1", True),
        ("11.4.1.2", "11.4.1.1", False),
        ("11.4.1.2", "11.3.9.9", False),
        ("11.4.1.2", "12.0.0.1", False),
        ("10.16.1.11", "11.4.1.2", True),
        ("8.6.1.6", "10.0.0.1", False),
        ("9.0.0.1", "11.4.1.2", False),
    ],
)
def test_version_compatibility_relaxes_the_version_and_nothing_else(
    engine: Path, built: str, here: str, fits: bool
) -> None:
    libraries = {"tensorrt": Library("tensorrt", here)}
    written(engine, A100, Library("tensorrt", built), version_compatible=True)
    if fits:
        require(engine, A100, libraries)
        assert "the GPU here is" in refused(engine, RTX_4090, libraries)
    else:
        assert f"built by tensorrt {built} and tensorrt {here} is installed here" in refused(engine, A100, libraries)
    written(engine, A100, Library("tensorrt", built))
    if built != here:
        refused(engine, A100, libraries)


def test_tensorrt_rtx_is_never_version_compatible(engine: Path) -> None:
    written(engine, None, RTX, version_compatible=True)
    message = refused(engine, RTX_4090, {"tensorrt_rtx": Library("tensorrt_rtx", "1.8.0.1", RTX.compute_capabilities)})
    assert "pip install tensorrt-rtx==1.7.1.116" in message
    assert "--compute-capability 8.9" in message


@pytest.mark.parametrize(
    ("libraries", "here"), [({}, "no TensorRT is"), ({"tensorrt_rtx": RTX}, "tensorrt_rtx 1.7.1.116 is")]
)
def test_the_other_flavour(engine: Path, libraries: Any, here: str) -> None:
    message = refused(written(engine), A100, libraries)
    assert f"was built by tensorrt 11.4.1.2 and {here} installed here" in message


def test_without_a_gpu(engine: Path) -> None:
    assert "no GPU is found here" in refused(written(engine), None)
    assert A100.name in refused(written(engine), None)
    assert "compute capability 8.9" in refused(written(engine, None, RTX, compute_capability="8.9"), None)
    assert "compute capability 8.0 or later" in refused(written(engine, None, RTX), None)


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_one_flipped_bit(engine: Path, position: int) -> None:
    written(engine)
    data = bytearray(engine.read_bytes())
    data[position] ^= 1
    engine.write_bytes(data)
    message = refused(engine, A100)
    assert "SHA-256" in message
    assert "build it again from model.onnx" in message


def test_a_truncated_engine(engine: Path) -> None:
    written(engine)
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "SHA-256" in refused(engine, A100)


def test_a_missing_engine(engine: Path) -> None:
    written(engine)
    engine.unlink()
    assert "cannot be read" in refused(engine, A100)


def test_a_missing_fingerprint(engine: Path) -> None:
    message = refused(engine, A100)
    assert "no fingerprint model.engine.json beside it" in message
    assert "build_engine" in message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"gpu": 3}', "\x00"])
def test_a_fingerprint_that_is_none(engine: Path, content: str) -> None:
    fingerprint_path(engine).write_text(content)
    assert "is not the fingerprint of an engine" in refused(engine, A100)


def test_an_unknown_key_is_refused_and_not_passed_over(engine: Path) -> None:
    path = fingerprint_path(written(engine))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"runs_everywhere": True}))
    assert "is not the fingerprint" in refused(engine, A100)


def test_an_engine_that_something_else_built_is_adopted(engine: Path) -> None:
    made = adopt(engine, TENSORRT, A100, BuildOptions(debug="unfused"))
    assert require(engine, A100, BOTH) == made
    assert made.model is None
    assert "from its ONNX file" in refused(engine, RTX_4090)
