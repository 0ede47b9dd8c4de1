"""Finds out how a worker ended. TorchServe knows the exit status of its workers, and logs it nowhere."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

_REMOVED_ITS_SOCKET = 1000  # no exit status; TorchServe kills a worker that is slow to exit after that
_EXIT_CODE = 49  # its place among the fields of /proc/<pid>/stat that follow the name


def explain_end(launcher: int, socket: Path, timeout: float) -> str:
    """Watches the next worker that TorchServe starts on a socket, and says how it ended.

    TorchServe starts a worker that died again after a second, and it will end in the same way. Linux shows
    the exit status of a process while the process ends; other systems don't.

    Args:
        launcher: the process id of the server's launcher.
        socket: the file of the worker's socket.
        timeout: seconds to wait for the worker's end.

    >>> explain_end(os.getpid(), Path("/no/such/socket"), timeout=0)
    'No exception ended the worker: a signal killed it (SIGKILL where memory ran out), or its code called ...'
    """
    status = _watch(launcher, socket, time.monotonic() + timeout)
    if status == _REMOVED_ITS_SOCKET:
        return "No exception ended the worker: its code called sys.exit."
    if status < 0:
        name = signal.Signals(-status).name
        why = ", which is what Linux does when memory runs out (see dmesg)" if name == "SIGKILL" else ""
        return f"No exception ended the worker: it was killed by signal {-status} ({name}){why}."
    if status > 0:
        return f"No exception ended the worker: its code called os._exit({status})."
    return without_exception()


def without_exception() -> str:
    """Returns a sentence on a worker that no exception ended.

    >>> without_exception()
    'No exception ended the worker: a signal killed it (SIGKILL where memory ran out), or its code called ...'
    """
    return (
        "No exception ended the worker: a signal killed it (SIGKILL where memory ran out), or its code "
        "called sys.exit or os._exit."
    )


def _watch(launcher: int, socket: Path, deadline: float) -> int:
    """Returns the exit status of the next worker: -9 for SIGKILL, 0 if it is unknown."""
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(launcher).children(recursive=True):
                if any(part.endswith(socket.name) for part in process.cmdline()):
                    return _end_of(Path(f"/proc/{process.pid}/stat"), socket, deadline)
        time.sleep(0.05)
    return 0


def _end_of(stat: Path, socket: Path, deadline: float) -> int:
    had_socket = False
    while time.monotonic() < deadline:
        has_socket = socket.exists()
        if had_socket and not has_socket:
            return _REMOVED_ITS_SOCKET
        had_socket = has_socket
        try:
            code = int(stat.read_text().rpartition(")")[2].split()[_EXIT_CODE])
        except (OSError, IndexError, ValueError):  # it has ended, or this is not Linux
            break
        if code:  # if the socket went meanwhile, TorchServe may have killed a worker that was exiting
            return os.waitstatus_to_exitcode(code) if socket.exists() == has_socket else 0
        time.sleep(0.002)
    return 0
