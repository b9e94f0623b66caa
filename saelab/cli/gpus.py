"""The machine's GPUs, asked of NVIDIA's driver: in milliseconds, without torch."""

import ctypes
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"
LONGEST = 96


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as its maker calls it.
        free, total: bytes of its memory; 0 where the driver does not say.
    """

    name: str
    free: int
    total: int


class _NvmlMemory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def find_gpus(library: str = LIBRARY) -> list[Gpu]:
    """Every NVIDIA GPU that the driver knows; none without a driver."""
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2() != 0:
            return []
        n = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(n))
        found = [_gpu(nvml, number) for number in range(n.value)]
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        # No driver, or one that lacks a function.
        return []
    return found


def _gpu(nvml: ctypes.CDLL, number: int) -> Gpu:
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(LONGEST), _NvmlMemory()
    nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle))
    nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(LONGEST))
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return Gpu(name.value.decode(errors="replace"), memory.free, memory.total)


def told(gpus: list[Gpu]) -> str:
    """The GPUs in words: `2 x NVIDIA H200`, or `cpu`."""
    names = [gpu.name for gpu in gpus]
    parts = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join(parts) or "cpu"
