"""The preloading process: it imports once what workers import, and forks a worker for each request.

owner.py starts this process. python.py sends requests over the Unix socket in the process's folder.
A fork has the arguments, folder, variables, module search path and streams that a new worker process would
have. A fork ends when the process that requested it ends. The preloading process ends when its owner has
ended and no fork runs.
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

from tutorial_lib.preload.python import circumstances, receive, send
from tutorial_lib.processes import mark_fork, remove_if_orphan

_RUN_AT_START = {"sitecustomize", "usercustomize"}


class _Forks:
    """The forked workers; each ends when the connection that requested it is closed."""

    def __init__(self, folder: Path, path: list[str]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen(128)  # requests wait here during the imports
        self._folder = folder
        self._owner = sys.stdin.fileno()  # a pipe that the owner holds open
        self._circumstances = circumstances()
        self._path = path
        self._connections: dict[int, socket.socket] = {}  # process id of a fork → its requester

    def serve(self) -> dict[str, Any]:
        """Answers requests until the owner ends. Returns only in a fork, with the fork's request."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._owner, selectors.EVENT_READ, self._leave)
        while True:
            for key, _ in self._selector.select():
                if request := key.data(key.fileobj):
                    return request  # type: ignore[no-any-return]
            if self._owner < 0 and not self._connections:
                remove_if_orphan(self._folder, patience=5)
                os._exit(0)

    def _leave(self, owner: int) -> None:
        self._selector.unregister(owner)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._owner = -1

    def _accept(self, listener: socket.socket) -> dict[str, Any] | None:
        if self._owner < 0:  # select reported the owner's end and this request at once
            return None
        connection, _ = listener.accept()
        connection.settimeout(5)  # a requester sends at once
        try:
            request, streams = receive(connection)
        except (OSError, EOFError, ValueError):
            connection.close()
            return None
        if reason := self._refusal(request):
            for stream in streams:
                os.close(stream)
            with connection, contextlib.suppress(OSError):
                send(connection, {"refused": reason})
            return None
        with warnings.catch_warnings(action="ignore"):  # numpy's threads handle a fork themselves
            pid = os.fork()
        if pid == 0:
            self._forget_all(connection)
            return {**request, "streams": streams, "path": self._path}
        for stream in streams:
            os.close(stream)
        self._connections[pid] = connection
        if temp := request["variables"].get("TEMP"):
            mark_fork(Path(temp), pid)
        with contextlib.suppress(OSError):
            send(connection, {"pid": pid})
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, lambda fd: self._reap(fd, pid))
        self._selector.register(connection, selectors.EVENT_READ, lambda _: self._end(pid))
        return None

    def _refusal(self, request: dict[str, Any]) -> str:
        """Returns how a fork would differ from a new process; "" if it would not."""
        own, wanted = self._circumstances, request["circumstances"]
        if differing := sorted(key for key in own | wanted if own.get(key) != wanted.get(key)):
            return f"it differs in {', '.join(differing)}"
        if request["nice"] < os.nice(0):
            return "it has a higher priority"
        loaded = {name.partition(".")[0] for name in sys.modules} | _RUN_AT_START
        for entry in _entries(request):
            if entry in self._path or not os.path.isdir(entry):  # noqa: PTH112
                continue
            found = {name.partition(".")[0] for name in os.listdir(entry)}  # noqa: PTH208
            if found & loaded:
                return f"it has its own {', '.join(sorted(found & loaded))}"
        return ""

    def _end(self, pid: int) -> None:
        """Kills a fork whose requester was killed."""
        if pid in self._connections:  # else the fork has ended meanwhile
            self._selector.unregister(self._connections[pid])
            os.kill(pid, signal.SIGKILL)

    def _reap(self, fd: int, pid: int) -> None:
        self._selector.unregister(fd)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        connection = self._connections.pop(pid)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        with connection, contextlib.suppress(OSError):
            send(connection, {"status": os.waitstatus_to_exitcode(status)})

    def _forget_all(self, connection: socket.socket) -> None:
        """Closes, in a fork, the sockets and files that only the preloading process uses."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            elif key.fd != self._owner:  # the owner's pipe is stdin, which is replaced
                os.close(key.fd)
        self._selector.close()
        connection.close()


def _entries(request: dict[str, Any]) -> list[str]:
    """Returns the folders where a new process would look for modules before the standard library."""
    script = os.path.dirname(request["arguments"][0])  # noqa: PTH120
    python_path = request["variables"].get("PYTHONPATH", "")
    return [script, *filter(None, python_path.split(os.pathsep))]


def _become(request: dict[str, Any]) -> None:
    """Gives this fork what a new process would have."""
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
        numpy.random.seed()  # Python's own generator is seeded again at each fork


def _preload(modules: list[str]) -> None:
    """Imports the modules; if one fails, the worker will import it again and report the error."""
    with warnings.catch_warnings(), contextlib.suppress(BaseException):
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
    logging.root.handlers.clear()  # else a worker would not set up its log
    gc.collect()
    gc.freeze()  # so that garbage collection in forks does not copy shared memory


def main(path: list[str]) -> None:
    """Imports modules, then forks workers until the owner ends; sys.argv names the folder and the modules.

    `path` is the sys.path of a new Python process, without its script's folder and PYTHONPATH.
    """
    folder, *modules = sys.argv[1:]
    forks = _Forks(Path(folder), path)
    _preload(modules)
    _run(forks.serve())


def _run(request: dict[str, Any]) -> None:
    """Runs a worker's script in a fork, and ends the process, without the libraries' C++ destructors.

    These may wait for threads that a fork does not have. Python's multiprocessing ends forks in the same way.
    """
    status: object = 0
    try:
        _become(request)
        runpy.run_path(request["arguments"][0], run_name="__main__")
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
