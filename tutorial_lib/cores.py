"""Counts the cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000" allows 2 cores' time, "max 100000" all


def all_cores() -> int:
    """Returns the number of cores that this process may run on, by its affinity where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(quota: Path = _QUOTA) -> int:
    """Returns how many cores' time this process may use: `all_cores`, or less by a container's quota."""
    try:
        time, period = quota.read_text(encoding="ascii").split()
        return max(1, min(all_cores(), int(time) // int(period)))
    except (OSError, ValueError):  # no control groups of version 2, or "max"
        return all_cores()
