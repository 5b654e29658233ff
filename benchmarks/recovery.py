"""What do the recovery steps win, and what do they cost? Drops with intervals, side by side, on the same samples.

    python benchmarks/recovery.py examples/quickstart.yaml --set data.validation.arguments.n=768
    python benchmarks/recovery.py datasets/imagenet_sample/efficientnet_lite0.yaml --set quantization.weights=per_tensor

The config is that of a run. Each plan has all its layers in INT8, and is judged as a run judges it: by its simulation,
on the validation samples, which no plan was made from. CPU seconds are those of the steps alone, over all threads.
TensorRT-RTX builds the file of every plan, where it is installed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
STEPS = {
    "": (),
    "bias_correction": ("bias_correction",),
    "equalize": ("equalize",),
    "equalize, bias_correction": ("equalize", "bias_correction"),
}


def main() -> None:
    """Print one row per strategy and list of steps, as Markdown."""
    from rich.console import Console

    from calibrate.config import load
    from calibrate.graph import apply, apply_checked
    from calibrate.journal import Journal
    from calibrate.loading import load_inputs
    from calibrate.observation import nodes_beyond_fp16, observe_calibration_set
    from calibrate.recovery import RecoveryInputs, recover
    from calibrate.strategies import make_plans, threshold_function, with_fp32_scales
    from validate.accuracy import evaluate
    from validate.backends import OnnxRuntimeModel, detach, write_onnx
    from validate.backends.tensorrt import build
    from validate.data import Batch
    from validate.stats import drop_interval

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--strategies", default="minmax,mse", help="separated by commas")
    parser.add_argument("--no-build", action="store_true", help="do not have TensorRT-RTX build the files")
    arguments = parser.parse_args()
    strategies = f"quantization.strategies=[{arguments.strategies}]"
    config = load(arguments.config, [*arguments.changes, strategies])
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        inputs = load_inputs(config, config.quantization, Path(folder))
        journal = Journal(Console(quiet=True), progress=False)
        scores = evaluate(inputs.reference, inputs.task, inputs.validation.batches(), lambda n: None, is_reference=True)
        observed = observe_calibration_set(inputs, journal)
        wide = nodes_beyond_fp16(inputs, observed.statistics, journal)
        plans = make_plans(
            config.quantization, observed.observation, inputs.model.placement, observed.origin(inputs), journal
        )
        metric = inputs.task.metric
        print(
            f"float: {metric.value(scores):.4f} on {len(scores)} samples; {len(plans[0].layers)} layers, all in INT8\n"
        )
        print("| scales | recovery | drop, points | 95 % interval | CPU s | passes | TensorRT-RTX |")
        print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
        for plan, strategy in zip(plans, config.quantization.strategies, strict=True):
            plain = plan.model_copy(update={"wide_nodes": wide})
            for name, steps in STEPS.items():
                seen = [0]

                def batches(seen: list[int] = seen) -> Iterator[Batch]:
                    for batch in inputs.calibration.batches():
                        seen[0] += len(batch)
                        yield batch

                threshold = threshold_function(strategy, plain.number_format)
                given = RecoveryInputs(inputs.model, observed.statistics, batches, threshold)
                before = time.process_time()
                recovered = recover(plain, steps, given)
                seconds = time.process_time() - before
                recovered = with_fp32_scales(recovered, config.quantization, inputs.model)
                simulated = apply(recovered, inputs.model.prepared, inputs.model.placement, simulate=True)
                runnable = OnnxRuntimeModel(detach(simulated))
                theirs = evaluate(runnable, inputs.task, inputs.validation.batches(), lambda n: None)
                interval = drop_interval(metric, scores, theirs, 0.95)
                built = "-"
                if not arguments.no_build:
                    path = Path(folder) / "deployed.onnx"
                    write_onnx(apply_checked(recovered, inputs.model.prepared, inputs.model.placement, plan.name), path)
                    profile = observed.fingerprint.profile(inputs.reference.fixed_batch)
                    built = "builds" if build(path, profile, config.target.compute_capability).ok else "refuses it"
                drop, low, high = (100 * x for x in (metric.drop(scores, theirs), interval.low, interval.high))
                passes = seen[0] / observed.samples
                row = f"{drop:.2f} | {low:.2f} to {high:.2f} | {seconds:.1f} | {passes:.1f} | {built}"
                print(f"| {plan.name} | {name or '-'} | {row} |", flush=True)


if __name__ == "__main__":
    main()
