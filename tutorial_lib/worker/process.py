"""Runs a handler in a process of its own, as a TorchServe worker does, for a program that hands it batches.

The process that talks to clients and the process that computes each have an interpreter lock of their own, so
neither waits for the other's Python. They exchange pickles through the process's standard input and output;
what the handler prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from tutorial_lib.worker import contract as worker


class WorkerDied(Exception):
    """The process ended before it had answered."""

    def __init__(self) -> None:
        super().__init__("The handler's process ended before it answered. Its standard error may say why.")


class LoadFailed(Exception):
    """The handler could not be loaded; the message is the process's traceback."""


class WorkerProcess:
    """A process in which a handler is loaded, and answers one batch after the other.

    One thread calls `load` and `predict`; any thread may call `kill`. The process ends when the one that
    started it ends, however that ends.

    Attributes:
        pid: the process's id.
    """

    def __init__(
        self, folder: Path, name: str, *, on_metric: Callable[[worker.Metric], None], **options: Any
    ) -> None:
        """Starts the process; `load` waits for it.

        Args:
            folder: the unpacked archive.
            name: the name that the model is served as.
            on_metric: called with each metric of the handler, in the thread of `load` and `predict`.
            options: gpu_id, batch_size and envelope, as for `worker.load_service`.
        """
        self._on_metric = on_metric
        # The child imports what this process could: a program may have added folders while it ran.
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self.pid = self._process.pid
        self._first = (folder, name, options)

    def load(self) -> None:
        """Waits until the handler is loaded.

        Raises:
            LoadFailed: importing the handler, or its `initialize`, raised an exception.
            WorkerDied: it ended the process.
        """
        self._send(self._first)
        self._receive()

    def predict(
        self, batch: Sequence[dict[str, Any]], on_chunk: Callable[[int, worker.Reply], None] | None = None
    ) -> list[worker.Reply]:
        """Does what `worker.predict` does, in the process.

        Raises:
            WorkerDied: the handler did what ends a TorchServe worker, or the process was killed.
        """
        self._send(batch)
        while (message := self._receive())[0] == "part":
            if on_chunk:
                on_chunk(*message[1])
        replies: list[worker.Reply] = message[1]
        return replies

    def alive(self) -> bool:
        """Returns whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process at once, and waits until it has ended."""
        self._process.kill()
        self._process.wait()

    def _send(self, what: Any) -> None:
        assert self._process.stdin
        try:
            _write(self._process.stdin, what)
        except OSError as error:
            raise WorkerDied from error

    def _receive(self) -> tuple[str, Any]:
        """Returns a message's kind and value, and takes the metrics that came with it.

        Kinds: "loaded"; "failed" (value: a traceback); "part" (value: a request's index, and a part of its
        streamed answer); "answered" (value: the replies to a batch).
        """
        assert self._process.stdout
        try:
            kind, value, metrics = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorkerDied from error
        for metric in metrics:
            self._on_metric(metric)
        if kind == "failed":
            raise LoadFailed(value)
        return kind, value


def _write(pipe: IO[bytes], what: Any) -> None:
    pickle.dump(what, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def main() -> None:
    """Does the process's work: loads what the first message names, then answers batches until it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the owner ends this one
    inbox, outbox = _take_pipes()
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox, messages), daemon=True).start()
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    metrics: list[worker.Metric] = []
    worker.on_metric(metrics.append)

    def report(kind: str, value: Any = None) -> None:
        new = metrics[:]
        del metrics[: len(new)]  # one that a thread of the handler adds meanwhile waits for the next message
        _write(outbox, (kind, value, new))

    folder, name, options = messages.get()
    with worker.in_model_folder(folder):
        try:
            service = worker.load_service(folder, name, **options)
        except BaseException:
            report("failed", traceback.format_exc())
            os._exit(1)
        report("loaded")
        while True:
            try:
                replies = worker.predict(
                    service, messages.get(), lambda index, part: report("part", (index, part))
                )
            except BaseException:
                logging.exception("Backend worker process died.")
                os._exit(1)  # at once: a thread of the handler may run on
            report("answered", replies)


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Returns standard input and output, and gives the handler others, which it may read and write."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return inbox, outbox


def _read(inbox: IO[bytes], messages: queue.SimpleQueue[Any]) -> None:
    """Takes messages until the owner has ended; then ends the process, even if the handler hangs."""
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            messages.put(pickle.load(inbox))
    os._exit(1)


if __name__ == "__main__":
    main()
