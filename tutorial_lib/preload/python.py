"""The program that TorchServe runs in place of `python` if workers are preloaded.

The program gets the arguments that `python` would get. To start a worker, it asks the preloading process
(process.py) for a fork, passes its own standard streams to the fork, and ends when the fork ends. For
other scripts, and where a fork would differ from a new process, it replaces itself by the real Python. This
file imports only the standard library, so that the program starts in a few hundredths of a second.
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

# Libraries read variables with these prefixes only once, when they are imported.
READ_AT_IMPORT = (
    *("ATEN", "CUDA", "DNNL", "GLIBC", "GOMP", "HF_", "HUGGINGFACE", "KMP", "LANG", "LC_", "LD_", "MALLOC"),
    *("MKL", "NUMEXPR", "NUMPY", "NVIDIA", "OMP", "ONEDNN", "OPENBLAS", "PYTHON", "PYTORCH", "TORCH"),
    *("TRANSFORMERS", "XDG_CACHE"),
)
# Exceptions: each worker has its own PYTHONPATH; importing torch sets the other variable, and reads it later.
EXCEPT = ("PYTHONPATH", "PYTHONFAULTHANDLER", "TORCHINDUCTOR_CACHE_DIR")


def circumstances() -> dict[str, Any]:
    """Returns what a process inherits from the process that starts it, and what can't be changed in a fork.

    These are the variables that libraries read when they are imported, the hard limits, the user, the usable
    CPUs, the control group and the file mode mask, each by its name.
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
    """Sends a message and the file descriptors of streams.

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
    """Receives what `send` sent: the message and the file descriptors.

    Raises:
        EOFError: the other process closed the connection, or sent something else.
    """
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    size = int.from_bytes(head, "big")
    body = connection.recv(size, socket.MSG_WAITALL)
    if not body or len(body) != size:
        raise EOFError
    return json.loads(body), streams


def _run_as_fork(arguments: list[str]) -> None:
    """Runs a worker as a fork, and ends with the fork's exit status; returns if no fork can be made."""
    import resource

    request = {
        "arguments": arguments,
        "folder": os.getcwd(),  # noqa: PTH109
        "variables": dict(os.environ),
        "circumstances": circumstances(),
        "nice": os.nice(0),
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],  # Java raises this limit
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"{os.environ[VARIABLE]}/socket")
            send(connection, request, [0, 1, 2])
            answer = receive(connection)[0]  # comes after the imports
        except (KeyError, OSError, EOFError):
            return
        if "refused" in answer:
            # TorchServe writes this into the model log.
            print(f"This worker is not preloaded, but a new process: {answer['refused']}.", flush=True)
            return
        try:
            status = receive(connection)[0]["status"]
        except (OSError, EOFError):  # the preloading process has ended, so nobody else would end the fork
            with contextlib.suppress(OSError):
                os.kill(answer["pid"], signal.SIGKILL)
            status = 1
    os._exit(status if status >= 0 else 128 - status)  # as a shell reports a signal


def main() -> None:
    """Runs the script in a fork if possible, else in a new Python process."""
    arguments = sys.argv[1:]
    if arguments and arguments[0].endswith(WORKER):
        _run_as_fork(arguments)
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main()
