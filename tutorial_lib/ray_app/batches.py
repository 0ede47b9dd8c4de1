"""Gathers a replica's requests in batches, and has the handler answer one batch after the other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tutorial_lib.worker import contract as worker
from tutorial_lib.worker.process import WorkerDied, WorkerProcess

_LOOK = 1.0  # so many seconds an idle thread waits before it looks whether the process still runs


class Answer(NamedTuple):
    """The handler's reply to a request, and how many seconds the request waited for its batch."""

    reply: worker.Reply
    queued: float


class NotBegun(Exception):
    """The process ended before the handler saw this request, so the request may be repeated elsewhere."""


class Job:
    """A request that the thread answers; made in the event loop that waits for the answer."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.came = request, time.monotonic()
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # The parts of a streamed answer except the last; None after the whole answer.
        self.parts: asyncio.Queue[worker.Reply | None] = asyncio.Queue()
        self.answer.add_done_callback(lambda _: self.parts.put_nowait(None))

    def settle(self, outcome: Answer | NotBegun) -> None:
        """Sets the answer, unless the client is gone."""
        if self.answer.done():
            return
        if isinstance(outcome, Answer):
            self.answer.set_result(outcome)
        else:
            self.answer.set_exception(outcome)


class Batches(threading.Thread):
    """Waits for a process that loads the handler, and has it answer jobs in batches.

    A batch is gathered when the handler is free, as in TorchServe's frontend: it takes all jobs that wait, up
    to `size`. If fewer wait, the thread waits for more for `delay` seconds. (`serve.batch` gathers while the
    handler is busy, so that its batches are small under load.)

    Attributes:
        loaded: a future that is done when the handler is loaded.
        ended: whether the handler hung, or its process died, and answers no more.
    """

    def __init__(
        self,
        process: WorkerProcess,
        *,
        size: int,
        delay: float,
        silence: float,
        on_batch: Callable[[float, float], None],
        on_end: Callable[[], None],
    ) -> None:
        """Starts the thread; called in the event loop in which jobs are made.

        Args:
            process: answers the batches; killed when the work ends.
            size: the maximum number of jobs in a batch.
            delay: seconds to wait for more jobs.
            silence: seconds after which a handler that sends nothing counts as hung.
            on_batch: called with the seconds that a batch's first job waited, and those that the batch took.
            on_end: called in the event loop when the handler hangs, or its process has died.
        """
        super().__init__(name="batches", daemon=True)
        self.loaded: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._process, self._size, self._delay, self._silence = process, size, delay, silence
        self._on_batch, self._on_end = on_batch, on_end
        self._loop = asyncio.get_running_loop()
        self._jobs: list[Job] = []
        self._came = threading.Condition()
        self.ended = False
        self._timer: asyncio.TimerHandle | None = None
        self.start()

    def put(self, job: Job) -> None:
        """Takes a job; called in the event loop."""
        if self.ended:
            job.settle(NotBegun())
            return
        with self._came:
            self._jobs.append(job)
            if len(self._jobs) in (1, self._size):  # each wake-up of the thread costs CPU
                self._came.notify()

    def run(self) -> None:
        """Does the thread's work; `start` calls it."""
        try:
            self._process.load()
        except BaseException as error:
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(None)
        while not self.ended:
            with self._came:
                if self._came.wait_for(lambda: self._jobs, _LOOK):
                    self._came.wait_for(lambda: len(self._jobs) >= self._size, self._delay)
                if not self._process.alive():  # killed while it was idle
                    self._soon(self._end, [])
                    return
                jobs, self._jobs = self._jobs[: self._size], self._jobs[self._size :]
            jobs = [job for job in jobs if not job.answer.done()]  # without those whose client is gone
            try:
                if jobs:
                    self._answer(jobs)
            except WorkerDied:
                self._soon(self._end, jobs)
                return

    def _answer(self, jobs: list[Job]) -> None:
        began = time.monotonic()
        self._soon(self._watch, jobs)
        replies = self._process.predict(
            [job.request for job in jobs],
            lambda index, part: self._soon(self._deliver_part, jobs, index, part),
        )
        self._on_batch(began - jobs[0].came, time.monotonic() - began)
        answers = [Answer(reply, began - job.came) for reply, job in zip(replies, jobs, strict=True)]
        self._soon(self._deliver, jobs, answers)

    def _soon(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(call, *arguments)

    # The methods below run in the event loop.

    def _watch(self, jobs: list[Job] | None) -> None:
        """Starts to wait for an answer to these jobs, and no longer waits for earlier ones."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._silence, self._hangs, jobs) if jobs else None

    def _deliver_part(self, jobs: list[Job], index: int, part: worker.Reply) -> None:
        self._watch(jobs)
        jobs[index].parts.put_nowait(part)

    def _deliver(self, jobs: list[Job], answers: list[Answer]) -> None:
        if self.ended:  # the handler hung, and was given up
            return
        self._watch(None)
        for job, answer in zip(jobs, answers, strict=True):
            job.settle(answer)

    def _hangs(self, jobs: list[Job]) -> None:
        logging.error("No answer within responseTimeout, %s s.", self._silence)
        self._end(jobs)

    def _end(self, seen: list[Job]) -> None:
        """Ends the work: what the handler saw gets the answer of a dead worker, the rest may be repeated."""
        if self.ended:
            return
        self.ended = True
        self._watch(None)
        self._process.kill()
        self._on_end()
        for job in seen:
            job.settle(Answer(worker.Reply(500, {}, b"", "Worker died."), 0.0))
        with self._came:
            unseen, self._jobs = self._jobs, []
        for job in unseen:
            job.settle(NotBegun())
