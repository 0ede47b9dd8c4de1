"""Detects whether there is a GPU that torch can use, and its name."""

from __future__ import annotations

from dataclasses import dataclass


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
        gpus = zip(self.names, self.memory_gib, strict=True)
        return ", ".join(f"{name} ({memory:.0f} GiB)" for name, memory in gpus)


def detect_gpu() -> GpuInfo:
    """Asks torch, which must use the GPU; if torch finds none, the NVIDIA driver helps to explain why.

    >>> info = detect_gpu()
    >>> info.available == bool(info.names)
    True
    """
    try:
        import torch
    except ImportError:
        return GpuInfo(False, reason="torch is not installed, and torch is what would use one")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        memory = tuple(device.total_memory / 2**30 for device in devices)
        return GpuInfo(True, tuple(device.name for device in devices), memory)
    in_driver = ", ".join(_gpus_of_the_driver())
    if not in_driver:
        reason = "no NVIDIA driver answers on this machine; everything here runs on the CPU"
    elif torch.version.cuda is None:
        reason = f"the driver has {in_driver}, but this torch is a CPU build"
    else:
        reason = f"the driver has {in_driver}, but torch (CUDA {torch.version.cuda}) can't use it; "
        reason += "is the driver new enough?"
    return GpuInfo(False, reason=reason)


def _gpus_of_the_driver() -> list[str]:
    """Returns names from NVML (the package nvidia-ml-py), or [] if there is no driver or no such package."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    pynvml.nvmlShutdown()
    return names
