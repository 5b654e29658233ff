"""Clocks, temperature and load of the machine, which disturb latency, and pinning of the process to CPUs.

psutil knows most of it, Linux's /sys what it does not, and NVIDIA's driver the rest (NVML). What is not told is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pynvml
from pydantic import Field

from validate.backends import local_gpu
from validate.records import Record

__all__ = [
    "Clocks",
    "Load",
    "Machine",
    "available_cpus",
    "busy_before",
    "disturbances",
    "pinned",
    "read_clocks",
    "read_machine",
]

_SYS = Path("/sys/devices/system/cpu")
_MOVED = 0.05
"""Share by which a clock may move before a warning is given."""
_BUSY = 0.5
"""Load per CPU before the job from which a warning is given."""
_OTHERS = 0.05
"""Share of the CPUs' time taken by others from which a warning is given."""
_LEAST_SECONDS = 0.5

# "NvmlClocksEventReasons" in NVIDIA's NVML API reference; the idle GPU and settings of the user's own are not here.
_SLOWED = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "thermal slowdown by software",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "thermal slowdown by hardware",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}


class Clocks(Record):
    """Clocks, temperature and power at one moment."""

    cpu_mhz: float | None = Field(description="mean of the CPUs that are used, as the OS says")
    sm_mhz: float | None = Field(default=None, description="of the GPU's multiprocessors")
    sm_max_mhz: float | None = None
    temperature_c: float | None = Field(default=None, description="of the GPU, in degrees Celsius")
    power_w: float | None = Field(default=None, description="of the GPU, in watts")
    gpu_idle: bool | None = Field(default=None, description="the GPU was clocked down because it had nothing to do")
    slowed_by: list[str] = Field(default_factory=list, description="what held the GPU's clocks down")


class Machine(Record):
    """Facts about the machine that hold throughout a job."""

    threads: int = Field(ge=1, description="intra-op threads of every model")
    pinned_cpus: list[int] = Field(description="CPUs that the process was kept on; empty where the OS cannot do that")
    cpus: int = Field(ge=1, description="of the machine")
    governor: str | None = Field(description="of the CPUs' clocks")
    load: float | None = Field(description="processes that ran or waited, mean of the minute before the job")


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Keep this thread, and all that it starts from now on, on as many CPUs as threads; yield them.

    CPUs of different cores come first. Only Linux can do that; elsewhere the list is empty.

    Args:
        threads: >= 1; all CPUs that the process may use are taken where they are fewer.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    chosen = sorted(before, key=lambda cpu: (_rank_in_core(cpu), cpu))[:threads]
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:  # a sandbox may forbid it
        yield []
        return
    try:
        yield sorted(chosen)
    finally:
        os.sched_setaffinity(0, before)


def read_machine(threads: int, cpus: Sequence[int]) -> Machine:
    """Return the facts about the machine. Call it before the models are loaded, since loading them is load too.

    Args:
        threads: of every model.
        cpus: that `pinned` yielded.
    """
    return Machine(
        threads=threads,
        pinned_cpus=list(cpus),
        cpus=os.cpu_count() or 1,
        governor=_text(_SYS / f"cpu{cpus[0] if cpus else 0}/cpufreq/scaling_governor"),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def read_clocks(cpus: Sequence[int], gpu: bool) -> Clocks:
    """Return the current clocks.

    Args:
        cpus: which; none for all.
        gpu: ask for the GPU's too.
    """
    mhz = _cpu_mhz(cpus)
    found = _gpu() if gpu else None
    return Clocks(cpu_mhz=mhz) if found is None else found.model_copy(update={"cpu_mhz": mhz})


class Load:
    """Measure of the CPU time that other processes take, from its creation on.

    Args:
        cpus: which; none for all.
    """

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = list(cpus)
        self._before = self._now()

    def of_others(self) -> float | None:
        """Return the share in [0, 1] of the CPUs' time since the start that neither this process took nor was idle.

        Time that a hypervisor gave to other machines counts. None in the first half second, of which the OS's steps
        of 10 ms say nothing.
        """
        now = self._now()
        if now is None or self._before is None:
            return None
        total, busy, own = (b - a for a, b in zip(self._before, now, strict=True))
        return min(max(busy - own, 0.0) / total, 1.0) if total >= _LEAST_SECONDS else None

    def _now(self) -> tuple[float, float, float] | None:
        """Return seconds in all, seconds not idle, and seconds of this process."""
        try:
            times = psutil.cpu_times(percpu=True)
        except OSError:
            return None
        # Guests are in user already.
        counted = [
            {name: seconds for name, seconds in cpu._asdict().items() if name not in {"guest", "guest_nice"}}
            for number, cpu in enumerate(times)
            if number in self._cpus or not self._cpus
        ]
        total = sum(sum(cpu.values()) for cpu in counted)
        idle = sum(cpu["idle"] + cpu.get("iowait", 0.0) for cpu in counted)
        used = os.times()
        return total, total - idle, used.user + used.system


def busy_before(machine: Machine) -> list[str]:
    """Return warnings about the machine's load before the job, as sentences.

    Examples:
        >>> busy_before(Machine(threads=4, pinned_cpus=[], cpus=4, governor=None, load=0.5))
        []
    """
    if machine.load is None or machine.load / machine.cpus <= _BUSY:
        return []
    load = f"load {machine.load:.1f} for {machine.cpus} CPUs"
    return [f"the machine was busy before this began ({load}): times may be too long, ratios less so"]


def disturbances(before: Clocks, after: Clocks, others: float | None) -> list[str]:
    """Return warnings about what disturbed the machine between two moments, as sentences.

    Args:
        before: the clocks once the models were warm.
        after: the clocks when the last was timed.
        others: see `Load.of_others`.

    Examples:
        >>> before, after = Clocks(cpu_mhz=3000.0), Clocks(cpu_mhz=1500.0)
        >>> disturbances(before, after, others=None)
        ['the CPU clock moved from 3000 to 1500 MHz while the models were timed']
    """
    found = []
    pairs = [("CPU", before.cpu_mhz, after.cpu_mhz)]
    if not (before.gpu_idle or after.gpu_idle):  # the clock of an idle GPU is not the one that was timed with
        pairs.append(("GPU", before.sm_mhz, after.sm_mhz))
    for what, was, became in pairs:
        if was and became and abs(became / was - 1) > _MOVED:
            found.append(f"the {what} clock moved from {was:.0f} to {became:.0f} MHz while the models were timed")
    if slowed := sorted({*before.slowed_by, *after.slowed_by}):
        found.append(f"the GPU's clock was held down by: {', '.join(slowed)}")
    if others is not None and others > _OTHERS:
        found.append(f"other processes took {others:.0%} of the CPUs while the models were timed")
    return found


def _rank_in_core(cpu: int) -> int:
    """Return 0 for the first CPU of a core, 1 for the thread beside it, ..."""
    siblings = _numbers(_text(_SYS / f"cpu{cpu}/topology/thread_siblings_list") or "")
    return siblings.index(cpu) if cpu in siblings else 0


def _numbers(text: str) -> list[int]:
    """Read a list as Linux writes it: ``0,4`` or ``0-3,8``."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def _cpu_mhz(cpus: Sequence[int]) -> float | None:
    if not hasattr(psutil, "cpu_freq"):
        return None
    every = [cpu.current for cpu in psutil.cpu_freq(percpu=True)]
    mhz = [every[cpu] for cpu in cpus if cpu < len(every)] or every
    return sum(mhz) / len(mhz) or None if mhz else None


def _gpu() -> Clocks | None:
    """Ask NVML about the GPU that CUDA shows first; None where there is none."""
    gpu = local_gpu()
    if gpu is None:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _clocks_of(pynvml.nvmlDeviceGetHandleByPciBusId(gpu.bus_id.encode()))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _clocks_of(handle: Any) -> Clocks:
    """Return what NVML says of a GPU; not every GPU, virtual machine and driver tells all of it."""

    def asked(question: Callable[..., int], *details: Any) -> int | None:
        with suppress(pynvml.NVMLError):
            return question(handle, *details)
        return None

    reasons = asked(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
    if reasons is None:  # drivers before 535 know it by its older name
        reasons = asked(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    milliwatts = asked(pynvml.nvmlDeviceGetPowerUsage)
    return Clocks(
        cpu_mhz=None,
        sm_mhz=asked(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
        sm_max_mhz=asked(pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM),
        temperature_c=asked(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1e3,
        gpu_idle=None if reasons is None else bool(reasons & pynvml.nvmlClocksEventReasonGpuIdle),
        slowed_by=[] if reasons is None else [why for bit, why in _SLOWED.items() if reasons & bit],
    )


def _text(path: Path) -> str | None:
    """Return what a file of the OS says, stripped; None where there is no such file, or it says nothing."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
