"""The Python that TorchServe starts its workers with while they are preloaded: it asks for a fork.

TorchServe runs this file in place of `python`, with the arguments that `python` would get. For a worker it
asks the preloading process (preload_process.py) for a fork, gives it its own standard streams, and then lives
and ends with that fork. For anything else, and wherever a fork would not be the same as a new process, it
becomes the real Python. It imports the standard library alone, since it starts as often as a worker does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

VARIABLE = "TUTORIAL_LIB_PRELOADED"  # the preloading process's folder
WORKER = "model_service_worker.py"
LIMIT = 8_000_000  # bytes of a message; all variables together have a few thousand

# Libraries read variables with these beginnings when they are loaded, and not again.
READ_AT_IMPORT = (
    *("ATEN", "CUDA", "DNNL", "GLIBC", "GOMP", "HF_", "HUGGINGFACE", "KMP", "LANG", "LC_", "LD_", "MALLOC"),
    *("MKL", "NUMEXPR", "NUMPY", "NVIDIA", "OMP", "ONEDNN", "OPENBLAS", "PYTHON", "PYTORCH", "TORCH"),
    *("TRANSFORMERS", "XDG_CACHE"),
)
# But not these: each worker has its own of the first; importing torch sets the second, which is read later.
EXCEPT = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")


def circumstances() -> dict[str, Any]:
    """Returns what a fork gets from the preloading process, and a new process from the one that starts it.

    Returns:
        the variables that libraries read when they are loaded, the hard limits, the user, the usable CPUs,
        the control group and the file mode mask; each by its name.

    >>> circumstances()["the user"] == os.getuid()
    True
    """
    import resource

    names = [name for name in vars(resource) if name.startswith("RLIMIT_")]
    groups = Path("/proc/self/cgroup")
    os.umask(mask := os.umask(0))
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if name.startswith(READ_AT_IMPORT) and name not in EXCEPT
        },
        **{name: resource.getrlimit(getattr(resource, name))[1] for name in names},
        "the user": os.getuid(),
        "the CPUs": sorted(os.sched_getaffinity(0)),
        "the control group": groups.read_text() if groups.exists() else "",
        "the file mode mask": mask,
    }


def send(connection: socket.socket, message: dict[str, Any], streams: list[int] | None = None) -> None:
    """Sends a message in one piece, with file descriptors.

    Args:
        connection: a Unix socket.
        message: anything that JSON can hold.
        streams: the file descriptors to give away.

    >>> one, other = socket.socketpair()
    >>> send(one, {"pid": 7})
    >>> receive(other)
    ({'pid': 7}, [])
    >>> one.close(); other.close()
    """
    body = json.dumps(message).encode()
    socket.send_fds(connection, [len(body).to_bytes(4, "big")], streams or [])
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receives a message and its file descriptors, as `send` sent them.

    Raises:
        EOFError: the other side has gone, or sends something else.

    >>> one, other = socket.socketpair()
    >>> one.close()
    >>> receive(other)
    Traceback (most recent call last):
    EOFError
    >>> other.close()
    """
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    size = int.from_bytes(head, "big")
    body = connection.recv(size, socket.MSG_WAITALL) if len(head) == 4 and size < LIMIT else b""
    if not body or len(body) != size:
        raise EOFError
    return json.loads(body), streams


def ask(
    folder: str, message: dict[str, Any], streams: list[int] | None = None, timeout: float | None = None
) -> tuple[socket.socket, dict[str, Any]]:
    """Asks a preloading process; see preload_process.py for the questions.

    Args:
        folder: the process's folder, which `VARIABLE` names.
        message, streams: as for `send`.
        timeout: seconds to wait; it answers when its imports are done.

    Returns:
        the connection, which the caller closes, and the answer.

    Raises:
        OSError, EOFError: there is none, or it does not answer.

    >>> ask("/no/such/folder", {})
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(f"{folder}/socket")
        send(connection, message, streams)
        return connection, receive(connection)[0]
    except BaseException:
        connection.close()
        raise


def _run_as_fork(arguments: list[str]) -> None:
    """Lets a fork do the work, and ends as it ends; returns if there is no fork to be had."""
    import resource

    request = {
        "arguments": arguments,
        "folder": os.getcwd(),  # noqa: PTH109
        "variables": dict(os.environ),
        "circumstances": circumstances(),
        "nice": os.nice(0),
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],  # Java raises its own
    }
    try:
        connection, answer = ask(os.environ[VARIABLE], request, [0, 1, 2])
    except (KeyError, OSError, EOFError):
        return
    if "refused" in answer:
        print(
            f"This worker is not preloaded, but a new process: {answer['refused']}.", flush=True
        )  # into the log
        connection.close()
        return
    try:
        status = receive(connection)[0]["status"]
    except (OSError, EOFError):  # the preloading process has ended: nothing would end the fork with this one
        with contextlib.suppress(OSError):
            os.kill(answer["pid"], signal.SIGKILL)
        status = 1
    os._exit(status if status >= 0 else 128 - status)  # as a shell tells of a signal


def main() -> None:
    """Runs the arguments as a fork where that is possible, else as the real Python."""
    arguments = sys.argv[1:]
    if arguments and arguments[0].endswith(WORKER):
        _run_as_fork(arguments)
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main()
