"""Detects whether there is a GPU that torch can use, and its name."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class GpuInfo:
    """What torch and the NVIDIA driver report.

    Attributes:
        available: whether torch can compute on a CUDA GPU.
        names: one name for each GPU that torch sees.
        memory_gib: the total memory of each, in GiB, in the same order.
        reason: why torch can use no GPU; "" if it can use one.

    >>> print(GpuInfo(True, names=("NVIDIA H100",), memory_gib=(79.6,)))
    NVIDIA H100 (80 GiB)
    >>> print(GpuInfo(False, reason="this torch is a CPU build"))
    no GPU: this torch is a CPU build
    """

    available: bool
    names: tuple[str, ...] = ()
    memory_gib: tuple[float, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if not self.available:
            return f"no GPU: {self.reason}"
        return ", ".join(
            f"{name} ({memory:.0f} GiB)" for name, memory in zip(self.names, self.memory_gib, strict=True)
        )


def detect_gpu() -> GpuInfo:
    """Asks torch, which must use the GPU; if torch finds none, the NVIDIA driver helps to explain why.

    >>> info = detect_gpu()
    >>> info.available == bool(info.names)
    True
    """
    try:
        import torch
    except ImportError:
        return GpuInfo(available=False, reason="torch is not installed, and torch is what would use one")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return GpuInfo(
            available=True,
            names=tuple(device.name for device in devices),
            memory_gib=tuple(device.total_memory / 2**30 for device in devices),
        )
    return GpuInfo(available=False, reason=_why_none(torch))


def _why_none(torch: ModuleType) -> str:
    in_driver = _gpus_of_the_driver()
    if not in_driver:
        return "no NVIDIA driver answers on this machine; everything here runs on the CPU"
    if torch.version.cuda is None:
        return f"the driver has {', '.join(in_driver)}, but this torch is a CPU build"
    return (
        f"the driver has {', '.join(in_driver)}, but torch (CUDA {torch.version.cuda}) "
        "can't use it; is the driver new enough?"
    )


def _gpus_of_the_driver() -> list[str]:
    """Returns names from NVML (the package nvidia-ml-py), or [] if there is no driver or no such package."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return []
    except pynvml.NVMLError:
        return []
    try:
        return [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)))
            for i in range(pynvml.nvmlDeviceGetCount())
        ]
    finally:
        pynvml.nvmlShutdown()
