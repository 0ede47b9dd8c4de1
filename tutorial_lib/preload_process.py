"""The preloading process: imports what workers import, once, and forks a worker whenever one is asked for.

Started by preload.py; asked by preload_python.py over the Unix socket in the folder. A fork is what a new
worker would be after its imports: same arguments, folder, variables, module search path and streams. It ends
when the process that asked for it ends, and this process when its owner has ended and no fork is left.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tutorial_lib.preload_python import circumstances, receive, send

_RUN_AT_START = {"sitecustomize", "usercustomize"}


class _Forks:
    """The workers that were forked: one ends with the connection that asked for it."""

    def __init__(self, folder: Path, path: list[str]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen(128)  # who asks during the imports waits for their end
        self._owner = sys.stdin.fileno()  # a pipe, which ends with the owner
        self._circumstances = circumstances()
        self._path = path
        self._connections: dict[int, socket.socket] = {}  # process id of a fork → who asked for it
        self._temporary: dict[int, str] = {}  # process id of a fork → its TEMP

    def serve(self) -> dict[str, Any]:
        """Answers until the owner ends. Returns in a fork alone, with the request that it is for."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._owner, selectors.EVENT_READ, self._leave)
        while True:
            for key, _ in self._selector.select():
                if request := key.data(key.fileobj):
                    return request  # type: ignore[no-any-return]
            if self._owner < 0 and not self._connections:
                os._exit(0)

    def _leave(self, owner: int) -> None:
        self._selector.unregister(owner)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._owner = -1

    def _accept(self, listener: socket.socket) -> dict[str, Any] | None:
        connection, _ = listener.accept()
        connection.settimeout(5)  # who asks sends at once
        try:
            request, streams = receive(connection)
        except (OSError, EOFError, ValueError):
            connection.close()
            return None
        if "forks of" in request:
            wanted = [pid for pid, temp in self._temporary.items() if temp == request["forks of"]]
            self._answer(connection, {"pids": wanted}, streams)
            return None
        if reason := self._refusal(request):
            self._answer(connection, {"refused": reason}, streams)
            return None
        with warnings.catch_warnings(action="ignore"):  # numpy's threads, which prepare for a fork themselves
            pid = os.fork()
        if pid == 0:
            self._forget_all(connection)
            return {**request, "streams": streams, "path": self._path}
        for stream in streams:
            os.close(stream)
        self._connections[pid] = connection
        self._temporary[pid] = request["variables"].get("TEMP", "")
        with contextlib.suppress(OSError):
            send(connection, {"pid": pid})
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, lambda fd: self._reap(fd, pid))
        self._selector.register(connection, selectors.EVENT_READ, lambda _: self._end(pid))
        return None

    def _answer(self, connection: socket.socket, answer: dict[str, Any], streams: list[int]) -> None:
        for stream in streams:
            os.close(stream)
        with connection, contextlib.suppress(OSError):
            send(connection, answer)

    def _refusal(self, request: dict[str, Any]) -> str:
        """Returns why a fork would not be what a new process is, or ""."""
        own, wanted = self._circumstances, request["circumstances"]
        if differing := sorted(key for key in own | wanted if own.get(key) != wanted.get(key)):
            return f"it differs in {', '.join(differing)}"
        if request["nice"] < os.nice(0):
            return "it has a higher priority"
        loaded = {name.partition(".")[0] for name in sys.modules} | _RUN_AT_START
        for entry in _entries(request):
            with contextlib.suppress(OSError):  # no such folder
                if entry not in self._path and (
                    own_modules := loaded & {Path(name).name.partition(".")[0] for name in os.listdir(entry)}  # noqa: PTH208
                ):
                    return f"it has its own {', '.join(sorted(own_modules))}"
        return ""

    def _end(self, pid: int) -> None:
        """Kills a fork: the process that asked for it was killed."""
        if pid in self._connections:  # else it has ended meanwhile
            self._selector.unregister(self._connections[pid])
            os.kill(pid, signal.SIGKILL)

    def _reap(self, fd: int, pid: int) -> None:
        self._selector.unregister(fd)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        connection = self._connections.pop(pid)
        del self._temporary[pid]
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        with connection, contextlib.suppress(OSError):
            send(connection, {"status": os.waitstatus_to_exitcode(status)})

    def _forget_all(self, connection: socket.socket) -> None:
        """Closes, in a fork, what belongs to this process alone."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            elif key.fileobj != self._owner:  # the owner's pipe is replaced as a standard stream
                os.close(int(key.fileobj))  # type: ignore[arg-type]
        self._selector.close()
        connection.close()


def _entries(request: dict[str, Any]) -> list[str]:
    """Returns the folders that a new process would search before the standard library."""
    script = os.path.dirname(request["arguments"][0])  # noqa: PTH120
    python_path = request["variables"].get("PYTHONPATH", "")
    return [script, *filter(None, python_path.split(os.pathsep))]


def _become(request: dict[str, Any]) -> None:
    """Makes this fork what a new process would be."""
    import resource

    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    os.nice(request["nice"] - os.nice(0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (request["open files"], hard))
    sys.argv[:] = request["arguments"]
    sys.path[:] = [*_entries(request), *request["path"]]
    sys.path_importer_cache.clear()
    tempfile.tempdir = None
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own generator does this after each fork


def _preload(modules: list[str]) -> None:
    """Imports the modules that can be imported; a worker tells what is wrong with the others."""
    with warnings.catch_warnings(), contextlib.suppress(BaseException):
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
    logging.root.handlers.clear()  # a worker sets up its own log, which it would not do after an import's
    gc.collect()
    gc.freeze()  # so that a fork's garbage collector writes to no shared memory


def main(path: list[str]) -> None:
    """Imports, then forks until the owner ends; sys.argv has the folder and the modules to import.

    Args:
        path: what a new Python process would have as sys.path, without its script's folder and PYTHONPATH.
    """
    folder, *modules = sys.argv[1:]
    forks = _Forks(Path(folder), path)
    _preload(modules)
    _become(request := forks.serve())
    _run(request["arguments"][0])


def _run(script: str) -> None:
    """Runs a worker's script, and ends as Python ends a process: without the libraries' own last steps.

    Those can wait for threads that a fork does not have. Python's multiprocessing ends its forks so too.
    """
    status: object = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
