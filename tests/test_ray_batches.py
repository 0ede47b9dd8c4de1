"""The batches of a Ray replica, with a real handler in its process, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.handlers import laid_out
from tutorial_lib.ray_app.batches import Answer, Batches, Job, NotBegun
from tutorial_lib.worker import contract as worker
from tutorial_lib.worker.process import LoadFailed, WorkerProcess

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
def make(tmp_path: Path) -> Iterator[Callable[..., Batches]]:
    """Makes the batches of a process with the handler above; called in the event loop."""
    folder = laid_out(tmp_path, "archive", HANDLER)
    with contextlib.ExitStack() as processes:

        def made(process: WorkerProcess | None = None, **options: Any) -> Batches:
            process = process or WorkerProcess(folder, "my_model", on_metric=print, batch_size=8)
            processes.callback(process.kill)
            settings: dict[str, Any] = {"size": 4, "delay": 0.0, "silence": 30.0}
            calls: dict[str, Any] = {"on_batch": lambda *times: None, "on_end": lambda: None}
            batches = Batches(process, **(settings | calls | options))
            batches.loaded.result(30)
            return batches

        yield made


async def begun(gate: Path) -> None:
    while not Path(f"{gate}.begun").exists():
        await asyncio.sleep(0.01)


def put(batches: Batches, number: int, **body: Any) -> Job:
    job = Job(
        worker.request(
            str(number), [{"name": "body", "contentType": "", "value": {"number": number, **body}}]
        )
    )
    batches.put(job)
    return job


def numbers(answers: list[Answer]) -> list[list[int]]:
    """The batch of each answer, once for each batch."""
    found = [json.loads(answer.reply.body) for answer in answers]
    return [one for number, one in enumerate(found) if number == 0 or one != found[number - 1]]


def test_what_waits_while_the_handler_is_busy_is_one_batch(
    make: Callable[..., Batches], tmp_path: Path
) -> None:
    """serve.batch would have made nine batches of one: no other came within the delay."""

    async def ask() -> list[Answer]:
        one, gate = make(), tmp_path / "gate"
        jobs = [put(one, 0, wait=str(gate))]
        await begun(gate)
        for number in range(1, 10):
            jobs.append(put(one, number))
            await asyncio.sleep(0.01)
        gate.touch()
        return await asyncio.gather(*(job.answer for job in jobs))

    answers = asyncio.run(ask())
    assert numbers(answers) == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert all(answer.queued > 0 for answer in answers)


def test_a_batch_is_awaited_no_longer_than_the_delay(make: Callable[..., Batches]) -> None:
    times: list[tuple[float, float]] = []

    async def ask() -> list[Answer]:
        one = make(delay=0.5, on_batch=lambda *pair: times.append(pair))
        jobs = [put(one, number) for number in range(4)]  # full at once
        jobs += [put(one, 4), put(one, 5)]
        return await asyncio.gather(*(job.answer for job in jobs))

    assert numbers(asyncio.run(ask())) == [[0, 1, 2, 3], [4, 5]]
    (full, _), (half, _) = times
    assert full < 0.4 and 0.4 < half < 5


def test_a_client_who_left_is_not_computed(make: Callable[..., Batches], tmp_path: Path) -> None:
    async def ask() -> list[Answer]:
        one, gate = make(), tmp_path / "gate"
        first = put(one, 0, wait=str(gate))
        await begun(gate)
        left, stays = put(one, 1), put(one, 2)
        left.answer.cancel()
        gate.touch()
        return [await first.answer, await stays.answer]

    assert numbers(asyncio.run(ask())) == [[0], [2]]


@pytest.mark.parametrize("fault", ["wait", "exit"])
def test_a_fault_ends_the_process_and_what_it_has_not_seen_may_be_repeated(
    make: Callable[..., Batches], tmp_path: Path, fault: str
) -> None:
    ends: list[str] = []

    async def ask() -> None:
        one = make(silence=0.5, on_end=lambda: ends.append(fault), size=1)
        bad, behind = put(one, 0, **{fault: str(tmp_path / "never")}), put(one, 1)
        answer = await bad.answer
        assert (answer.reply.status, answer.reply.error) == (500, "Worker died.")
        with pytest.raises(NotBegun):
            await behind.answer
        with pytest.raises(NotBegun):
            await put(one, 2).answer
        await asyncio.to_thread(one.join, 30)

    asyncio.run(ask())
    assert ends == [fault]  # a hung process is killed, and its death is no second end


@pytest.mark.parametrize("asked", [True, False])
def test_a_process_that_is_killed_while_idle_is_missed(
    make: Callable[..., Batches], tmp_path: Path, asked: bool
) -> None:
    async def kill() -> None:
        process = WorkerProcess(tmp_path / "archive", "my_model", on_metric=print)
        ended = asyncio.Event()
        one = make(process, on_end=ended.set)
        process.kill()
        if asked:  # nobody knows yet: the handler can't have seen it
            with pytest.raises(NotBegun):
                await put(one, 0).answer
        await asyncio.wait_for(ended.wait(), 30)

    asyncio.run(kill())


def test_a_handler_that_can_not_be_loaded_says_why(make: Callable[..., Batches], tmp_path: Path) -> None:
    (tmp_path / "archive" / "handler.py").write_text("import no_such_module")

    async def load() -> None:
        with pytest.raises(LoadFailed, match="No module named 'no_such_module'"):
            make()

    asyncio.run(load())
