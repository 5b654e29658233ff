"""The `target` section of a config: the device that the model will run on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from calibrate.cost.gpus import Gpu, gpu_named, gpu_of
from validate.exceptions import JobError
from validate.settings import Section

__all__ = ["TargetConfig"]


def _capability(target: dict[str, Any]) -> str:
    return gpu_named(target["gpu"]).compute_capability if target["gpu"] else "8.9"


class TargetConfig(Section):
    """The device that the model will run on."""

    device: Literal["gpu", "cpu"] = Field(
        default="gpu", description="cpu: judge the CPU's integer kernels too, since they are what will run"
    )
    gpu: str | None = Field(
        default=None,
        description="GPU whose speed is estimated where it is not this machine's: T4, A10, L4, A100, H100 or RTX 4090; "
        "default: any with the compute capability",
    )
    compute_capability: str = Field(
        default_factory=_capability,
        pattern=r"^\d+\.\d+$",
        coerce_numbers_to_str=True,
        description="GPU that TensorRT-RTX builds for, ahead of time; default: that of gpu, else 8.9",
    )

    @field_validator("gpu")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            return None if name is None else gpu_named(name).name
        except JobError as error:
            raise ValueError(str(error)) from None

    @field_validator("compute_capability")
    @classmethod
    def _that_of_the_gpu(cls, capability: str, info: ValidationInfo) -> str:
        if (name := info.data.get("gpu")) and (its := gpu_named(name).compute_capability) != capability:
            raise ValueError(f"it is {capability}, and target.gpu, the {name}, has {its}; give one of the two")
        return capability

    def is_gpu(self, name: str, compute_capability: str) -> bool:
        """Return whether a GPU is the target: it is `gpu`, or where none is named, has the compute capability.

        Args:
            name: of the GPU, as the driver has it.
            compute_capability: of the GPU, e.g. ``8.9``.

        Examples:
            >>> target = TargetConfig(gpu="L4")
            >>> target.is_gpu("NVIDIA L4", "8.9"), target.is_gpu("NVIDIA GeForce RTX 4090", "8.9")
            (True, False)
        """
        if self.gpu is None:
            return compute_capability == self.compute_capability
        try:
            return gpu_named(name).name == self.gpu
        except JobError:  # a GPU whose speed is not known is none of those that `gpu` can be
            return False

    def known_gpu(self) -> Gpu | None:
        """Return the GPU by which the target's speed is estimated; None where none has its compute capability.

        Examples:
            >>> TargetConfig(compute_capability="8.6").known_gpu().name
            'A10'
        """
        return gpu_named(self.gpu) if self.gpu else gpu_of(self.compute_capability)
