"""Measures the memory of a worker, which is a process, and freezes or kills it."""

from __future__ import annotations

import psutil


def memory(pid: int) -> dict[str, float]:
    """Returns the memory of a process, in MB (2**20 bytes).

    RSS is all that it has mapped, PSS counts what n processes share as 1/n, USS is what it alone has.
    """
    used = psutil.Process(pid).memory_full_info()
    return {"RSS": used.rss / 2**20, "PSS": used.pss / 2**20, "USS": used.uss / 2**20}


def memory_of_file(pid: int, name: str) -> dict[str, float]:
    """Returns the MB (2**20 bytes) of a file, by the end of its name, that a process has mapped: RSS and PSS.

    Raises:
        LookupError: the process has not mapped such a file.
    """
    found = [part for part in psutil.Process(pid).memory_maps() if part.path.endswith(name)]
    if not found:
        raise LookupError(f"Process {pid} has mapped no file {name}.")
    return {"RSS": sum(p.rss for p in found) / 2**20, "PSS": sum(p.pss for p in found) / 2**20}


def freeze(pid: int) -> None:
    """Stops a process for as long as it lives: what it is working on stays with it."""
    psutil.Process(pid).suspend()


def kill(pid: int) -> None:
    """Ends a process as the kernel does when memory runs out (SIGKILL)."""
    psutil.Process(pid).kill()
