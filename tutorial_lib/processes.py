"""Finds and ends the processes of a server, even if its owner died and could not end it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import psutil

from tutorial_lib import preload_python
from tutorial_lib.errors import TutorialError


def owner_name() -> str:
    """Returns a name for this process; `owner_lives` can later tell by it whether the process still runs.

    Returns:
        "ts-<process id>-<start in seconds>"; folders and containers have names that begin with it.

    >>> owner_lives(owner_name())
    True
    """
    owner = psutil.Process()
    return f"ts-{owner.pid}-{int(owner.create_time())}"


def owner_lives(name: str) -> bool:
    """Returns whether the process that a name identifies still runs.

    Args:
        name: a name that begins with an `owner_name`.

    Returns:
        True for a name of another form too: this library must not remove what has such a name.

    >>> owner_lives("ts-999999999-1-left"), owner_lives("ts-node-modules")
    (False, True)
    """
    try:
        pid, started = (int(part) for part in name.split("-")[1:3])
        return abs(psutil.Process(pid).create_time() - started) < 2
    except ValueError:
        return True
    except psutil.NoSuchProcess:
        return False


def new_folder() -> Path:
    """Makes a temporary folder, which `reap_orphans` removes if this process dies before it can remove it.

    Raises:
        TutorialError: the folder for temporary files can't be written to.

    >>> folder = new_folder()
    >>> folder.name.startswith(owner_name()), folder.rmdir()
    (True, None)
    """
    try:
        return Path(tempfile.mkdtemp(prefix=f"{owner_name()}-")).resolve()
    except OSError as error:
        raise TutorialError(
            f"No folder can be made in {tempfile.gettempdir()}: {error.strerror or error}. Set TMPDIR to a "
            "folder that you may write to, with room, before Python starts."
        ) from error


def reap_orphans() -> None:
    """Ends the servers whose owners are dead (a killed kernel), and removes their folders.

    The folder's name has the owner's process id and start time, so the server of a living owner is never
    touched, nor a server that this library did not start.

    >>> reap_orphans()
    """
    for folder in Path(tempfile.gettempdir()).glob("ts-*-*-*"):
        if folder.is_dir() and not owner_lives(folder.name):
            end_processes(folder, grace=0)
            shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Returns the processes whose temporary folder this is: launcher, JVM, workers, preloaded or not.

    Args:
        folder: the folder that TEMP names in their environment.

    >>> processes_of(Path("/no/such/folder"))
    []
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("TEMP") == str(folder) and process.pid != os.getpid():
                found.append(process)
    return found + _forks_of(folder)


def _forks_of(folder: Path) -> list[psutil.Process]:
    """Returns the preloaded workers; the system shows the variables of the process that they are forks of."""
    preloading = os.environ.get(preload_python.VARIABLE)
    if preloading is None:
        return []
    try:
        connection, answer = preload_python.ask(preloading, {"forks of": str(folder)}, timeout=10)
    except (OSError, EOFError):
        return []
    connection.close()
    found = []
    for pid in answer["pids"]:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def end_processes(folder: Path, *, grace: float) -> None:
    """Sends SIGTERM to the JVM, which ends its workers and its launcher, then SIGKILL to the rest.

    Args:
        folder: see `processes_of`.
        grace: seconds that the JVM has to end; with 0 all processes are killed at once.

    >>> end_processes(Path("/no/such/folder"), grace=1)
    """
    running = processes_of(folder)
    if grace and _terminate_java(running):
        psutil.wait_procs(running, timeout=grace)
    while running := processes_of(folder):  # a process may have started another one meanwhile
        for process in running:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(running, timeout=1)


def _terminate_java(processes: list[psutil.Process]) -> bool:
    """Terminates the JVM, and returns whether there was one."""
    found = False
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("java"):
                process.terminate()
                found = True
    return found
