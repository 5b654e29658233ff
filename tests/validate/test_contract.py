"""What every backend promises, asked of each; tests/gpu asks the same of an engine, which needs a GPU to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from validate.backends.base import Backend
from validate.backends.onnxruntime import OnnxRuntimeBackend
from validate.exceptions import JobError
from validate.layerwise.pairing import pair

torch = pytest.importorskip("torch", reason="the same model in PyTorch")


class Small(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two layers and what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.activation = torch.nn.ReLU()
        self.second = torch.nn.Conv2d(8, 4, 3)

    def forward(self, x: Any) -> Any:
        return self.second(self.activation(self.first(x)))


X = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def module() -> Any:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def file(module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contract") / "small.onnx"
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        module, (torch.from_numpy(X),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    program.save(str(path))
    return path


@pytest.fixture(params=["onnx float", "onnx integer", "module", "program"])
def backend(request: pytest.FixtureRequest, module: Any, file: Path) -> Backend:
    if request.param.startswith("onnx"):
        return OnnxRuntimeBackend(file, request.param.split()[1])
    from validate.backends.pytorch import PyTorchBackend

    if request.param == "module":
        return PyTorchBackend(module, ["x"], {"x": X[:1]})
    batch = torch.export.Dim("batch", min=1)
    return PyTorchBackend(torch.export.export(module, (torch.from_numpy(X),), dynamic_shapes=({0: batch},)), ["x"])


@pytest.fixture
def middle(backend: Backend, file: Path) -> str:
    """Return the name that the output of the activation has in this backend."""
    reference = OnnxRuntimeBackend(file)
    relu = next(node.outputs[0].name for node in reference.graph.graph if node.op_type == "Relu")
    return pair(reference, backend).pairs[str(relu)]


def expected(module: Any, x: NDArray[Any], upto: int = 3) -> NDArray[Any]:
    value = torch.from_numpy(x)
    with torch.inference_mode():
        for layer in (module.first, module.activation, module.second)[:upto]:
            value = layer(value)
    array: NDArray[Any] = value.numpy()
    return array


def test_it_says_what_it_has(backend: Backend, middle: str) -> None:
    assert len(backend.input_names) == len(backend.output_names) == 1
    assert middle in backend.tensors
    assert not set(backend.input_names) & set(backend.tensors)


def test_it_gives_its_own_outputs(backend: Backend, module: Any) -> None:
    model = backend.load()
    assert model.output_names == tuple(backend.output_names)
    outputs = model.run({backend.input_names[0]: X})
    assert list(outputs) == list(backend.output_names)
    np.testing.assert_allclose(outputs[backend.output_names[0]], expected(module, X), atol=1e-5)


def test_it_gives_the_tensors_that_are_asked_for(backend: Backend, module: Any, middle: str) -> None:
    outputs = backend.load([middle]).run({backend.input_names[0]: X})
    assert list(outputs) == [middle]
    np.testing.assert_allclose(outputs[middle], expected(module, X, upto=2), atol=1e-5)


def test_any_batch_size(backend: Backend, module: Any) -> None:
    model = backend.load()
    for size in (1, 3):
        found = model.run({backend.input_names[0]: X[:size]})[backend.output_names[0]]
        np.testing.assert_allclose(found, expected(module, X[:size]), atol=1e-5)


def test_a_forced_tensor_is_read_by_others_and_given_as_it_was_computed(
    backend: Backend, module: Any, middle: str
) -> None:
    forced = np.random.default_rng(1).standard_normal((4, 8, 8, 8)).astype(np.float32)
    model = backend.load([middle, *backend.output_names], forced=[middle])
    outputs = model.run({backend.input_names[0]: X, middle: forced})
    np.testing.assert_allclose(outputs[middle], expected(module, X, upto=2), atol=1e-5)
    with torch.inference_mode():
        wanted = module.second(torch.from_numpy(forced)).numpy()
    np.testing.assert_allclose(outputs[backend.output_names[0]], wanted, atol=1e-5)


def test_what_is_loaded_twice_does_not_disturb_the_other(backend: Backend, module: Any, middle: str) -> None:
    plain, forced = backend.load(), backend.load([middle], forced=[middle])
    inputs = {backend.input_names[0]: X, middle: np.zeros((4, 8, 8, 8), np.float32)}
    before = plain.run(inputs)[backend.output_names[0]]
    forced.run(inputs)
    np.testing.assert_array_equal(plain.run(inputs)[backend.output_names[0]], before)
    np.testing.assert_allclose(before, expected(module, X), atol=1e-5)


def test_more_arrays_and_other_widths_are_taken(backend: Backend, module: Any) -> None:
    inputs = {backend.input_names[0]: X.astype(np.float64), "not an input": X}
    found = backend.load().run(inputs)[backend.output_names[0]]
    np.testing.assert_allclose(found, expected(module, X), atol=1e-5)


def test_a_tensor_that_is_not_there_is_refused(backend: Backend) -> None:
    with pytest.raises(JobError, match="no such tensor"):
        backend.load(["no such tensor"])
    with pytest.raises(JobError, match="no such tensor"):
        backend.load(forced=["no such tensor"])


def test_an_input_that_is_missing_is_refused(backend: Backend) -> None:
    with pytest.raises(JobError, match=backend.input_names[0]):
        backend.load().run({})


def test_it_says_where_it_ran(backend: Backend) -> None:
    model = backend.load()
    library, version = model.runtime.split()[:2]
    assert library in {"onnxruntime", "torch"} and version[0].isdigit() and "(" in model.runtime
    assert model.device
