"""A handler in a process of its own: what comes back, what it survives, and that it is never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import handlers
from tests.conftest import eventually, gone
from tutorial_lib.worker import contract as worker
from tutorial_lib.worker.process import LoadFailed, WorkerDied, WorkerProcess

# What a request asks for is what the handler does.
HANDLER = """
import os, sys, threading, time
from pathlib import Path
print("imported")

class Handler:
    def initialize(self, context):
        context.metrics.add_counter("Loads", 1)

    def handle(self, data, context):
        match bytes(data[0]["body"]).decode():
            case "noise":
                print("x" * 100_000)
                os.write(1, b"y" * 100_000)
                return ["quiet"]
            case "read":
                return [sys.stdin.read() or "nothing"]
            case "child":
                return [os.popen("echo from a child").read()]
            case "count":
                context.metrics.add_counter("Counted", len(data))
                return [str(len(data))] * len(data)
            case "error":
                raise ValueError("what the handler raises")
            case "exit":
                sys.exit(3)
            case "segfault":
                import ctypes
                ctypes.string_at(0)
            case "thread":
                threading.Thread(target=time.sleep, args=(600,)).start()
                sys.exit(3)
            case "hang":
                time.sleep(600)
            case body:
                return [body[::-1]]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a process with a handler; at the end it is not left."""
    with contextlib.ExitStack() as started:

        def make(handler: str = HANDLER, **options: Any) -> WorkerProcess:
            options = {"on_metric": lambda metric: None} | options
            process = WorkerProcess(handlers.laid_out(tmp_path, "archive", handler), "my_model", **options)
            started.callback(process.kill)
            process.load()
            return process

        yield make


def ask(process: WorkerProcess, body: str | bytes, count: int = 1) -> list[worker.Reply]:
    content = body.encode() if isinstance(body, str) else body
    part = worker.parameter("body", "application/octet-stream", content)
    return process.predict([worker.request(str(number), [part]) for number in range(count)])


def test_it_answers_as_a_worker_in_this_process_does(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    process = start(batch_size=4, gpu_id=None)
    there = [ask(process, body) for body in ("abc", "error", "count")]
    folder = tmp_path / "archive"
    with worker.in_model_folder(folder):
        service = worker.load_service(folder, "my_model", batch_size=4)
        bodies = [
            worker.parameter("body", "application/octet-stream", b) for b in (b"abc", b"error", b"count")
        ]
        here = [worker.predict(service, [worker.request("0", [body])]) for body in bodies]
    assert there == here
    assert there[0][0].body == b"cba" and there[1][0].error == "Prediction failed"


def test_a_large_body_and_a_batch_come_through(start: Callable[..., WorkerProcess]) -> None:
    process = start(batch_size=8)
    large = b"ab" * 5_000_000
    assert ask(process, large)[0].body == large[::-1]
    assert [reply.body for reply in ask(process, "count", count=8)] == [b"8"] * 8


def test_a_handler_may_print_read_and_start_programs(start: Callable[..., WorkerProcess]) -> None:
    process = start()
    assert [ask(process, body)[0].body for body in ("noise", "read", "child", "abc")] == [
        b"quiet",
        b"nothing",
        b"from a child\n",
        b"cba",
    ]


def test_metrics_come_with_the_answer_that_they_belong_to(start: Callable[..., WorkerProcess]) -> None:
    counted: list[tuple[str, float]] = []
    process = start(on_metric=lambda metric: counted.append((metric.name, metric.value)), batch_size=3)
    assert ("Loads", 1.0) in counted and ("Counted", 3.0) not in counted
    ask(process, "count", count=3)
    assert ("Counted", 3.0) in counted


def test_the_parts_of_a_stream_come_before_its_end(start: Callable[..., WorkerProcess]) -> None:
    process = start(handlers.STREAMING, batch_size=2)
    parts: list[tuple[int, bytes]] = []
    body = worker.parameter("body", "application/json", b'{"parts": ["a", "b"]}')
    replies = process.predict(
        [worker.request("0", [body]), worker.request("1", [body])],
        lambda index, part: parts.append((index, part.body)),
    )
    assert parts == [(0, b"a"), (1, b"a"), (0, b"b"), (1, b"b")]
    assert [(reply.chunks, reply.body) for reply in replies] == [((b"a", b"b"), b"abend")] * 2


@pytest.mark.parametrize("fault", ["exit", "segfault", "thread"])
def test_what_ends_a_worker_ends_the_process_and_not_this_one(
    start: Callable[..., WorkerProcess], fault: str
) -> None:
    process = start()
    with pytest.raises(WorkerDied):
        ask(process, fault)
    assert eventually(lambda: not process.alive(), 10)
    with pytest.raises(WorkerDied):
        ask(process, "abc")


@pytest.mark.parametrize(
    ("handler", "error", "said"),
    [
        ("import no_such_module", LoadFailed, "No module named 'no_such_module'"),
        ("def handle(data, context)", LoadFailed, "SyntaxError"),
        (HANDLER.replace('print("imported")', "sys.exit(3)"), LoadFailed, "SystemExit"),
        (HANDLER.replace('print("imported")', "os._exit(3)"), WorkerDied, "ended before it answered"),
        (
            HANDLER.replace('context.metrics.add_counter("Loads", 1)', "raise OSError('no weights')"),
            LoadFailed,
            "no weights",
        ),
    ],
)
def test_a_handler_that_can_not_be_loaded_says_why(
    start: Callable[..., WorkerProcess], handler: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        start(handler)


@pytest.mark.parametrize("last", ["abc", "hang"])
def test_a_killed_owner_leaves_nothing(tmp_path: Path, last: str) -> None:
    script = (
        "import sys; from pathlib import Path; from tutorial_lib.worker import contract as worker\n"
        "from tutorial_lib.worker.process import WorkerProcess\n"
        "process = WorkerProcess(Path(sys.argv[1]), 'm', on_metric=lambda metric: None); process.load()\n"
        "print(process.pid, flush=True)\n"
        "part = worker.parameter('body', 'application/octet-stream', sys.argv[2].encode())\n"
        "process.predict([worker.request('0', [part])]); print('answered', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(handlers.laid_out(tmp_path, "archive", HANDLER)), last],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        process = psutil.Process(int(owner.stdout.readline()))
        if last == "abc":
            assert owner.stdout.readline() == "answered\n"
        os.kill(owner.pid, signal.SIGKILL)
    assert eventually(lambda: gone([process]), 30)
