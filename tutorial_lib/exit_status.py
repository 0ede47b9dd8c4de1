"""Finds out how a worker ended. TorchServe knows the exit status of its workers, and logs it nowhere."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

_EXIT_CODE = 49  # its place among the fields of /proc/<pid>/stat that follow the name


def explain_end(launcher: int, socket_name: str, timeout: float) -> str:
    """Watches the next worker that TorchServe starts on a socket, and says how it ended.

    TorchServe starts a worker that died again after a second, and it will end in the same way. Linux shows the
    exit status of a process while the process ends; other systems don't.

    Args:
        launcher: the process id of the server's launcher.
        socket_name: the end of the socket's path, as ".ts.sock.9000".
        timeout: seconds to wait for the worker's end.

    >>> explain_end(os.getpid(), ".ts.sock.none", timeout=0)
    "No exception ended the worker: a signal killed it (SIGKILL where memory ran out), or its code called ..."
    """
    status = _watch(launcher, socket_name, time.monotonic() + timeout)
    killed_by = -status if status < 0 else status - 128  # a shell, and a preloaded worker, adds 128
    if killed_by in set(signal.Signals):
        name = signal.Signals(killed_by).name
        why = ", which is what Linux does when memory runs out (see dmesg)" if name == "SIGKILL" else ""
        return f"No exception ended the worker: it was killed by signal {killed_by} ({name}){why}."
    if status:
        return f"No exception ended the worker: its code ended it with exit status {status} (sys.exit, os._exit)."
    return without_exception()


def without_exception() -> str:
    """Returns a sentence on a worker that no exception ended.

    >>> without_exception()
    "No exception ended the worker: a signal killed it (SIGKILL where memory ran out), or its code called ..."
    """
    return (
        "No exception ended the worker: a signal killed it (SIGKILL where memory ran out), or its code called "
        "sys.exit or os._exit."
    )


def _watch(launcher: int, socket_name: str, deadline: float) -> int:
    """Returns the exit status of the next worker, negative for a signal; 0 if it is unknown."""
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(launcher).children(recursive=True):
                if any(part.endswith(socket_name) for part in process.cmdline()):
                    return _status(Path(f"/proc/{process.pid}/stat"), deadline)
        time.sleep(0.05)
    return 0


def _status(stat: Path, deadline: float) -> int:
    code = 0
    while time.monotonic() < deadline:
        try:
            code = int(stat.read_text().rpartition(")")[2].split()[_EXIT_CODE]) or code
        except (OSError, IndexError, ValueError):  # it has ended
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(code) if code else 0
