"""Knows whose a server's folder and processes are, and ends what a dead owner left.

Each server has a temporary folder with an owner file in it. The owner, which is the process that made the
folder, keeps that file locked. The kernel releases the lock when the owner ends, whatever the clock says, and
across containers that share the folder. So a folder is an orphan if its owner file can be locked. A server's
processes are those of this user whose variable TEMP names the folder. A fork's variables can't be seen, so
`mark_fork` leaves a file in the folder for each fork.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from tutorial_lib.errors import TutorialError, explain_os_error

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_OWNER_FILE = "tutorial_lib.owner"
_ENGINE_FILE = "tutorial_lib.engine"  # in a container's folder: the engine that runs the container
_FORK_FILE = "tutorial_lib.fork"  # in a folder for each fork: its id and its start are in the file's name
_held: dict[Path, IO[bytes]] = {}  # this process's folders → their owner files, locked while they are open
_pipes: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()  # standard input of what this process started


def _release_in_fork() -> None:
    """Closes, in a fork of the owner, the files that stand for the owner's life: the fork may outlive it."""
    for file in (*_held.values(), *_pipes):
        file.close()
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_release_in_fork)


# Folders


def new_folder() -> Path:
    """Makes a temporary folder, which belongs to this process until `remove_folder` or the process's end.

    >>> folder = new_folder()
    >>> folder in list(orphans()), remove_folder(folder)
    (False, None)
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="ts-")).resolve()
        try:
            _own(folder)
        except OSError:
            remove_folder(folder)
            raise
    except OSError as error:
        raise TutorialError(
            f"No folder can be made in {tempfile.gettempdir()}: {explain_os_error(error)}"
        ) from error
    return folder


def remove_folder(folder: Path) -> None:
    """Removes a folder that belongs to this process, or that `orphans` yielded.

    If something in it can't be removed now, the folder is an orphan, and the next start tries again.
    """
    _release(folder)  # Windows does not remove open files
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
        shutil.rmtree(folder)  # with the owner file


def orphans(engine: str = "") -> Iterator[Path]:
    """Yields the folders of this user whose owners are dead; each belongs to this process until the next one.

    With an engine: only the folders of containers that the engine runs; without: those of no container.
    """
    for folder in Path(tempfile.gettempdir()).resolve().glob("ts-*"):
        if _claim(folder):
            try:
                file = folder / _ENGINE_FILE
                if (file.read_text(encoding="utf-8") if file.exists() else "") == engine:
                    yield folder
            finally:
                _release(folder)


def reap_orphans() -> None:
    """Ends the servers whose owners and launchers were killed, and removes their folders."""
    for folder in orphans():
        end_processes(folder, grace=0)
        remove_folder(folder)


def remove_if_orphan(folder: Path, patience: float = 0) -> None:
    """Removes a server's folder if its owner is dead; for the processes that end after their owner.

    A process that ends closes its files one after the other, so its pipes may be closed before its lock is
    released: `patience` is how many seconds to wait for the lock.
    """
    deadline = time.monotonic() + patience
    while not (is_orphan := _claim(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_orphan:
        remove_folder(folder)


def set_engine(folder: Path, engine: str) -> None:
    """Writes down that a folder is a container's: only a process that uses the engine may remove it."""
    (folder / _ENGINE_FILE).write_text(engine, encoding="utf-8")


def _own(folder: Path) -> None:
    """Locks a new owner file, then writes it, so that no process finds a written file that was never locked.

    If the file system has no locks, the file stays empty: then nobody takes the folder for an orphan.
    """
    file = (folder / _OWNER_FILE).open("xb", buffering=0)
    _held[folder] = file
    if _lock(file):
        file.write(_mark(folder) + b"\n".join(_hosts()))


def _claim(folder: Path) -> bool:
    """Makes an orphan this process's folder; returns whether it was one.

    Neither a link nor what another user made is an orphan, nor a copy of an orphan.
    """
    with contextlib.suppress(OSError):
        if not _is_mine(folder.lstat(), stat.S_IFDIR):
            return False
        # A link is not followed, and a named pipe is not waited for.
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = os.fdopen(os.open(folder / _OWNER_FILE, flags), "r+b", buffering=0)
        if _is_mine(os.fstat(file.fileno()), stat.S_IFREG):
            text, mark = file.read(10_000), _mark(folder)
            if text.startswith(mark) and _hosts() & set(text[len(mark) :].split(b"\n")) and _lock(file):
                _held[folder] = file
                return True
        file.close()
    return False


def _mark(folder: Path) -> bytes:
    return b"tutorial_lib removes this folder when its owner has ended:\n" + os.fsencode(folder) + b"\n"


def _release(folder: Path) -> None:
    if file := _held.pop(folder, None):
        file.close()


def _lock(file: IO[bytes]) -> bool:
    """Locks a file until it is closed, and returns whether that worked: its owner has it locked."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_mine(found: os.stat_result, kind: int) -> bool:
    """Returns whether a file is of a kind and belongs to this user."""
    return stat.S_IFMT(found.st_mode) == kind and (sys.platform == "win32" or found.st_uid == os.geteuid())


def _hosts() -> set[bytes]:
    """Returns this boot's id and this host's name; a folder of another host has neither.

    On some network file systems, a lock is not seen by other hosts. The containers of one host have the same
    boot id; a host that was booted again has the same name.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")  # on Linux
    return {platform.node().encode(), boot.read_bytes().strip() if boot.exists() else b""} - {b""}


# Processes


def start_owned(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], output: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Starts a process in a folder; its standard input is closed when this process ends, however it ends."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,  # this process handles a Ctrl-C in the terminal
    )
    assert process.stdin is not None
    _pipes.add(process.stdin)
    return process


def processes_of(folder: Path) -> list[psutil.Process]:
    """Returns this user's other processes whose TEMP is this folder: launcher, JVM and workers."""
    found, user = [], psutil.Process().username()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_its = process.environ().get("TEMP") == str(folder) or _fork_file(folder, process.pid).exists()
            if is_its and process.username() == user and process.pid != os.getpid():
                found.append(process)
    return found


def mark_fork(folder: Path, pid: int) -> None:
    """Leaves a file by which `processes_of` knows a fork, whose TEMP the system does not show."""
    with contextlib.suppress(OSError):  # the fork, or the folder, is gone already
        _fork_file(folder, pid).touch()


def _fork_file(folder: Path, pid: int) -> Path:
    """Returns the file of a fork. The start, in ticks since boot, is in its name: ids are used again."""
    state = Path(f"/proc/{pid}/stat").read_bytes()  # preloading is for Linux alone
    started = int(state.rpartition(b")")[2].split()[19])
    return folder / f"{_FORK_FILE}.{pid}.{started}"


def end_processes(folder: Path, *, grace: float) -> None:
    """Sends SIGTERM to the JVM, which ends its workers, then SIGKILL to what is left.

    Args:
        folder: see `processes_of`.
        grace: seconds that the JVM has to end; with 0 all processes are killed at once.
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
