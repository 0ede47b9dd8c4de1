"""The thread of a Ray replica in which the handler runs, without Ray."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tutorial_lib import worker
from tutorial_lib.archive import lay_out
from tutorial_lib.ray_app.batches import Answer, HandlerThread, Job, NotBegun

# Answers each request with the numbers of its batch; "wait" holds a batch until that file is there.
HANDLER = """
import os, time
class Handler:
    def initialize(self, context):
        pass
    def handle(self, data, context):
        numbers = [one["body"]["number"] for one in data]
        for one in data:
            if gate := one["body"].get("wait"):
                open(gate + ".begun", "w").close()
                while not os.path.exists(gate):
                    time.sleep(0.01)
            if one["body"].get("exit"):
                raise SystemExit
        return [numbers] * len(data)
"""


@pytest.fixture
def thread(tmp_path: Path) -> Iterator[Callable[..., HandlerThread]]:
    """Makes a thread with the handler above."""
    (tmp_path / "handler.py").write_text(HANDLER)
    folder = tmp_path / "archive"
    folder.mkdir()
    lay_out(folder, handler=tmp_path / "handler.py")

    def make(**options: Any) -> HandlerThread:
        load = functools.partial(worker.load_service, folder, "my_model", batch_size=8)
        settings: dict[str, Any] = {"size": 4, "delay": 0.0, "silence": 30.0}
        calls: dict[str, Any] = {"on_batch": lambda *times: None, "on_end": lambda: None}
        made = HandlerThread(load, **(settings | calls | options))
        made.service.result(30)
        return made

    with worker.in_model_folder(folder):
        yield make


async def begun(gate: Path) -> None:
    while not Path(f"{gate}.begun").exists():
        await asyncio.sleep(0.01)


def put(thread: HandlerThread, number: int, **body: Any) -> Job:
    job = Job(
        worker.request(
            str(number), [{"name": "body", "contentType": "", "value": {"number": number, **body}}]
        )
    )
    thread.put(job)
    return job


def batches(answers: list[Answer]) -> list[list[int]]:
    """The batch of each answer, once for each batch."""
    found = [json.loads(answer.reply.body) for answer in answers]
    return [one for number, one in enumerate(found) if number == 0 or one != found[number - 1]]


def test_what_waits_while_the_handler_is_busy_is_one_batch(
    thread: Callable[..., HandlerThread], tmp_path: Path
) -> None:
    """serve.batch would have made nine batches of one: no other came within the delay."""

    async def ask() -> list[Answer]:
        one, gate = thread(), tmp_path / "gate"
        jobs = [put(one, 0, wait=str(gate))]
        await begun(gate)
        for number in range(1, 10):
            jobs.append(put(one, number))
            await asyncio.sleep(0.01)
        gate.touch()
        return await asyncio.gather(*(job.answer for job in jobs))

    answers = asyncio.run(ask())
    assert batches(answers) == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert all(answer.queued > 0 for answer in answers)


def test_a_batch_is_awaited_no_longer_than_the_delay(thread: Callable[..., HandlerThread]) -> None:
    times: list[tuple[float, float]] = []

    async def ask() -> list[Answer]:
        one = thread(delay=0.5, on_batch=lambda *pair: times.append(pair))
        jobs = [put(one, number) for number in range(4)]  # full at once
        jobs += [put(one, 4), put(one, 5)]
        return await asyncio.gather(*(job.answer for job in jobs))

    assert batches(asyncio.run(ask())) == [[0, 1, 2, 3], [4, 5]]
    (full, _), (half, _) = times
    assert full < 0.4 and 0.4 < half < 5


def test_a_client_who_left_is_not_computed(thread: Callable[..., HandlerThread], tmp_path: Path) -> None:
    async def ask() -> list[Answer]:
        one, gate = thread(), tmp_path / "gate"
        first = put(one, 0, wait=str(gate))
        await begun(gate)
        left, stays = put(one, 1), put(one, 2)
        left.answer.cancel()
        gate.touch()
        return [await first.answer, await stays.answer]

    assert batches(asyncio.run(ask())) == [[0], [2]]


@pytest.mark.parametrize("fault", ["wait", "exit"])
def test_a_fault_ends_the_thread_and_what_it_has_not_seen_may_be_repeated(
    thread: Callable[..., HandlerThread], tmp_path: Path, fault: str
) -> None:
    ended = threading.Event()

    async def ask() -> None:
        one = thread(silence=0.5, on_end=ended.set, size=1)
        bad, behind = put(one, 0, **{fault: str(tmp_path / "never")}), put(one, 1)
        answer = await bad.answer
        assert (answer.reply.status, answer.reply.error) == (500, "Worker died.")
        with pytest.raises(NotBegun):
            await behind.answer
        with pytest.raises(NotBegun):
            await put(one, 2).answer

    asyncio.run(ask())
    assert ended.is_set()


def test_a_handler_that_can_not_be_loaded_says_why(tmp_path: Path) -> None:
    def load() -> Any:
        raise ImportError("no such module")

    def nothing(*_: Any) -> None:
        pass

    thread = HandlerThread(load, size=1, delay=0, silence=1, on_batch=nothing, on_end=nothing)
    with pytest.raises(ImportError, match="no such module"):
        thread.service.result(10)
