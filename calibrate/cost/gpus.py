"""Peak rates and memory bandwidth of NVIDIA GPUs, from their datasheets.

Rates are dense: most datasheets print twice as much, "with sparsity", which a model has only if it was pruned for it.

Looked up again when this was written, in third parties' copies of NVIDIA's tables, as NVIDIA's own could not be
reached: all numbers but the A10's INT8, BF16 and TF32 rates, which are from knowledge of its datasheet. (Those of the
L4 are half of the 485, 242 and 120 that are printed with sparsity.)
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from validate.exceptions import JobError

__all__ = ["GPUS", "Gpu", "gpu_named", "gpu_of"]


@dataclass(frozen=True)
class Gpu:
    """Peak rates of a GPU.

    Attributes:
        name: as the datasheet calls it, without the maker.
        compute_capability: e.g. ``8.9``.
        tera: peak rate by precision, in 10^12 operations a second, a multiply-accumulate being two. ``fp16`` is that of
            tensor cores that accumulate in FP16, which only the RTX 4090 has faster than in FP32 (165.2); TensorRT is
            free to take either. ``fp32`` is that of the tensor cores in TF32 where there is one, as TensorRT has
            `BuilderFlag.TF32` set by default, else that of the CUDA cores.
        bandwidth: of the memory, in GB/s (10^9 bytes).
        source: the datasheet.
        extra_words: words that the driver's name may have besides those of `name`.
    """

    name: str
    compute_capability: str
    tera: dict[str, float]
    bandwidth: float
    source: str
    extra_words: frozenset[str] = frozenset()

    def seconds_per_operation(self, precision: str) -> float:
        """Return the reciprocal of the peak rate, in seconds; a multiply-accumulate is two operations.

        Raises:
            JobError: the GPU does not compute in that precision.

        Examples:
            >>> 1 / gpu_named("T4").seconds_per_operation("int8")
            130000000000000.0
        """
        if precision not in self.tera:
            raise JobError(f"the {self.name} does not compute in {precision}; use fp16")
        return 1 / (self.tera[precision] * 1e12)


GPUS = (
    Gpu(
        "T4",
        "7.5",
        {"int8": 130, "fp16": 65, "fp32": 8.1},
        320,
        "NVIDIA T4 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/tesla-t4",
    ),
    Gpu(
        "A10",
        "8.6",
        {"int8": 250, "fp16": 125, "bf16": 125, "fp32": 62.5},
        600,
        "NVIDIA A10 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/products/a10-gpu",
    ),
    Gpu(
        "L4",
        "8.9",
        {"int8": 242.5, "fp16": 121, "bf16": 121, "fp32": 60},
        300,
        "NVIDIA L4 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/l4",
    ),
    Gpu(
        "A100 SXM 80GB",
        "8.0",
        {"int8": 624, "fp16": 312, "bf16": 312, "fp32": 156},
        2039,
        "NVIDIA A100 Tensor Core GPU datasheet, nvidia-a100-datasheet-us-nvidia-1758950-r4",
    ),
    Gpu(
        "A100 SXM 40GB",
        "8.0",
        {"int8": 624, "fp16": 312, "bf16": 312, "fp32": 156},
        1555,
        "NVIDIA A100 Tensor Core GPU datasheet, nvidia-a100-datasheet-us-nvidia-1758950-r4",
    ),
    Gpu(
        "H100 SXM",
        "9.0",
        {"int8": 1979, "fp16": 989.5, "bf16": 989.5, "fp32": 494.5},
        3350,
        "NVIDIA H100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/h100",
        frozenset({"80gb", "hbm3"}),
    ),
    Gpu(
        "H100 PCIe",
        "9.0",
        {"int8": 1513, "fp16": 756.5, "bf16": 756.5, "fp32": 378},
        2000,
        "NVIDIA H100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/h100",
    ),
    Gpu(
        "RTX 4090",
        "8.9",
        {"int8": 660.6, "fp16": 330.3, "bf16": 165.2, "fp32": 82.6},
        1008,
        "NVIDIA Ada GPU Architecture whitepaper, appendix A",
    ),
)
"""The first of a compute capability stands for all GPUs that have it."""

_VARIANT = re.compile(r"sxm|pcie|\d+gb")


def gpu_named(name: str) -> Gpu:
    """Return a GPU by its name, in upper or lower case, with or without ``NVIDIA``.

    Form factor and memory size may be left out: the first that fits is returned, so ``H100`` is the SXM one.

    Raises:
        JobError: no GPU has that name; the message lists the names.

    Examples:
        >>> gpu_named("NVIDIA GeForce RTX 4090").name
        'RTX 4090'
        >>> gpu_named("h100").name
        'H100 SXM'
    """
    wanted = _words(name)
    for gpu in GPUS:
        words = _words(gpu.name)
        if {word for word in words if not _VARIANT.fullmatch(word)} <= wanted <= words | gpu.extra_words:
            return gpu
    known = [gpu.name for gpu in GPUS]
    near = difflib.get_close_matches(name.lower(), [one.lower() for one in known], n=1)
    suggestion = "".join(f"; did you mean {one}?" for one in known if [one.lower()] == near)
    raise JobError(f"the speed of a GPU called {name!r} is not known{suggestion} (known are {', '.join(known)})")


def gpu_of(compute_capability: str) -> Gpu | None:
    """Return the GPU that stands for a compute capability; None where none is known.

    Examples:
        >>> gpu_of("8.9").name
        'L4'
        >>> gpu_of("12.0") is None
        True
    """
    return next((gpu for gpu in GPUS if gpu.compute_capability == compute_capability), None)


def _words(name: str) -> set[str]:
    words = re.sub(r"sxm\d", "sxm", name.lower()).replace("-", " ").split()
    return {word for word in words if word not in {"nvidia", "geforce", "tesla"}}
