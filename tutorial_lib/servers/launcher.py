"""The program that `TorchServe` starts: it starts the JVM, and ends it and its workers when its owner ends.

Standard input is a pipe that the owner holds open. The kernel closes the pipe when the owner ends, even if it
was killed. The launcher then ends all processes of the server, and removes the server's folder if the owner
is dead. SIGTERM and SIGHUP end the server too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

GRACE = 10.0  # seconds that the JVM has to finish its requests before it is killed
_CHECK = 1.0  # seconds between two looks at the console log's size


def command(log: Path, python: str, arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs the launcher.

    Args:
        log: the console log, to which the launcher's output is appended.
        python: the Python for workers.
        arguments: those of the command torchserve.

    >>> command(Path("console.log"), sys.executable, ["--start"])[1]
    '-P'
    """
    # -P: modules are not looked for beside this file
    return [sys.executable, "-P", __file__, str(Path(__file__).parents[2]), str(log), python, *arguments]


def main() -> None:
    """Runs TorchServe until the owner or the JVM ends. `command` has the arguments, TEMP names the folder."""
    library, log, python, *arguments = sys.argv[1:]
    sys.path.append(library)
    from tutorial_lib.processes import end_processes, remove_if_orphan
    from tutorial_lib.servers.console_log import limit_size

    folder, over = Path(os.environ["TEMP"]), threading.Event()
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        signal.signal(getattr(signal, name), lambda *_: over.set())
    owner = _take_stdin()
    status: list[int | None] = []
    try:
        java = _start_java(python, arguments)
        for wait in (lambda: os.read(owner, 1), lambda: status.append(java.wait())):
            threading.Thread(target=_wait, args=(wait, over), daemon=True).start()
        while not over.wait(_CHECK):
            limit_size(Path(log))
    finally:
        end_processes(folder, grace=GRACE)
        remove_if_orphan(folder)
    ended = status[0] if status and status[0] is not None else 0
    sys.exit(ended if ended >= 0 else 128 - ended)  # as a shell reports a signal


def _take_stdin() -> int:
    """Returns the owner's pipe; the JVM and the workers get an empty standard input."""
    owner = os.dup(0)  # no other process inherits this one
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return owner


def _start_java(python: str, arguments: Sequence[str]) -> psutil.Process:
    from ts import model_server

    sys.executable = python
    # Without --foreground, TorchServe's launcher returns when it has started the JVM.
    sys.argv[:] = ["torchserve", *(word for word in arguments if word != "--foreground")]
    model_server.start()
    java = psutil.Process().children()
    return java[0] if java else sys.exit(1)  # it has printed the reason


def _wait(wait: Callable[[], object], over: threading.Event) -> None:
    wait()
    over.set()


if __name__ == "__main__":
    main()
