"""PyTorch as a backend, and the pairing of its tensors with those of an ONNX file."""

from __future__ import annotations

import functools
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from validate.backends.base import Backend, Runnable
from validate.backends.pytorch import PyTorchBackend, from_reference
from validate.backends.scopes import Pairing, pair_with_onnx
from validate.backends.tracing import export_again
from validate.exceptions import JobError

torch = pytest.importorskip("torch", reason="runs PyTorch models")
nn = torch.nn

Arrays = dict[str, NDArray[Any]]
ROOT = Path(__file__).parents[3]


def one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) > 20


def sqnr(reference: NDArray[Any], other: NDArray[Any]) -> float:
    reference, other = reference.astype(np.float64), other.astype(np.float64)
    noise = float(((reference - other) ** 2).sum())
    return np.inf if noise == 0 else 10 * np.log10(float((reference**2).sum()) / noise)


class Block(nn.Module):
    """Everything that makes hooks hard: arithmetic in place, one module twice, a tuple, a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
        self.never = nn.Linear(2, 2)
        self.fc = nn.Linear(4, 5)

    def forward(self, image: Any) -> Any:
        x = self.relu(self.bn(self.conv(image)))
        left, right = self.pair(x)
        x = self.relu(self.body(left) + right)
        return self.fc(x.mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2, x + 1


def randomized(model: Any) -> Any:
    """Give every BatchNorm statistics that are not those of a new one, which would fold into nothing."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.running_mean.shape
            module.running_mean = 0.1 * torch.randn(size, generator=generator)
            module.running_var = 0.5 + torch.rand(size, generator=generator)
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            module.bias.data = 0.1 * torch.randn(size, generator=generator)
    return model


def block() -> Any:
    torch.manual_seed(0)
    return randomized(Block()).eval()


IMAGE: Arrays = {"image": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
INNER = ["conv", "bn", "body.0", "body.1", "body", "fc"]


def by_hand(model: Any, inputs: Arrays, names: list[str]) -> Arrays:
    """Return module outputs by hooks that are written here."""
    found: Arrays = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, a, o, n=name: found.update({n: o.clone().numpy()}))
        for name in names
    ]
    with torch.no_grad():
        found["output_0"] = model(*(torch.tensor(a) for a in inputs.values())).numpy()
    for hook in hooks:
        hook.remove()
    return found


def exported(model: Any, inputs: Arrays, dynamic: bool = True) -> Any:
    """Return the plain exported program, which has in-place steps."""
    dims = tuple({0: torch.export.Dim("n", min=1)} if dynamic else None for _ in inputs)
    return torch.export.export(model, tuple(torch.tensor(a) for a in inputs.values()), dynamic_shapes=dims)


@pytest.fixture(params=["module", "program"])
def backend(request: pytest.FixtureRequest) -> PyTorchBackend:
    model = block() if request.param == "module" else exported(block(), IMAGE)
    return PyTorchBackend(model, ["image"], IMAGE)


def tensor_of(backend: PyTorchBackend, module: str) -> str:
    """Return the name by which a backend knows a module's output."""
    steps = {"conv": "conv2d", "bn": "batch_norm", "body.0": "conv2d_1", "body.1": "tanh", "fc": "linear"}
    return module if backend.program is None else steps[module]


class TestContract:
    def test_the_protocols_are_followed(self, backend):
        checked: Backend = backend
        runnable: Runnable = checked.load()
        assert set(checked.output_names) <= checked.tensors.keys()
        assert runnable.runtime.startswith(f"torch {torch.__version__} (fp32")
        assert runnable.device.endswith("VNNI)")
        assert runnable.input_names == checked.input_names == ("image",)
        assert runnable.output_names == checked.output_names
        assert runnable.run(IMAGE).keys() == set(checked.output_names)

    def test_values_are_those_of_the_module_called_by_hand(self, backend):
        names = ["conv", "bn", "body.0", "body.1", "fc"]
        expected = by_hand(block(), IMAGE, names)
        ours = backend.load([tensor_of(backend, name) for name in names]).run(IMAGE)
        for name in names:
            np.testing.assert_array_equal(ours[tensor_of(backend, name)], expected[name])
        (output,) = backend.output_names
        np.testing.assert_array_equal(backend.load().run(IMAGE)[output], expected["output_0"])

    def test_only_the_outputs_that_are_asked_for_in_their_order(self, backend):
        names = [tensor_of(backend, name) for name in ("fc", "conv")]
        runnable = backend.load(names)
        assert runnable.output_names == tuple(names)
        assert list(runnable.run(IMAGE)) == names

    def test_a_forced_tensor_is_what_is_read_while_its_output_is_what_was_computed(self, backend):
        forced, read = tensor_of(backend, "body.0"), tensor_of(backend, "body.1")
        given = np.random.default_rng(1).standard_normal((2, 4, 8, 8))
        plain = backend.load([forced, *backend.output_names]).run(IMAGE)
        runnable = backend.load([forced, read, *backend.output_names], forced=[forced])
        assert runnable.input_names == ("image", forced)
        outputs = runnable.run({**IMAGE, forced: given})
        np.testing.assert_array_equal(outputs[forced], plain[forced])
        np.testing.assert_allclose(outputs[read], np.tanh(given.astype(np.float32)), atol=1e-6)
        assert not np.allclose(outputs[backend.output_names[0]], plain[backend.output_names[0]])

    def test_forcing_every_tensor_to_itself_changes_nothing(self, backend):
        names = list(backend.tensors)
        plain = backend.load(names).run(IMAGE)
        before = {name: array.copy() for name, array in plain.items()}
        again = backend.load(names, forced=names).run({**IMAGE, **plain})
        for name in names:
            np.testing.assert_array_equal(again[name], plain[name])
            np.testing.assert_array_equal(plain[name], before[name], "what was given is not written to")

    def test_tensors_are_in_topological_order(self, backend):
        names = [tensor_of(backend, name) for name in ("conv", "bn", "body.0", "body.1", "fc")]
        order = list(backend.tensors)
        assert sorted(names, key=order.index) == names

    def test_inputs_are_left_as_they_were(self, backend):
        class InPlace(nn.Module):
            def forward(self, x: Any) -> Any:
                return x.mul_(2)

        x = np.ones((2, 3), np.float32)
        assert PyTorchBackend(InPlace(), ["x"], {"x": x}).load().run({"x": x})["output_0"].tolist() == [[2.0] * 3] * 2
        assert x.tolist() == [[1.0] * 3] * 2

    def test_more_arrays_than_inputs_other_widths_and_memory_orders(self, backend):
        (output,) = backend.output_names
        expected = backend.load().run(IMAGE)[output]
        wide = {"image": np.asfortranarray(IMAGE["image"].astype(np.float64)), "label": np.array(["cat"])}
        np.testing.assert_array_equal(backend.load().run(wide)[output], expected)
        flipped = {"image": IMAGE["image"][::-1]}
        np.testing.assert_allclose(backend.load().run(flipped)[output], expected[::-1], atol=1e-6)

    def test_another_batch_size(self, backend):
        (output,) = backend.output_names
        expected = backend.load().run(IMAGE)[output]
        one = {"image": IMAGE["image"][:1]}
        np.testing.assert_allclose(backend.load().run(one)[output], expected[:1], atol=1e-6)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "no array is given for image"),
            ({"image": np.ones((2, 3, 8, 8), np.int64)}, "image is float32 in PyTorch, but the array that .* is int64"),
            ({"image": np.full((2, 3, 8, 8), "a")}, "PyTorch cannot take image"),
            ({"image": np.ones((2, 5, 8, 8), np.float32)}, r"PyTorch cannot run the model on image \(2, 5, 8, 8\): "),
        ],
    )
    def test_bad_inputs_are_refused(self, backend, inputs, message):
        with pytest.raises(JobError, match=message) as caught:
            backend.load().run(inputs)
        assert one_sentence(caught.value)

    def test_bad_forced_values_are_refused(self, backend):
        name = tensor_of(backend, "body.0")
        runnable = backend.load(forced=[name])
        with pytest.raises(JobError, match=f"no array is given for {name}"):
            runnable.run(IMAGE)
        with pytest.raises(JobError, match=rf"{name} is forced to an array of shape \(2, 4\), but is \(2, 4, 8, 8\)"):
            runnable.run({**IMAGE, name: np.ones((2, 4), np.float32)})

    def test_an_unknown_tensor_is_refused(self, backend):
        for outputs, forced in [(["nothing"], []), (None, ["nothing"])]:
            with pytest.raises(JobError, match="the PyTorch model has no tensor called nothing"):
                backend.load(outputs, forced)

    @pytest.mark.parametrize(("precision", "digits"), [("fp16", 10), ("bf16", 7)])
    def test_half_precision(self, backend, precision, digits):
        model = block() if backend.program is None else exported(block(), IMAGE)
        half = PyTorchBackend(model, ["image"], IMAGE, precision=precision)
        name = tensor_of(backend, "bn")
        ours = half.load([name]).run(IMAGE)[name]
        full = backend.load([name]).run(IMAGE)[name]
        assert precision in half.runtime
        assert ours.dtype == (np.float16 if precision == "fp16" else np.float32)
        assert 6 * (digits - 3) < sqnr(full, ours) < 6 * (digits + 3)


class TestModule:
    def test_what_cannot_be_asked_for_says_why(self):
        backend = PyTorchBackend(block(), ["image"], IMAGE)
        assert list(backend.tensors) == [*INNER, "output_0"]
        assert backend.left_out == {
            "relu": "it is called 2 times in one run",
            "pair": "it returns tuple, not one tensor",
        }
        with pytest.raises(JobError, match=r"no tensor called relu \(it is called 2 times in one run\)$"):
            backend.load(["relu"])

    def test_an_example_is_needed(self):
        with pytest.raises(JobError, match="needs an example batch"):
            PyTorchBackend(block(), ["image"])

    def test_the_module_and_the_process_stay_as_they_were(self):
        model = block().train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        matmul = torch.backends.cuda.matmul
        switch = "fp32_precision" if hasattr(matmul, "fp32_precision") else "allow_tf32"
        old, chosen = getattr(matmul, switch), "tf32" if switch == "fp32_precision" else True
        seen = []

        class Looks(nn.Module):
            def forward(self, x: Any) -> Any:
                seen.append((getattr(matmul, switch), torch.backends.mha.get_fastpath_enabled()))
                if len(seen) > 1:
                    raise ValueError("enough")
                return x

        try:
            setattr(matmul, switch, chosen)
            backend = PyTorchBackend(model, ["image"], IMAGE, precision="fp16")
            backend.load(forced=["bn"]).run({**IMAGE, "bn": np.ones((2, 4, 8, 8))})
            looks = PyTorchBackend(Looks(), ["x"], {"x": np.ones(3)})
            with pytest.raises(JobError, match=r"PyTorch cannot run the model on x \(3,\): enough$"):
                looks.load().run({"x": np.ones(3)})
            assert getattr(matmul, switch) == chosen
        finally:
            setattr(matmul, switch, old)
        assert all(tf32 in ("ieee", False) and not fused for tf32, fused in seen)
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.is_grad_enabled()
        assert model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_modules_of_a_transformer_are_called(self):
        """Its fused fast path calls none of them."""
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
        x = np.random.default_rng(0).standard_normal((2, 4, 16)).astype(np.float32)
        backend = PyTorchBackend(nn.TransformerEncoder(layer, 1), ["x"], {"x": x})
        assert {"layers.0.linear1", "layers.0.linear2", "layers.0.norm1"} <= backend.tensors.keys()
        assert "layers.0.self_attn" in backend.left_out

    def test_another_way_through_the_model_is_noticed(self):
        class Moody(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

            def forward(self, x: Any) -> Any:
                return self.a(x) if x.sum() > 0 else self.b(self.b(x))

        one = np.ones((1, 3), np.float32)
        happy, sad = (PyTorchBackend(Moody(), ["x"], {"x": x}) for x in (one, -one))
        assert ("a" in happy.tensors, "b" in sad.left_out) == (True, True)
        with pytest.raises(JobError, match="a is not computed on this batch, though it is on the example"):
            happy.load(["a"]).run({"x": -one})

    def test_outputs_are_named_by_a_mapping_by_place_or_as_asked(self):
        class Many(nn.Module):
            def __init__(self, form: Callable[[Any, Any], Any]) -> None:
                super().__init__()
                self.form, self.logits = form, nn.Linear(3, 2)

            def forward(self, x: Any) -> Any:
                return self.form(self.logits(x), x * 2)

        x = {"x": np.ones((1, 3), np.float32)}
        by_key = PyTorchBackend(Many(lambda a, b: {"logits": a + 1, "none": None, "twice": b}), ["x"], x)
        assert by_key.output_names == ("logits", "twice")
        assert by_key.left_out == {"logits": "an input or output of the model has the same name"}
        hidden = by_hand(Many(lambda a, b: a), x, [])
        assert hidden["output_0"].shape == by_key.load().run(x)["logits"].shape
        by_place = PyTorchBackend(Many(lambda a, b: (a, [b, {"c": a}])), ["x"], x)
        assert by_place.output_names == ("output_0", "output_1", "output_2")
        asked = PyTorchBackend(Many(lambda a, b: (a, b)), ["x"], x, output_names=["first", "second"])
        assert list(asked.tensors) == ["logits", "first", "second"]
        assert asked.load().run(x)["second"].tolist() == [[2.0, 2.0, 2.0]]
        for names in (["one"], ["same", "same"]):
            with pytest.raises(JobError, match="the model has 2 outputs, so output_names needs as many different"):
                PyTorchBackend(Many(lambda a, b: (a, b)), ["x"], x, output_names=names)

    def test_inputs_go_to_parameters_by_name_or_by_place_but_never_to_another_s(self):
        class Difference(nn.Module):
            def forward(self, left: Any, middle: Any = None, right: Any = None) -> Any:
                assert right is not None or middle is not None
                return left - (middle if right is None else right)

        arrays = {name: np.full(2, value) for name, value in {"left": 5.0, "right": 3.0, "x": 7.0, "y": 1.0}.items()}
        for names, difference in {("right", "left"): 2.0, ("x", "y"): 6.0, ("left", "y"): 4.0}.items():
            assert (
                PyTorchBackend(Difference(), names, arrays).load().run(arrays)["output_0"].tolist() == [difference] * 2
            )
        with pytest.raises(JobError, match="input left stands where forward\\(\\) takes middle"):
            PyTorchBackend(Difference(), ["x", "left"], arrays)

    def test_a_model_that_fails_on_the_example_is_refused(self):
        with pytest.raises(JobError, match=r"PyTorch cannot run the model on image \(1, 2\): ") as caught:
            PyTorchBackend(block(), ["image"], {"image": np.ones((1, 2), np.float32)})
        assert one_sentence(caught.value)

    def test_without_a_gpu_cuda_is_refused(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(JobError, match="PyTorch finds no CUDA GPU here; take device cpu"):
            PyTorchBackend(block(), ["image"], IMAGE, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["module", "program"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 100), ("fp16", 50)])
def test_a_gpu_computes_the_same(kind, precision, least):
    torch.manual_seed(0)

    class Offset(nn.Module):
        """Makes a tensor on a device that an exported program writes down."""

        def forward(self, x: Any) -> Any:
            return x + torch.arange(64, device=x.device)

    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 64), Offset()]
    model = nn.Sequential(*layers).eval()
    subject = model if kind == "module" else exported(model, IMAGE)
    cpu, gpu = (
        PyTorchBackend(subject, ["x"], {"x": IMAGE["image"]}),
        PyTorchBackend(subject, ["x"], {"x": IMAGE["image"]}, device="cuda", precision=precision),
    )
    names = list(cpu.tensors)
    assert gpu.device == torch.cuda.get_device_name()
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True  # which would show
    try:
        expected, actual = (b.load(names).run({"x": IMAGE["image"]}) for b in (cpu, gpu))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    assert min(sqnr(expected[name], actual[name]) for name in names) > least
    forced = gpu.load(forced=[names[0]]).run({"x": IMAGE["image"], names[0]: expected[names[0]]})
    assert sqnr(expected[names[-1]], forced[names[-1]]) > least


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_attention_that_was_exported_on_the_cpu_runs_on_a_gpu():
    """Its fused kernel there leaves other strides."""
    inputs = model("encoder")[1]
    backend = PyTorchBackend(program("encoder"), ["x"], device="cuda")
    graph = load("encoder", "optimized")
    assert lowest(pair_with_onnx(graph, backend), graph, backend, inputs) > 90


class TestProgram:
    def test_steps_are_nodes_and_outputs_have_asked_names(self):
        program = exported(block(), IMAGE)
        assert "relu_" in PyTorchBackend(program, ["image"]).tensors, "in place"
        backend = PyTorchBackend(program, ["pixels"], output_names=["logits"])
        assert backend.shapes["conv2d"] == (None, 4, 8, 8)
        assert backend.tensors["logits"] == "ExportedProgram"
        outputs = backend.load(["logits", "linear"], forced=["linear"]).run(
            {"pixels": IMAGE["image"], "linear": np.zeros((2, 5))}
        )
        np.testing.assert_array_equal(outputs["linear"], by_hand(block(), IMAGE, [])["output_0"])
        assert not outputs["logits"].any()

    def test_inputs_must_fit(self):
        with pytest.raises(JobError, match="the exported program takes image, all to be tensors, not a, b"):
            PyTorchBackend(exported(block(), IMAGE), ["a", "b"])

    def test_a_batch_that_it_was_not_exported_for_is_refused(self):
        backend = PyTorchBackend(exported(block(), IMAGE, dynamic=False), ["image"])
        with pytest.raises(JobError, match=r"PyTorch cannot run the model on image \(1, 3, 8, 8\): ") as caught:
            backend.load().run({"image": IMAGE["image"][:1]})
        assert one_sentence(caught.value)

    def test_the_program_stays_as_it_was(self):
        program = exported(block(), IMAGE)
        PyTorchBackend(program, ["image"], precision="fp16").load().run(IMAGE)
        assert {p.dtype for p in program.parameters()} == {torch.float32}


class TestReference:
    def test_a_function_a_module_and_a_program(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "from torch.nn import *\nmodule = Linear(2, 3)\ndef make():\n    return module\nclass Own(ReLU): pass\n"
        )
        made, itself, own = (from_reference(f"mine.py:{name}", tmp_path) for name in ("make", "module", "Own"))
        assert made is itself
        assert isinstance(own, nn.ReLU)
        assert isinstance(from_reference("torch.nn:Identity"), nn.Identity)
        torch.export.save(exported(block(), IMAGE), tmp_path / "block.pt2")
        backend = PyTorchBackend(from_reference("block.pt2", tmp_path), ["image"])
        expected = by_hand(block(), IMAGE, [])["output_0"]
        np.testing.assert_array_equal(backend.load().run(IMAGE)["linear"], expected)

    @pytest.mark.parametrize(
        ("reference", "message"),
        [
            ("nothing", "nothing cannot be loaded: 'nothing' should be written module:name"),
            ("nowhere.py:model", "nowhere.py:model cannot be loaded: there is no file"),
            ("bad.py:number", "bad.py:number returns int, not a torch.nn.Module; let it return the module"),
            ("bad.py:value", "bad.py:value cannot be loaded: 'int' object is not callable"),
            ("bad.py:fails", "bad.py:fails cannot be loaded: the disk$"),
            ("bad.pt2", "bad.pt2 cannot be loaded: "),
            ("nowhere.pt2", "nowhere.pt2 cannot be loaded: "),
        ],
    )
    def test_mistakes(self, tmp_path, reference, message):
        (tmp_path / "bad.py").write_text(
            "value = 1\ndef number():\n    return 1\ndef fails():\n    raise OSError('the disk\\nis full')\n"
        )
        (tmp_path / "bad.pt2").write_bytes(b"this is no archive")
        with pytest.raises(JobError, match=message) as caught:
            from_reference(reference, tmp_path)
        assert one_sentence(caught.value)


HIDDEN = """
import sys
import validate.backends.pytorch as backend
from validate.exceptions import JobError
assert "torch" not in sys.modules, "importing the backend stays light"
sys.modules["torch"] = None
for attempt in (lambda: backend.PyTorchBackend(None, []), lambda: backend.from_reference("a:b")):
    try:
        attempt()
    except JobError as error:
        print(error)
"""


def test_without_pytorch():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", HIDDEN], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert finished.stdout.splitlines() == ["a PyTorch model needs PyTorch; pip install -e '.[torch]'"] * 2


# ---- Pairing


class Encoder(nn.Module):
    """A small language model's encoder: embedding, attention with LayerNorm, a head."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, nhead=4, dim_feedforward=128, batch_first=True, activation="gelu")
        self.embedding = nn.Embedding(100, 64)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.encoder(self.embedding(x)).mean(dim=1))


MODELS = ["resnet18", "mobilenet_v3_small", "efficientnet_lite0", "encoder"]


@functools.cache
def model(name: str) -> tuple[Any, Arrays]:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    if name == "encoder":
        return Encoder().eval(), {"x": rng.integers(0, 100, (2, 16))}
    if name == "efficientnet_lite0":
        lite = pytest.importorskip("efficientnet_lite_pytorch", reason="has the model")
        made = lite.EfficientNet.from_name("efficientnet-lite0")
    else:
        made = getattr(pytest.importorskip("torchvision", reason="has the model").models, name)(weights=None)
    return randomized(made).eval(), {"x": rng.standard_normal((2, 3, 64, 64)).astype(np.float32)}


def quietly(export: Callable[[], Any]) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export()


def onnx_program(made: Any, inputs: Arrays, dynamic: bool = True, **options: Any) -> Any:
    batch = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs) if dynamic else None
    tensors = tuple(torch.tensor(a) for a in inputs.values())
    options = {"input_names": list(inputs), "dynamic_shapes": batch} | options
    return quietly(lambda: torch.onnx.export(made, tensors, dynamo=True, verbose=False, **options))


def dynamo(made: Any, inputs: Arrays, **options: Any) -> ir.Model:
    return stored(onnx_program(made, inputs, **options).model_proto)


def torchscript(made: Any, inputs: Arrays) -> ir.Model:
    file = io.BytesIO()
    axes = {name: {0: "n"} for name in inputs}
    tensors = tuple(torch.tensor(a) for a in inputs.values())
    names = list(inputs)
    quietly(lambda: torch.onnx.export(made, tensors, file, dynamo=False, input_names=names, dynamic_axes=axes))
    return stored(onnx.load_model_from_string(file.getvalue()))


def stored(proto: onnx.ModelProto) -> ir.Model:
    """Return what a file has: nothing that the exporter only keeps in memory."""
    return ir.serde.deserialize_model(onnx.load_model_from_string(proto.SerializeToString()))


@functools.cache
def files(name: str) -> dict[str, Any]:
    """Return a model's files, by both exporters and by dynamo also with BatchNorms folded, and dynamo's program."""
    made = onnx_program(*model(name), optimize=False)
    raw = made.model_proto
    made.optimize()
    older = ir.serde.serialize_model(torchscript(*model(name)))
    return {"raw": raw, "optimized": made.model_proto, "torchscript": older, "program": made.exported_program}


def load(name: str, kind: str) -> ir.Model:
    return stored(files(name)[kind])


@functools.cache
def program(name: str) -> Any:
    if name in {"resnet18", "encoder"}:  # two are enough to show that it is made again
        return quietly(lambda: export_again(*model(name), load(name, "optimized")))
    return files(name)["program"]


def run(graph: ir.Model, names: list[str], inputs: Arrays) -> Arrays:
    """Return inner tensors of a graph as ONNX Runtime computes them without its optimizer."""
    proto = ir.serde.serialize_model(graph)
    outputs = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = dict(zip((i.name for i in session.get_inputs()), inputs.values(), strict=True))
    return dict(zip(names, session.run(names, feeds), strict=True))


def lowest(pairing: Pairing, graph: ir.Model, backend: PyTorchBackend, inputs: Arrays) -> float:
    """Return the SQNR of the worst pair, in dB."""
    theirs = run(graph, list(pairing.pairs), inputs)
    feeds = dict(zip(backend.input_names, inputs.values(), strict=True))
    ours = backend.load(list(pairing.pairs.values())).run(feeds)
    for name, tensor in pairing.pairs.items():
        assert ours[tensor].shape == theirs[name].shape
    return min(sqnr(ours[tensor], theirs[name]) for name, tensor in pairing.pairs.items())


def compute_layers(graph: ir.Model) -> list[set[str]]:
    """Return of each product with a constant its tensor and, where a constant is added to that, the sum."""
    constants = set(graph.graph.initializers.values())
    found = []
    for node in graph.graph:
        if all(value is None or value in constants for value in node.inputs):
            constants.update(node.outputs)
        elif node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"} and node.inputs[1] in constants:
            found.append(node.outputs[0])
    sums = {v: [u for u, _ in v.uses() if u.op_type == "Add" and constants & set(u.inputs)] for v in found}
    return [{str(v.name), *(str(u.outputs[0].name) for u in sums[v])} for v in found]


def share(pairing: Pairing, graph: ir.Model, least: int = 9) -> float:
    layers = compute_layers(graph)
    assert len(layers) >= least
    return sum(bool(names & pairing.pairs.keys()) for names in layers) / len(layers)


def complete(pairing: Pairing, graph: ir.Model, backend: PyTorchBackend) -> bool:
    """Return whether every tensor is either in one pair, or has a reason."""
    assert len(set(pairing.pairs.values())) == len(pairing.pairs)
    assert pairing.unpaired_torch.keys() == backend.tensors.keys() - set(pairing.pairs.values())
    assert not pairing.pairs.keys() & pairing.unpaired_onnx.keys()
    assert {str(o.name) for o in graph.graph.outputs} <= pairing.pairs.keys() | pairing.unpaired_onnx.keys()
    return all(len(reason) > 10 for reason in [*pairing.unpaired_onnx.values(), *pairing.unpaired_torch.values()])


class TestModels:
    @pytest.mark.parametrize("kind", ["optimized", "raw", "torchscript"])
    @pytest.mark.parametrize("name", MODELS)
    def test_modules(self, name, kind):
        made, inputs = model(name)
        graph, backend = load(name, kind), PyTorchBackend(made, ["x"], inputs)
        pairing = pair_with_onnx(graph, backend)
        assert complete(pairing, graph, backend)
        assert lowest(pairing, graph, backend, inputs) > 90
        # The two projections of each attention are no modules' work; see test_programs.
        assert share(pairing, graph) == (5 / 9 if name == "encoder" else 1)
        assert "output_0" in pairing.pairs.values()

    @pytest.mark.parametrize("kind", ["optimized", "raw"])
    @pytest.mark.parametrize("name", MODELS)
    def test_programs(self, name, kind):
        inputs = model(name)[1]
        graph, backend = load(name, kind), PyTorchBackend(program(name), ["x"])
        pairing = pair_with_onnx(graph, backend)
        assert complete(pairing, graph, backend)
        assert lowest(pairing, graph, backend, inputs) > 90
        assert share(pairing, graph) == 1
        if kind == "raw":
            assert not pairing.unpaired_torch, "every step is in the file"


def test_a_folded_batchnorm_is_what_its_layer_pairs_with():
    made, inputs = model("resnet18")
    backend = PyTorchBackend(made, ["x"], inputs)
    for kind, tensor in {"optimized": "getitem", "torchscript": "/conv1/Conv_output_0"}.items():
        pairing = pair_with_onnx(load("resnet18", kind), backend)
        assert pairing.pairs[tensor] == "bn1"
        assert pairing.unpaired_torch["conv1"] == "folded into bn1"
        downsample = "layer2.0.downsample.1"
        assert downsample in pairing.pairs.values()
        assert pairing.unpaired_torch["layer2.0.downsample"] == f"the same tensor as {downsample}"
    pairs = pair_with_onnx(load("resnet18", "raw"), backend).pairs
    assert (pairs["conv2d"], pairs["getitem"]) == ("conv1", "bn1")


def test_names_given_to_the_exporter_do_not_matter():
    inputs = {"pixels": IMAGE["image"]}
    graph = dynamo(block(), inputs, output_names=["scores"])
    for subject in (block(), export_again(block(), inputs, graph)):
        backend = PyTorchBackend(subject, ["pixels"], inputs, output_names=["logits"])
        pairing = pair_with_onnx(graph, backend)
        assert complete(pairing, graph, backend)
        assert share(pairing, graph, least=3) == 1
        assert lowest(pairing, graph, backend, inputs) > 90
        assert pairing.pairs["scores"] == "logits"
        assert pairing.unpaired_torch["fc" if backend.trace else "linear"] == "the same tensor as logits"


def test_a_program_that_was_exported_in_another_way_is_not_taken_by_its_names():
    """With a fixed batch, other numbers stand in the names; what follows from such a step is not sure either."""
    graph, fixed = dynamo(block(), IMAGE), dynamo(block(), IMAGE, dynamic=False)
    backend = PyTorchBackend(export_again(block(), IMAGE, fixed), ["image"])
    pairing = pair_with_onnx(graph, backend)
    assert complete(pairing, graph, backend)
    assert pairing.pairs == {"getitem": "getitem", "relu": "relu"}
    assert "exported in another way: export_again" in pairing.unpaired_torch["tanh"]
    assert "exported in another way: export_again" in pairing.unpaired_onnx["linear"]
    again = PyTorchBackend(export_again(block(), IMAGE, graph), ["image"])
    assert share(pair_with_onnx(graph, again), graph, least=3) == 1


def test_nodes_that_came_in_later_are_looked_through():
    """As Q/DQ is; two of the tensors have one reader each within their module, which stays their reader."""
    graph = load("encoder", "optimized")
    made, inputs = model("encoder")
    backend = PyTorchBackend(made, ["x"], inputs)
    before = pair_with_onnx(graph, backend)
    for node in list(graph.graph):
        for value in [v for v in node.inputs if v is not None and v.producer() is not None]:
            late = ir.node("Identity", [value])
            graph.graph.insert_before(node, late)
            node.replace_input_with(node.inputs.index(value), late.outputs[0])
    for i, node in enumerate(node for node in graph.graph if node.op_type == "Identity"):
        node.name, node.outputs[0].name = f"late_{i}", f"late_value_{i}"
    after = pair_with_onnx(graph, backend)
    assert after.pairs == before.pairs
    assert after.unpaired_onnx["late_value_0"] == "torch.onnx.export left no trace on its node"


def test_a_module_of_which_the_end_was_optimized_away_is_not_paired_with_what_is_left():
    class Turn(nn.Module):
        """Ends in a transposition that the next one undoes; its axes are of one size."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Any) -> Any:
            return (x @ self.weight).transpose(1, 2)

    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn, self.last = Turn(), nn.Linear(6, 6)

        def forward(self, x: Any) -> Any:
            return self.last(self.turn(x).transpose(1, 2))

    torch.manual_seed(0)
    made, inputs = Turns().eval(), {"x": np.random.default_rng(0).standard_normal((2, 6, 6)).astype(np.float32)}
    graph = dynamo(made, inputs)
    assert "Transpose" not in {node.op_type for node in graph.graph}
    for subject in (made, export_again(made, inputs, graph)):
        backend = PyTorchBackend(subject, ["x"], inputs)
        pairing = pair_with_onnx(graph, backend)
        assert lowest(pairing, graph, backend, inputs) > 90
        assert "turn" not in pairing.pairs.values()
        assert backend.trace or pairing.pairs["matmul"] == "matmul"


class Numbered(nn.Module):
    """Calls ``act`` twice, which the TorchScript exporter calls ``act`` and ``act_1``; and there is an ``act_1``.

    What leaves both scopes of that name is not what the module ``act_1`` returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.act_1, self.second, self.act, self.first = nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.second(self.act(self.act_1(self.act(self.first(x))))) * 2


@pytest.mark.parametrize("exporter", [dynamo, torchscript])
def test_neither_the_order_of_modules_nor_numbers_in_names_mislead(exporter):
    torch.manual_seed(0)
    made, inputs = Numbered().eval(), {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    graph, backend = exporter(made, inputs), PyTorchBackend(made, ["x"], inputs)
    pairing = pair_with_onnx(graph, backend)
    assert lowest(pairing, graph, backend, inputs) > 90
    assert {"first", "second"} <= set(pairing.pairs.values())
    assert backend.left_out == {"act": "it is called 2 times in one run"}
    assert any("it is called 2 times in one run" in reason for reason in pairing.unpaired_onnx.values())


def test_shapes_that_differ_are_not_paired():
    inputs = model("resnet18")[1]
    other = pytest.importorskip("torchvision").models.resnet18(num_classes=7).eval()
    pairing = pair_with_onnx(load("resnet18", "optimized"), PyTorchBackend(other, ["x"], inputs))
    assert "layer4.1.bn2" in pairing.pairs.values()
    assert "no tensor of its shape" in pairing.unpaired_torch["fc"]
    assert "output_0" in pairing.unpaired_torch


def test_a_file_of_a_fixed_batch_and_an_example_of_another_size():
    graph = dynamo(block(), IMAGE, dynamic=False)
    example = {"image": IMAGE["image"][:1]}
    backend = PyTorchBackend(block(), ["image"], example)
    pairing = pair_with_onnx(graph, backend)
    assert share(pairing, graph, least=3) == 1
    assert lowest(pairing, graph, backend, IMAGE) > 90


def test_a_file_of_another_exporter_pairs_nothing_and_says_so():
    graph = load("resnet18", "optimized")
    for node in graph.graph:
        node.metadata_props.clear()
    made, inputs = model("resnet18")
    for subject in (made, program("resnet18")):
        pairing = pair_with_onnx(graph, PyTorchBackend(subject, ["x"], inputs))
        assert not pairing.pairs
        assert set(pairing.unpaired_onnx.values()) == {"torch.onnx.export left no trace on its node"}


def test_unreadable_metadata_is_refused():
    graph = load("resnet18", "optimized")
    next(iter(graph.graph)).metadata_props["pkg.torch.onnx.name_scopes"] = "conv1/"
    made, inputs = model("resnet18")
    with pytest.raises(JobError, match=r"that is not a list of names: conv1/$") as caught:
        pair_with_onnx(graph, PyTorchBackend(made, ["x"], inputs))
    assert one_sentence(caught.value)


class TestExportAgain:
    def test_a_batch_of_one_and_inputs_by_name_and_by_place(self):
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(3, 3)

            def forward(self, x: Any, scale: Any) -> Any:
                return self.fc(x) * scale

        torch.manual_seed(0)
        made, arrays = Two().eval(), {"x": np.ones((2, 3), np.float32), "scale": np.full((2, 1), 2, np.float32)}
        for names in (["x", "scale"], ["a", "b"]):
            graph = dynamo(made, arrays, input_names=names)
            one = {name: a[:1] for name, a in zip(names, arrays.values(), strict=True)}
            if names == ["x", "scale"]:
                one = dict(reversed(one.items()))
            backend = PyTorchBackend(export_again(made, one, graph), names)
            pairing = pair_with_onnx(graph, backend)
            assert lowest(pairing, graph, backend, arrays) > 90
            assert len(pairing.pairs) == len(backend.tensors) == 2

    def test_refusals(self):
        graph = dynamo(block(), IMAGE)
        with pytest.raises(JobError, match="no array is given for image"):
            export_again(block(), {}, graph)

        class Broken(nn.Module):
            def forward(self, image: Any) -> Any:
                raise ValueError("the third wheel\nis missing")

        with pytest.raises(JobError, match=r"PyTorch cannot export Broken: the third wheel$"):
            export_again(Broken(), IMAGE, graph)
