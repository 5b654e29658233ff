"""ONNX Runtime on the CPU against PyTorch on a GPU, layer by layer, in fp32, fp16 and bf16.

    python benchmarks/backends_gpu.py            # on a machine with an NVIDIA GPU; without one: --device cpu

Prints a row per model and precision: what was paired, the worst and the median layer, the output. The table of the last
run stands in docs/compare.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Compare every model in every precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    device = parser.parse_args().device
    import torchvision

    from validate.backends import OnnxRuntimeBackend, PyTorchBackend
    from validate.data import Batch
    from validate.layerwise import compare, pair, subjects_of

    print("| model | precision | device | paired | least dB, at | median dB | output dB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("resnet18", "mobilenet_v3_small", "efficientnet_b0"):
        module = _module(getattr(torchvision.models, name))
        x = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            _export(module, x, path)
            reference = OnnxRuntimeBackend(path)
            for precision in ("fp32", "fp16", "bf16"):
                inputs = reference.input_names
                candidate = PyTorchBackend(module, inputs, {inputs[0]: x[:1]}, device, precision)  # type: ignore[arg-type]
                pairs = pair(reference, candidate).pairs
                batch = Batch({inputs[0]: x}, [None] * 4, [b""] * 4, 0)
                found = compare(subjects_of(reference, candidate, pairs), [batch], lambda _: None)
                rows = [(x.accumulated.sqnr_db, x.node) for x in found.layers if x.accumulated]
                finite = [db for db, _ in rows if math.isfinite(db)]
                worst = min(rows, key=lambda row: row[0])
                where = found.executions["candidate"][1]
                print(
                    f"| {name} | {precision} | {where} | {len(rows)} of {len(reference.tensors)} | "
                    f"{worst[0]:.1f}, {worst[1]} | {statistics.median(finite):.1f} | {rows[-1][0]:.1f} |"
                )


def _module(make: Any) -> Any:
    """Return the model with random weights, and with BatchNorm statistics that are not those of a new one."""
    import torch

    torch.manual_seed(0)
    module = make(weights=None).eval()
    for child in module.modules():
        if isinstance(child, torch.nn.BatchNorm2d):
            child.running_mean = 0.1 * torch.randn_like(child.running_mean)
            child.running_var = 0.5 + torch.rand_like(child.running_var)
    return module


def _export(module: Any, x: np.ndarray[Any, Any], path: Path) -> None:
    import torch

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        module, (torch.from_numpy(x[:2]),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    program.save(str(path))


if __name__ == "__main__":
    main()
