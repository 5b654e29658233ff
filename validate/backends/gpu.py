"""The facts about this machine's GPU, as the CUDA driver gives them; CUDA_VISIBLE_DEVICES holds."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

__all__ = ["Gpu", "local_gpu"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
_NAME_BYTES, _BUS_ID_BYTES = 256, 32


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: e.g. ``NVIDIA GeForce RTX 4090``.
        compute_capability: e.g. ``8.9``.
        driver: the newest CUDA version that its driver supports, e.g. ``13.0``.
        bus_id: where it is on the PCI bus, e.g. ``0000:01:00.0``. NVML counts GPUs otherwise than CUDA does.
            Empty where it does not matter.
    """

    name: str
    compute_capability: str
    driver: str
    bus_id: str = ""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def local_gpu() -> Gpu | None:
    """Return the first GPU that CUDA shows to this process; None where there is none.

    TensorRT and ONNX Runtime take that one. The driver's own library is asked (CUDA Driver API, "Device Management"),
    as neither PyTorch nor TensorRT need be installed to say that there is no GPU. CUDA_VISIBLE_DEVICES holds, which it
    does not for nvidia-smi and NVML.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    name, bus_id = ctypes.create_string_buffer(_NAME_BYTES), ctypes.create_string_buffer(_BUS_ID_BYTES)
    major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, 0)
        or cuda.cuDeviceGetPCIBusId(bus_id, _BUS_ID_BYTES, 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, 0)
        or cuda.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed:
        return None
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", driver, bus_id.value.decode())
