"""Calibration side by side: this toolkit, ONNX Runtime's calibrators, and NVIDIA ModelOpt where it is installed.

    python benchmarks/calibration.py                 # prints the tables that stand in README.md

Two parts. Ratios inside one process: a pass over the data against plain inference, on one thread and on two. Whole
commands: each tool in a process of its own, bound to one core, from its start to its thresholds. Numba's compilation
is excluded everywhere (it is cached on disk after the first run).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RECIPE = ROOT / "datasets/imagenet_sample/efficientnet_lite0.yaml"
STRATEGIES = ["minmax", 99.9, 99.99, 99.999, "entropy", "mse", "auto"]
ROUNDS = 7


class Images:
    """So many images, made by repeating a few: memory is the tools' own."""

    def __init__(self, few: np.ndarray[Any, Any], number: int) -> None:
        self.few, self.number = few, number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        """Yield batches of one image."""
        return (self.few[i % len(self.few)][None] for i in range(self.number))


def export(folder: Path) -> None:
    """Write efficientnet_lite0.onnx, resnet18.onnx (random weights) and 64 preprocessed images."""
    import torch
    import torchvision

    from calibrate.config import load
    from calibrate.loading import load_inputs

    inputs = load_inputs(load(RECIPE), folder)
    images = [b.inputs for b in inputs.calibration.limited(64).batches()]
    (name,) = images[0]
    np.save(folder / "images.npy", np.concatenate([image[name] for image in images]))
    (folder / "model.onnx").rename(folder / "efficientnet_lite0.onnx")
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        input_names=["image"],
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    assert program is not None
    program.save(str(folder / "resnet18.onnx"))


def ours(model: Path, images: Images) -> int:
    """Return the number of scales found: all strategies, from the ONNX file on."""
    from calibrate.observation import observe
    from calibrate.plan import Origin, QuantizationRules
    from calibrate.strategies import PercentileStrategy, make_plan

    float_model, source = _observable(model)
    observation = observe(source, _batches(source, images), lambda batch, outputs: None)
    plans = [
        make_plan(
            PercentileStrategy(percentile=s) if isinstance(s, float) else s,  # type: ignore[arg-type]
            observation.statistics,
            float_model.placement,
            Origin(model_sha256=""),
            QuantizationRules(),
        )
        for s in STRATEGIES
    ]
    return sum(len(plan.scales) for plan in plans)


def onnxruntime_calibrator(method: str, model: Path, images: Images) -> int:
    """Return the number of ranges that ONNX Runtime's calibrator finds."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[Any] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {"image": np.ascontiguousarray(row)}

    options = {"entropy": {"num_bins": 2048, "num_quantized_bins": 128}, "percentile": {"percentile": 99.999}}
    calibrator = create_calibrator(
        str(model),
        ["Conv", "Gemm", "MatMul", "Add"],
        str(model.with_suffix(f".{method}.augmented.onnx")),
        {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }[method],
        extra_options=options.get(method, {}),
    )
    calibrator.collect_data(Reader())
    return len(calibrator.compute_data().data)


def modelopt(method: str, model: Path, images: Images) -> int:
    """Quantize with NVIDIA ModelOpt."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(model),
        calibration_data={"image": np.concatenate(list(images))},
        calibration_method=method,
        output_path=str(model.with_suffix(".modelopt.onnx")),
    )
    return 0


TOOLS: dict[str, Callable[[Path, Any], int]] = {
    "this toolkit, all strategies": ours,
    "ONNX Runtime minmax": lambda m, x: onnxruntime_calibrator("minmax", m, x),
    "ONNX Runtime percentile": lambda m, x: onnxruntime_calibrator("percentile", m, x),
    "ONNX Runtime entropy, 2048 bins": lambda m, x: onnxruntime_calibrator("entropy", m, x),
}
if find_spec("modelopt"):
    TOOLS["ModelOpt max"] = lambda m, x: modelopt("max", m, x)
    TOOLS["ModelOpt entropy"] = lambda m, x: modelopt("entropy", m, x)


def _observable(path: Path, threads: int = 1) -> tuple[Any, Any]:
    from calibrate.loading import load_model
    from calibrate.observation import observable
    from calibrate.plan import QuantizationRules

    model = load_model(path, QuantizationRules())
    return model, observable(model.prepared, model.placement.tensors(), threads)


def _batches(source: Any, images: Images) -> Iterator[Any]:
    from validate.data import Batch

    (name,) = source.model.input_names
    return (Batch({name: np.ascontiguousarray(image)}, [None], [b""], i) for i, image in enumerate(images))


def ratios(path: Path, images: Images) -> dict[str, float]:
    """Measure a pass against plain inference, alternating in one process; medians of the rounds' ratios."""
    from calibrate.observation import observe
    from calibrate.strategies import entropy, mse, percentile
    from validate.backends import OnnxRuntimeModel

    plain = OnnxRuntimeModel(path, threads=1)
    _, source = _observable(path)
    batches = list(_batches(source, images))
    observation = observe(source, batches, lambda batch, outputs: None)  # compiles

    def search() -> None:
        for s in observation.statistics.values():
            entropy(s), mse(s), [percentile(s, p) for p in (99.9, 99.99, 99.999)]

    search()
    found: dict[str, list[float]] = {"plain": [], "run": [], "one": [], "two": []}
    for _ in range(ROUNDS):
        found["plain"].append(_timed(lambda: [plain.run(b.inputs) for b in batches]))
        found["run"].append(_timed(lambda: [source.model.run(b.inputs) for b in batches]))
        found["one"].append(_timed(lambda: observe(source, batches, lambda batch, outputs: None)))
        found["two"].append(_timed(lambda: observe(source, batches, lambda batch, outputs: None, 2)))
    median = {key: statistics.median(values) for key, values in found.items()}
    return {
        "plain inference, ms an image": median["plain"] / len(images) * 1e3,
        "run with the tensors, x plain": median["run"] / median["plain"],
        "whole pass, x plain": median["one"] / median["plain"],
        "two workers, x faster than one": median["one"] / median["two"],
        "threshold search, ms a tensor": _timed(search) / len(observation.statistics) * 1e3,
    }


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def command(tool: str, model: Path, images: int) -> dict[str, float]:
    """Run a tool in a process of its own on one core; return its wall seconds and its peak memory in MB."""
    core = min(os.sched_getaffinity(0))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--tool", tool, "--model", str(model), "--images", str(images)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{tool} failed: {done.stderr.strip().splitlines()[-1]}")
    return {"seconds": seconds, "peak": json.loads(done.stdout.splitlines()[-1])["peak"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", choices=TOOLS, help="internal: run one tool")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=int)
    arguments = parser.parse_args()
    if arguments.tool:
        data = np.load(arguments.model.with_name("images.npy"), mmap_mode="r")
        TOOLS[arguments.tool](arguments.model, Images(data, arguments.images))
        # Not getrusage, which keeps the peak of the process that this one was forked from.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(json.dumps({"peak": int(status["VmHWM"].split()[0]) / 1024}))
        return

    from validate.backends import cpu_name

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(folder)
        images = Images(np.load(folder / "images.npy"), 64)
        print(f"{cpu_name()}, {os.cpu_count()} cores, batch 1, 64 images\n")
        models = {name: folder / f"{name}.onnx" for name in ("efficientnet_lite0", "resnet18")}
        table = {name: ratios(path, images) for name, path in models.items()}
        print(f"| in one process | {' | '.join(models)} |\n| --- {'| --- ' * len(models)}|")
        for row in table["resnet18"]:
            print(f"| {row} | {' | '.join(f'{table[name][row]:.2f}' for name in models)} |")
        model = models["efficientnet_lite0"]
        command("this toolkit, all strategies", model, 1)  # compiles
        results = {tool: command(tool, model, 64) for tool in TOOLS}
        mine = results["this toolkit, all strategies"]["seconds"]
        print("\n| whole command, one core, 64 images | seconds | x ours | peak MB |\n| --- | --- | --- | --- |")
        for tool, result in results.items():
            print(f"| {tool} | {result['seconds']:.1f} | {result['seconds'] / mine:.1f} | {result['peak']:.0f} |")
        many = command("this toolkit, all strategies", model, 1024)
        print(f"| this toolkit, 1,024 images | {many['seconds']:.1f} | | {many['peak']:.0f} |")


if __name__ == "__main__":
    main()
