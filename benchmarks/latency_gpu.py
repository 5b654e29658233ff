"""How fast is the float model that INT8 has to beat? PyTorch, eager and compiled, with and without CUDA graphs.

    python benchmarks/latency_gpu.py                        # on a machine with an NVIDIA GPU
    python benchmarks/latency_gpu.py --model resnet18 --device cpu --runs 6 --batch-sizes 1

All are timed in turns by the product's own means (`validate/latency/runners.py`, `rounds.py`), the first twice,
as a test of the method. The tables of the last run stand in docs/latency.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SOURCE = """
import torch, torchvision


def make():
    torch.manual_seed(0)
    return torchvision.models.{model}(weights=None)
"""
# name, compiled, precision, CUDA graph
GPU = [
    ("eager fp32", False, "fp32", False),
    ("eager fp32, again", False, "fp32", False),
    ("eager fp32, graph", False, "fp32", True),
    ("eager fp16", False, "fp16", False),
    ("eager fp16, graph", False, "fp16", True),
    ("torch.compile fp16", True, "fp16", False),
    ("torch.compile fp16, graph", True, "fp16", True),
]
CPU = [("eager fp32", False, "fp32", False), ("eager fp32, again", False, "fp32", False)]


def main() -> None:
    """Time every variant at every batch size, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50", help="of torchvision.models; random weights")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--batch-sizes", default="1,32")
    options = parser.parse_args()
    from validate.latency import (
        Load,
        Spec,
        available_cpus,
        busy_before,
        disturbances,
        interleave,
        load,
        pinned,
        read_clocks,
        read_machine,
        summarize,
        torch_threads,
        warm_up,
    )

    threads, gpu = available_cpus(), options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder, pinned(threads) as cpus, torch_threads(threads):
        machine = read_machine(threads, cpus)
        source = Path(folder) / "net.py"
        source.write_text(SOURCE.format(model=options.model))
        loaded = {
            name: load(Spec(name, f"{source}:make", compiled), options.device, threads, precision, graph)
            for name, compiled, precision, graph in (GPU if gpu else CPU)
        }
        for sentence in busy_before(machine):
            print(f"warning: {sentence}")
        for size in map(int, options.batch_sizes.split(",")):
            rng = np.random.default_rng(0)
            batches = [{"x": rng.standard_normal((size, 3, 224, 224)).astype(np.float32)} for _ in range(4)]
            timed = {name: model.timed(batches) for name, model in loaded.items()}
            for each in timed.values():
                warm_up(each, len(batches))
            before, others = read_clocks(cpus, gpu), Load(cpus)
            found = summarize(timed, [interleave(timed, len(batches), options.runs)], size)
            after, share = read_clocks(cpus, gpu), others.of_others()
            device = next(iter(found.values())).latency.device
            print(f"\n{options.model}, batch size {size}, {device}, {options.runs} calls each:\n")
            print("| | p50 ms | p90 ms | p99 ms | images/s | x first, 95 % interval |")
            print("| --- | ---: | ---: | ---: | ---: | ---: |")
            for name, timing in found.items():
                latency, ratio = timing.latency, timing.ratio
                shown = f"{ratio.value:.3f} [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]" if ratio else "1"
                reason = getattr(timed[name], "reason", None)
                print(
                    f"| {name}{f' ({reason})' if reason else ''} | {latency.p50_ms:.3f} | {latency.p90_ms:.3f} | "
                    f"{latency.p99_ms:.3f} | {timing.samples_per_second:,.0f} | {shown} |"
                )
            print(f"\nbefore: {before}\nafter: {after}")
            for sentence in disturbances(before, after, share):
                print(f"warning: {sentence}")
    import torch

    print(f"\nPyTorch {torch.__version__}, {threads} threads on CPUs {cpus}")


if __name__ == "__main__":
    main()
