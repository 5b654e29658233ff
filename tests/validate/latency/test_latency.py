"""The benchmark: whose turn it is, what an interval covers, what drift does, and the command as a user has it.

No real clock decides anything here: models tell how long they take by moving a clock of the test's own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import psutil
import pynvml
import pytest
from numpy.typing import NDArray
from scipy import stats

from tests.command_line import run_in_process
from validate.backends import local_gpu
from validate.exceptions import JobError, UsageError
from validate.latency import clocks
from validate.latency.clocks import (
    Clocks,
    Load,
    Machine,
    busy_before,
    disturbances,
    pinned,
)
from validate.latency.command import BenchmarkRequest, benchmark_models, specs_of
from validate.latency.inputs import batches_of, random_samples, samples_from, signature_of
from validate.latency.report import LatencyReport
from validate.latency.rounds import (
    MIN_PAIRS,
    Batches,
    Timing,
    calls_of_rounds,
    interleave,
    order,
    ratio,
    summarize,
    warm_up,
)

BATCHES = [{"x": np.full((2, 1), i, np.float32)} for i in range(3)]


class World:
    """A clock, and models that move it."""

    def __init__(self, slow_down: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.slow_down = slow_down
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> float:
        return self.now

    def model(self, name: str, seconds: float, noise: Callable[[], float] = lambda: 1.0) -> Any:
        world = self

        class Model:
            runtime, device = f"runtime of {name}", "a device"
            input_names, output_names = ("x",), ("y",)

            def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
                world.calls.append((name, int(inputs["x"][0, 0])))
                world.now += seconds * world.slow_down(world.now) * noise()
                return {}

        return Model()


def blocks(calls: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return runs of calls of one model: its name and how many."""
    found: list[tuple[str, int]] = []
    for name, _ in calls:
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1] + 1)
        else:
            found.append((name, 1))
    return found


@dataclass
class WallTimed:
    """Time of the calls of a model by a clock of the test's own; see `validate.latency.rounds.Timed`."""

    model: Any
    batches: Batches
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.runtime, self.device = self.model.runtime, self.model.device

    def __call__(self, batch: int) -> float:
        inputs = self.batches[batch]
        started = self.clock()
        self.model.run(inputs)
        return 1e3 * (self.clock() - started)


def measure_together(
    models: Mapping[str, Any], batches: Batches, runs: int, clock: Callable[[], float]
) -> dict[str, Timing]:
    """Warm models up, time them in turns and summarize, as all that times models does."""
    timed = {name: WallTimed(model, batches, clock) for name, model in models.items()}
    for each in timed.values():
        warm_up(each, len(batches), clock)
    return summarize(timed, [interleave(timed, len(batches), runs)], len(batches[0]["x"]))


class TestTurns:
    @pytest.mark.parametrize("models", [1, 2, 3, 5])
    def test_over_all_rounds_every_model_is_everywhere_equally_often(self, models):
        names = [f"m{i}" for i in range(models)]
        rounds = [order(names, number) for number in range(2 * models)]
        assert all(sorted(each) == names for each in rounds)
        for place in range(models):
            assert set(Counter(each[place] for each in rounds).values()) == {2}

    def test_every_two_rounds_each_model_is_equally_late(self):
        names = ["a", "b", "c"]
        for number in range(0, 12, 2):
            places = Counter(dict.fromkeys(names, 0))
            for each in (order(names, number), order(names, number + 1)):
                places.update({name: place for place, name in enumerate(each)})
            assert set(places.values()) == {2}

    @pytest.mark.parametrize("runs", [1, 2, 5, 9, 10, 11, 99, 100, 105, 1000])
    def test_calls_add_up_and_blocks_are_of_nearly_one_size(self, runs):
        calls = calls_of_rounds(runs)
        assert sum(calls) == runs
        assert max(calls) - min(calls) <= 1
        assert len(calls) == runs if runs < 10 else len(calls) >= 10

    def test_models_take_turns_and_have_equal_calls(self):
        world = World()
        models = {"a": world.model("a", 1), "b": world.model("b", 2), "c": world.model("c", 3)}
        found = measure_together(models, BATCHES, 40, world.clock)
        assert set(Counter(name for name, _ in world.calls).values()) == {1 + 3 + 40 + 10}, "warm-up, calls, settling"
        after_warm_up = world.calls[3 * 4 :]
        turns = blocks(after_warm_up)
        assert [name for name, _ in turns[:4]] == ["a", "b", "c", "b"], "c had two blocks after one another"
        names = ["a", "b", "c"]
        flat = [name for number in range(10) for name in order(names, number) for _ in range(4 + 1)]
        assert [name for name, _ in after_warm_up] == flat
        assert [found[name].latency.p50_ms for name in models] == [1000, 2000, 3000]
        assert all(len(timing.p50s_ms) == 10 for timing in found.values())

    def test_inputs_rotate_alike_for_all(self):
        world = World()
        measure_together({"a": world.model("a", 1), "b": world.model("b", 1)}, BATCHES, 12, world.clock)
        timed = {name: [x for n, x in world.calls[8:] if n == name] for name in "ab"}
        assert timed["a"] == timed["b"]
        counts = Counter(timed["a"])
        assert set(counts) == {0, 1, 2} and max(counts.values()) - min(counts.values()) <= 2
        settling_at = [0, 3, 6, 8, 10, 12, 14, 16, 18, 20]  # rounds of 2, 2 and then 1 calls
        counted = [x for i, x in enumerate(timed["a"]) if i not in settling_at]
        assert counted == [i % 3 for i in range(12)]

    def test_warm_up_lasts_a_time_and_a_number_of_calls(self):
        world = World()
        measure_together({"a": world.model("a", 0.01)}, BATCHES[:1], 1, world.clock)
        assert len(world.calls) >= 1 + 25 + 1 + 1, "a quarter of a second in calls of 10 ms"
        world = World()
        measure_together({"a": world.model("slow", 5)}, BATCHES[:1], 1, world.clock)
        assert len(world.calls) == 1 + 3 + 1 + 1


class TestNumbers:
    def test_percentiles_throughput_and_what_ran(self):
        durations = iter([1.0] * 4 + [9.0] + [0.001 * i for i in range(1, 8)])
        world = World()
        found = measure_together(
            {"a": world.model("a", 1, lambda: next(durations, 0.008))}, BATCHES[:1], 4, world.clock
        )["a"]
        assert found.ratio is None
        assert (found.latency.runtime, found.latency.device) == ("runtime of a", "a device")
        assert (found.latency.batch_size, found.latency.runs) == (2, 4)
        assert found.samples_per_second == pytest.approx(1e3 * 2 * 4 / (4 * np.mean(found.p50s_ms)))

    def test_percentiles_are_numpys(self):
        times = np.random.default_rng(0).gamma(3, 0.01, 1000)
        drawn = iter(np.concatenate([np.full(100, 1.0), times]))
        world, seen = World(), []

        def noise() -> float:
            seen.append(next(drawn))
            return float(seen[-1])

        found = measure_together({"a": world.model("a", 1, noise)}, BATCHES[:1], 7, world.clock)["a"].latency
        counted = np.array(seen[-14:])[1::2] * 1e3  # rounds of one call, each after one that settles
        np.testing.assert_allclose([found.p50_ms, found.p90_ms, found.p99_ms], np.percentile(counted, [50, 90, 99]))

    @pytest.mark.parametrize(("calls", "known"), [(10, False), (367, False), (368, True), (2000, True)])
    def test_p99_has_the_bounds_of_order_statistics(self, calls, known):
        """Of times 1, 2, ...: so many are below the upper bound that a binomial hardly has as many below p99."""
        times = np.random.default_rng(0).permutation(np.arange(1.0, calls + 1))
        load = {"a": [times]}
        found = summarize({"a": World().model("a", 1)}, [load], 1)["a"].latency
        assert found.p99_high_ms == (None if not known else stats.binom.ppf(0.975, calls, 0.99) + 1)
        low = stats.binom.ppf(0.025, calls, 0.99)
        assert found.p99_low_ms == pytest.approx(low, abs=1)


class TestRatio:
    @pytest.mark.parametrize("rounds", [MIN_PAIRS, 10, 30])
    def test_intervals_cover_the_true_ratio_as_often_as_they_say(self, rounds):
        """1000 studies, with a drift that both models share and noise that each has of its own."""
        rng, covered = np.random.default_rng(rounds), 0
        for _ in range(1000):
            drift = np.cumsum(rng.normal(0, 0.1, rounds))
            a, b = np.exp(drift + rng.normal(0, 0.02, (2, rounds)))
            found = ratio(a, 0.8 * b)
            covered += found.ci_low <= 0.8 <= found.ci_high
        assert 930 <= covered <= 980

    def test_pairing_keeps_drift_out_of_the_interval(self):
        rng = np.random.default_rng(0)
        drift, noise = np.exp(np.linspace(0, 1, 10)), np.exp(rng.normal(0, 0.01, (2, 10)))
        found = ratio(drift * noise[0], 2 * drift * noise[1])
        assert found.value == pytest.approx(2, rel=0.02) and found.ci_high / found.ci_low < 1.05
        unpaired = ratio(rng.permutation(drift * noise[0]), 2 * drift * noise[1])
        assert unpaired.ci_high / unpaired.ci_low > 1.3

    def test_one_slow_round_widens_it_and_does_not_narrow_it(self):
        even = np.exp(np.random.default_rng(0).normal(0, 0.01, 10))
        slow = even.copy()
        slow[3] *= 2
        quiet, disturbed = ratio(np.ones(10), even), ratio(np.ones(10), slow)
        assert disturbed.ci_low <= 1 <= disturbed.ci_high
        assert disturbed.ci_high / disturbed.ci_low > quiet.ci_high / quiet.ci_low

    @pytest.mark.parametrize("rounds", range(1, MIN_PAIRS))
    def test_few_rounds_have_no_interval(self, rounds):
        found = ratio(np.linspace(1, 2, rounds), np.linspace(2, 3, rounds))
        assert (found.ci_low, found.ci_high, found.method, found.pairs) == (0, math.inf, "none", rounds)
        assert found.value > 1

    def test_rounds_that_do_not_differ_have_no_interval(self):
        found = ratio([2.0] * 10, [1.0] * 10)
        assert found.value == pytest.approx(0.5) and (found.ci_low, found.ci_high) == (0, math.inf)

    @pytest.mark.parametrize("bad", [0.0, math.nan])
    def test_a_time_that_is_none_has_no_ratio(self, bad):
        found = ratio([1.0] * 9 + [bad], [1.0] * 10)
        assert math.isnan(found.value) and (found.ci_low, found.ci_high) == (0, math.inf)

    def test_more_confidence_is_wider(self):
        times = np.exp(np.random.default_rng(0).normal(0, 0.1, (2, 10)))
        low, high = ratio(*times, confidence=0.8), ratio(*times, confidence=0.99)
        assert high.ci_low < low.ci_low < low.value < low.ci_high < high.ci_high


class TestDrift:
    @staticmethod
    def sequential(world: World, models: dict[str, Any]) -> float:
        each = (measure_together({"": model}, BATCHES[:1], 200, world.clock)[""] for model in models.values())
        a, b = (timing.latency.p50_ms for timing in each)
        return b / a

    @pytest.mark.parametrize(
        "slow_down",
        [
            lambda now: 1 + now / 5,
            lambda now: 1.5 if now > 2.0 else 1.0,
            lambda now: 1 + 0.3 * math.sin(now),
        ],
        ids=["slower and slower", "throttled at once", "up and down"],
    )
    def test_what_hits_both_leaves_the_ratio_right(self, slow_down):
        rng = np.random.default_rng(0)

        def pair() -> tuple[World, dict[str, Any]]:
            world = World(slow_down)
            noise = lambda: float(rng.gamma(100, 0.01))  # noqa: E731
            return world, {"a": world.model("a", 0.010, noise), "b": world.model("b", 0.009, noise)}

        world, models = pair()
        found = measure_together(models, BATCHES, 200, world.clock)["b"].ratio
        assert found is not None
        assert found.ci_low <= 0.9 <= found.ci_high
        assert abs(found.value - 0.9) < 0.03
        assert abs(self.sequential(*pair()) - 0.9) > 0.08, "one after the other gets it wrong"

    def test_whole_studies_cover_the_true_ratio(self):
        rng, covered = np.random.default_rng(1), 0
        for _ in range(300):
            phase = rng.uniform(0, 2 * math.pi)
            world = World(lambda now, phase=phase: 1 + 0.3 * math.sin(now / 7 + phase))
            noise = iter(rng.gamma(50, 0.02, 1000))
            models = {n: world.model(n, s, lambda: float(next(noise))) for n, s in (("a", 0.05), ("b", 0.04))}  # noqa: B023
            found = measure_together(models, BATCHES, 50, world.clock)["b"].ratio
            assert found is not None
            covered += found.ci_low <= 0.8 <= found.ci_high
        assert 0.92 <= covered / 300 <= 0.99


class TestLoads:
    def test_what_differs_from_load_to_load_is_in_the_interval(self):
        """The same model twice; each load is some percent faster or slower for good, as a GPU's memory makes it."""
        rng, covered, narrow = np.random.default_rng(2), 0, 0
        world = World()
        models = {name: WallTimed(world.model(name, 1), BATCHES, world.clock) for name in "ab"}
        for _ in range(1000):
            luck = np.exp(rng.normal(0, 0.03, (5, 2, 1, 1)))
            times = luck * np.exp(rng.normal(0, 0.005, (5, 2, 10, 1)))
            loads = [dict(zip("ab", map(list, load), strict=True)) for load in times]
            found, one = summarize(models, loads, 2)["b"], summarize(models, loads[:1], 2)["b"]
            assert found.ratio is not None and one.ratio is not None
            assert (found.paired_by, found.ratio.pairs, one.paired_by, one.ratio.pairs) == ("load", 5, "round", 10)
            covered += found.ratio.ci_low <= 1 <= found.ratio.ci_high
            narrow += one.ratio.ci_low <= 1 <= one.ratio.ci_high
        assert 930 <= covered <= 980
        assert narrow < 300, "one load does not know of it"


class TestInputs:
    def test_batches_differ_and_have_the_size(self):
        samples = {"x": np.arange(5), "y": np.arange(5) * 10}
        for size in (1, 2, 4, 5, 8, 20):
            found = batches_of(samples, size)
            assert len(found) == 4
            assert len({batch["x"].tobytes() for batch in found}) == 4
            assert all(len(batch["x"]) == size and (batch["y"] == 10 * batch["x"]).all() for batch in found)

    def test_one_sample_makes_one_batch(self):
        found = batches_of({"x": np.ones((1, 3))}, 4)
        assert len(found) == 1 and found[0]["x"].shape == (4, 3)

    def test_random_ones_have_the_shapes_and_types_of_the_file(self, tmp_path):
        graph = "g (float16[N, 3] a, int64[N] b, bool[N, 2] c) => (float16[N, 3] d) { d = Identity(a) }"
        onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {graph}'), tmp_path / "m.onnx")
        signature = signature_of(tmp_path / "m.onnx")
        assert signature.fixed_batch is None
        found = random_samples(signature, 6)
        assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
            "a": ((6, 3), np.dtype(np.float16)),
            "b": ((6,), np.dtype(np.int64)),
            "c": ((6, 2), np.dtype(bool)),
        }
        assert set(found["b"].tolist()) <= {0, 1}

    def test_an_axis_without_a_size_needs_data(self, tmp_path):
        graph = "g (float[N, L] a) => (float[N, L] d) { d = Identity(a) }"
        onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {graph}'), tmp_path / "m.onnx")
        with pytest.raises(UsageError, match="input a has axes without a fixed size, so that random"):
            random_samples(signature_of(tmp_path / "m.onnx"), 1)

    def test_a_config_without_names_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="says what the inputs are called"):
            samples_from(tmp_path / "c.yaml", None, 1)


def answer_as(monkeypatch: pytest.MonkeyPatch, driver: Mapping[str, int]) -> None:
    """Let NVML answer as a driver does that knows these things and no others."""
    questions = {
        "nvmlDeviceGetClockInfo": "Clock",
        "nvmlDeviceGetMaxClockInfo": "MaxClock",
        "nvmlDeviceGetTemperature": "Temperature",
        "nvmlDeviceGetPowerUsage": "PowerUsage",
        "nvmlDeviceGetCurrentClocksEventReasons": "EventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons": "ThrottleReasons",
    }
    for question, what in questions.items():

        def answer(*asked: Any, what: str = what) -> int:
            if what not in driver:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return driver[what]

        monkeypatch.setattr(pynvml, question, answer)


class TestMachine:
    def test_pinned_to_as_many_cpus_as_threads_and_back(self):
        if not hasattr(os, "sched_getaffinity"):
            pytest.skip("the OS has no thread affinity")
        before = os.sched_getaffinity(0)
        with pinned(1) as cpus:
            if not cpus:
                pytest.skip("a sandbox forbids it")
            assert os.sched_getaffinity(0) == set(cpus) and len(cpus) == 1
        assert os.sched_getaffinity(0) == before

    def test_cpus_of_different_cores_come_first(self, monkeypatch, tmp_path):
        for cpu, text in enumerate(["0-1", "0-1", "2,3", "2,3"]):
            (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
            (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(text + "\n")
        monkeypatch.setattr(clocks, "_SYS", tmp_path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
        chosen: list[list[int]] = []
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: chosen.append(sorted(cpus)), raising=False)
        for threads in (1, 2, 3, 9):
            with pinned(threads) as cpus:
                assert cpus == chosen[-1]
        assert chosen[::2] == [[0], [0, 2], [0, 1, 2], [0, 1, 2, 3]]
        assert chosen[1::2] == [[0, 1, 2, 3]] * 4

    def test_what_a_driver_says(self, monkeypatch):
        driver = {"Clock": 1395, "MaxClock": 1980, "Temperature": 41, "PowerUsage": 310250, "EventReasons": 0x24}
        answer_as(monkeypatch, driver)
        found = clocks._clocks_of(object())
        assert (found.sm_mhz, found.sm_max_mhz, found.temperature_c, found.power_w) == (1395, 1980, 41, 310.25)
        assert found.slowed_by == ["power cap", "thermal slowdown by software"] and found.gpu_idle is False

    def test_what_a_driver_does_not_say_is_none(self, monkeypatch):
        answer_as(monkeypatch, {"MaxClock": 1980, "Temperature": 41})
        found = clocks._clocks_of(object())
        assert (found.sm_max_mhz, found.temperature_c) == (1980, 41)
        assert (found.sm_mhz, found.power_w, found.gpu_idle, found.slowed_by) == (None, None, None, [])

    def test_an_older_driver_is_asked_by_the_older_name(self, monkeypatch):
        answer_as(monkeypatch, {"ThrottleReasons": 0x1})
        assert clocks._clocks_of(object()).gpu_idle is True

    @pytest.mark.skipif(local_gpu() is not None, reason="says what happens on a machine without a GPU")
    def test_without_a_gpu_there_are_the_cpus_clocks_alone(self):
        found = clocks.read_clocks([], gpu=True)
        assert found == Clocks(cpu_mhz=found.cpu_mhz)

    def test_clocks_that_move_are_said(self):
        def at(cpu: float, gpu: float | None = None, idle: bool = False, slowed: tuple[str, ...] = ()) -> Clocks:
            return Clocks(cpu_mhz=cpu, sm_mhz=gpu, gpu_idle=idle, slowed_by=list(slowed))

        assert disturbances(at(2000, 1900), at(2090, 1810), 0.01) == []
        assert disturbances(at(2000), at(1800), None) == [
            "the CPU clock moved from 2000 to 1800 MHz while the models were timed"
        ]
        assert "GPU clock moved from 1980 to 1700 MHz" in disturbances(at(2000, 1980), at(2000, 1700), None)[0]
        assert disturbances(at(2000, 345, idle=True), at(2000, 1980), None) == []
        assert disturbances(at(2000), at(2000, slowed=("power cap",)), None) == [
            "the GPU's clock was held down by: power cap"
        ]
        assert "other processes took 30% of the CPUs" in disturbances(at(2000), at(2000), 0.3)[0]

    def test_load_before_the_job_is_said(self):
        def busy(load: float | None) -> list[str]:
            return busy_before(Machine(threads=2, pinned_cpus=[], cpus=4, governor=None, load=load))

        assert busy(None) == busy(1.9) == []
        assert "load 3.0 for 4 CPUs" in busy(3.0)[0]

    def test_time_of_others(self, monkeypatch, tmp_path):
        used = [0.0]
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
        monkeypatch.setattr(os, "times", lambda: os.times_result((used[0], 0, 0, 0, 0)))
        tick = os.sysconf("SC_CLK_TCK")

        def write(busy: float, idle: float) -> None:
            row = f"{int(busy * tick)} 0 0 {int(idle * tick)} 0 0 0 0 0 0"
            (tmp_path / "stat").write_text(f"cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 {row}\nctxt 1\n")

        write(10, 10)
        load = Load([0])
        assert load.of_others() is None, "no time has passed"
        used[0] = 3.0
        write(14, 16)
        assert load.of_others() == pytest.approx(0.1), "4 of 10 seconds busy, 3 of them ours"
        (tmp_path / "stat").unlink()
        assert load.of_others() is None


GRAPH = "g (float[{batch}, 8] x) => (float[{batch}, 8] y) {{ y = Relu(x) }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latency")
    for name, batch in (("float", "N"), ("int8", "N"), ("fixed", "4")):
        made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {GRAPH.format(batch=batch)}')
        onnx.save(made, folder / f"{name}.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32))
    np.savez(folder / "other.npz", z=np.zeros((6, 8)))
    (folder / "broken.onnx").write_bytes(b"not a model")
    (folder / "broken.npz").write_bytes(b"not an array")
    (folder / "some.engine").write_bytes(b"")
    (folder / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x.relu()\n\n\n"
        "class Bad(torch.nn.Module):\n    def forward(self, x):\n        return x @ x\n"
    )
    rows = "import numpy as np\n\n\ndef rows():\n    yield from ({'x': np.full(8, i, 'f4')} for i in range(9))\n"
    (folder / "rows.py").write_text(rows)
    source = {"callable": "rows.py:rows"}
    (folder / "config.yaml").write_text(json.dumps({"data": {"calibration": source, "validation": source}}))
    return folder


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(folder: Path, clean_environment: dict[str, str]) -> Command:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_in_process("validate", ["benchmark", *arguments], folder, clean_environment)

    return command


def test_the_command_end_to_end(command: Command, folder: Path) -> None:
    done = command("float.onnx", "int8.onnx", "--batch-sizes", "1,8", "--runs", "20", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "float.onnx" in done.stdout and "95% interval" in done.stdout
    report = LatencyReport.read(folder / "latency.json")
    assert [each.batch_size for each in report.batch_sizes] == [1, 8]
    for each in report.batch_sizes:
        first, second = each.models
        assert (first.name, second.name, first.ratio) == ("float.onnx", "int8.onnx", None)
        assert second.ratio is not None and second.ratio.pairs == 5 and second.paired_by == "load"
        assert 0 < second.ratio.ci_low < second.ratio.value < second.ratio.ci_high < math.inf
        assert all(m.latency.runs == 20 and m.latency.batch_size == each.batch_size for m in each.models)
        assert all(m.latency.p50_ms <= m.latency.p90_ms <= m.latency.p99_ms for m in each.models)
        assert all(m.timing == "wall time" and m.cuda_graph is None for m in each.models)
    assert report.machine.threads == 1 and len(report.machine.pinned_cpus) in {0, 1}
    assert report.command.startswith("python -m validate benchmark float.onnx int8.onnx")
    assert any("ask for at least 100" in note for note in report.notes)
    assert any("random inputs" in note for note in report.notes)
    assert not list(folder.glob("*.partial"))


def test_few_rounds_are_said_to_give_no_interval(command: Command, folder: Path) -> None:
    done = command("float.onnx", "float.onnx", "--runs", "3", "--data", "data.npz", "--output", "few.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((folder / "few.json").read_text())
    second = written["batch_sizes"][0]["models"][1]
    assert second["name"] == "float.onnx #2" and second["ratio"]["ci_high"] == "Infinity"
    assert "unknown" in done.stdout and any("3 loads give no interval" in note for note in written["notes"])
    again = command("float.onnx", "float.onnx", "--runs", "10", "--loads", "1", "--output", "one.json")
    assert again.returncode == 0, again.stderr
    one = LatencyReport.read(folder / "one.json")
    assert one.batch_sizes[0].models[1].paired_by == "round" and any("of one load" in note for note in one.notes)


def test_a_config_and_a_module(command: Command, folder: Path) -> None:
    pytest.importorskip("torch", reason="times a PyTorch module")
    done = command("fixed.onnx", "net.py:Net", "--data", "config.yaml", "--runs", "5", "--output", "module.json")
    assert done.returncode == 0, done.stderr
    report = LatencyReport.read(folder / "module.json")
    assert [each.batch_size for each in report.batch_sizes] == [4], "what the file is fixed to"
    assert report.batch_sizes[0].models[1].latency.runtime.endswith("(fp32, eager)")
    alone = command("net.py:Net", "--data", "data.npz", "--runs", "2", "--precision", "bf16", "--output", "alone.json")
    assert alone.returncode == 0, alone.stderr
    assert "(bf16, eager)" in LatencyReport.read(folder / "alone.json").batch_sizes[0].models[0].latency.runtime


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.onnx"], 2, "there is no file absent.onnx"),
        (["float"], 2, "float is no model that can be opened"),
        (["float.onnx", "--batch-sizes", "1,x"], 2, "--batch-sizes 1,x should be numbers"),
        (["float.onnx", "--batch-sizes", "0"], 2, "--batch-sizes 0 should be numbers"),
        (["fixed.onnx", "--batch-sizes", "1"], 2, "fixed.onnx takes batches of 4 and no other size"),
        (["float.onnx", "fixed.onnx", "--batch-sizes", "4,8"], 2, "fixed.onnx takes batches of 4"),
        (["float.onnx", "--threads", "100000"], 2, "--threads 100000 is more than the"),
        (["float.onnx", "--data", "absent.npz"], 2, "absent.npz cannot be read"),
        (["float.onnx", "--data", "broken.npz"], 2, "broken.npz cannot be read as .npz"),
        (["float.onnx", "--data", "other.npz"], 2, "other.npz has no array called x"),
        (["float.onnx", "--data", "absent.yaml"], 2, "absent.yaml cannot be read"),
        (["float.onnx", "--compile"], 2, "--compile is for PyTorch modules"),
        (["float.onnx", "--output", "no/such/folder.json"], 2, "there is no folder"),
        (["rows.py:rows"], 2, "random inputs are made by the shapes of an ONNX file"),
        (["broken.onnx"], 4, "broken.onnx"),
        (["rows.py:rows", "--data", "data.npz"], 4, "rows.py:rows returns generator"),
        (["net.py:Bad", "--data", "data.npz", "--batch-sizes", "3"], 4, "PyTorch cannot run net.py:Bad on x (3, 8)"),
        (["float.onnx", "some.engine"], 4, "some.engine"),
    ],
)
def test_a_mistake_is_one_sentence(command: Command, arguments: list[str], code: int, said: str) -> None:
    if any(".py:" in argument for argument in arguments):
        pytest.importorskip("torch", reason="names a PyTorch module")
    done = command(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_models_as_the_user_listed_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    specs = specs_of(["float.onnx", "net.py:Net", "float.onnx"], compiled=True)
    assert [(s.name, s.compiled) for s in specs] == [
        ("float.onnx", False),
        ("net.py:Net", False),
        ("net.py:Net (torch.compile)", True),
        ("float.onnx #2", False),
    ]


def fakes() -> Any:
    """Return the tests' engine that is none."""
    path = Path(__file__).parents[1] / "backends/tensorrt/test_engine.py"
    spec = importlib.util.spec_from_file_location("fake_engines", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestBoundEngine:
    @pytest.fixture
    def engine(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        pytest.importorskip("tensorrt_rtx", reason="the fake engine has TensorRT's types; pip install tensorrt-rtx")
        torch = pytest.importorskip("torch", reason="engines benchmark_models on PyTorch's tensors")
        made = fakes()
        monkeypatch.setattr("validate.backends.tensorrt.engine.DEVICE", "cpu")
        monkeypatch.setattr(torch.cuda, "Stream", made.FakeStream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", made.FakeStream)
        self.fake = made.FakeEngine("cpu")
        return made.opened(self.fake)

    def test_it_computes_what_is_in_its_buffers(self, engine):
        batches = [{"x": np.full((2, 3), i, np.float32)} for i in range(3)]
        bound = engine.bind(batches)
        places = {name: feed.data_ptr() for name, feed in bound.feeds.items()}
        for i in (1, 0, 2):
            bound.feeds["x"].copy_(bound.batches[i]["x"])
            y, wide, sizes = bound.enqueue()
            assert (y == 2 * i).all() and (wide == (i > 0)).all() and sizes.tolist() == [2, 3]
        engine.run({"x": np.ones((4, 3), np.float32)})  # has a context of its own
        y, *_ = bound.enqueue()
        assert y.shape == (2, 3) and (y == 4).all()
        assert {name: feed.data_ptr() for name, feed in bound.feeds.items()} == places

    def test_what_does_not_fit_or_fails_is_refused(self, engine, monkeypatch):
        with pytest.raises(JobError, match="takes shapes from"):
            engine.bind([{"x": np.ones((5, 3), np.float32)}])
        with pytest.raises(JobError, match="no array is given for engine input x"):
            engine.bind([{}])
        bound = engine.bind([{"x": np.ones((1, 3), np.float32)}])
        self.fake.succeeds = False
        with pytest.raises(JobError, match="cannot run the engine"):
            bound.enqueue()
        monkeypatch.setattr(engine, "_place", lambda name: "host")
        with pytest.raises(JobError, match="engine input x is a shape, read on the host"):
            engine.bind([{"x": np.ones((1, 3), np.float32)}])


def test_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs where the capture works and computes the same, no graph where it does not, and a reason."""
    torch = pytest.importorskip("torch", reason="times a PyTorch module")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    from rich.console import Console

    monkeypatch.chdir(folder)
    (folder / "gpu.py").write_text(
        "import torch\n\n\nclass Plain(torch.nn.Module):\n    def forward(self, x):\n        return {'y': x @ x.T}\n"
        "\n\nclass Looks(torch.nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
        "\n\nclass Remembers(torch.nn.Module):\n    n = 0\n\n    def forward(self, x):\n        self.n += 1\n"
        "        return x * self.n\n"
    )
    names = ["gpu.py:Plain", "gpu.py:Looks", "gpu.py:Remembers", "gpu.py:Plain"]
    request = BenchmarkRequest(specs_of(names, False), data=Path("data.npz"), batch_sizes=[2], runs=20, device="cuda")
    found = benchmark_models(request, "", Console())
    models = found.batch_sizes[0].models
    assert [m.cuda_graph for m in models] == [True, False, False, True]
    assert models[1].note is not None and models[1].note.startswith("no CUDA graph: ")
    assert models[2].note == "no CUDA graph: on another batch it does not compute what the model does"
    assert all(0 < m.latency.p50_ms < 100 for m in models)
    assert found.batch_sizes[0].loads[-1].after.sm_mhz is not None
    plain = benchmark_models(
        BenchmarkRequest(request.specs[:1], request.data, [2], 5, 1, "cuda", cuda_graph=False), "", Console()
    )
    assert plain.batch_sizes[0].models[0].cuda_graph is False
