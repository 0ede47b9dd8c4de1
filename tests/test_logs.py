"""What the library reads out of TorchServe's logs."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib import TorchServe, first_traceback, parse_context
from tutorial_lib.servers.logs import wait_for_traceback


def line(text: str, worker: int = 9000, stream: str = "stdout") -> str:
    return f"2026-01-31T10:00:00,123 [INFO ] W-{worker}-my_model_1.0-{stream} MODEL_LOG - {text}\n"


def test_the_context_of_a_real_server(server: TorchServe) -> None:
    context = parse_context(server.wait_for_log("Manifest: "))
    assert context.properties["gpu_id"] is None and context.properties["batch_size"] == 32
    assert context.manifest["model"]["modelName"] == "BERTweetSentimentAnalysis"
    assert context.manifest["model"]["configFile"] == "model-config.yaml"


def test_the_last_context_wins() -> None:
    log = line("Properties: {'batch_size': 1}") + line("Manifest: {'runtime': 'python'}")
    log += line("Properties: {'batch_size': 8}")
    assert parse_context(log).properties == {"batch_size": 8}


def test_a_log_without_a_context_is_said(tmp_path: Path) -> None:
    (tmp_path / "model_log.log").write_text(line("hello"))
    with pytest.raises(ValueError, match=r"model_log\.log"):
        parse_context(tmp_path / "model_log.log")


def test_the_first_traceback_without_prefixes_and_other_workers() -> None:
    head = "Traceback (most recent call last):"
    log = line(head, 9000) + line("Loading model", 9001) + line('  File "handler.py", line 3', 9000)
    log += line(head, 9001) + line("    import nothing_such", 9000)
    log += line("ModuleNotFoundError: No module named 'nothing_such'", 9000) + line("again", 9000)
    log += line(head, 9000) + line("  later", 9000) + line("KeyError: 'hides it'", 9000)
    assert first_traceback(log) == (
        f'{head}\n  File "handler.py", line 3\n    import nothing_such\n'
        "ModuleNotFoundError: No module named 'nothing_such'"
    )


def test_what_torchserve_says_of_the_worker_in_between_is_left_out() -> None:
    """In the console log its own lines come between those of the worker."""
    text = 'Traceback (most recent call last):\n  File "handler.py", line 3\nKeyError: 0'
    first, *rest = (line(part) for part in text.split("\n"))
    own = "2026-01-31T10:00:00,123 [DEBUG] W-9000-my_model_1.0 org.pytorch.serve.wlm.WorkerThread - System"
    own += " state is : WORKER_STARTED\n"
    assert first_traceback(own.join(["", first, *rest, ""])) == text


def test_a_traceback_that_comes_slowly_is_waited_for() -> None:
    text = "Traceback (most recent call last):\n  File a\nKeyError: 'x'"
    reads = iter([text[:34], text[:43], text[:43], text[:43], text, text])
    assert wait_for_traceback(lambda: next(reads)) == text


DEATH = line("Backend worker monitoring thread interrupted or backend worker process died.")
TRACEBACK = "".join(map(line, ("Traceback (most recent call last):", "  File a", "KeyError: 'x'")))


@pytest.mark.parametrize(
    ("reads", "found"),
    [
        ([DEATH, DEATH, DEATH * 2 + TRACEBACK], "KeyError: 'x'"),
        ([DEATH, DEATH, DEATH * 2], "(no traceback)"),
    ],
)
def test_lines_that_torchserve_lost_come_from_the_next_worker(reads: list[str], found: str) -> None:
    """A worker that dies soon after its start may be gone before TorchServe has read its last lines."""
    left = itertools.chain(reads, itertools.repeat(reads[-1]))
    began = time.monotonic()
    assert found in wait_for_traceback(lambda: next(left))
    assert time.monotonic() - began < 5  # far from the 10 s that it may take


def test_a_chained_traceback_is_whole() -> None:
    text = (
        "Traceback (most recent call last):\n  File a\nKeyError: 'x'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n  File b\nRuntimeError: no x"
    )
    assert first_traceback("".join(line(part) for part in text.split("\n")) + line("bye")) == text


def test_no_traceback_is_none() -> None:
    assert first_traceback(line("all is well")) is None
    assert first_traceback("") is None


@given(st.text())
def test_any_text_is_read_without_an_exception(log: str) -> None:
    found = first_traceback(log)
    assert found is None or found.startswith("Traceback (most recent call last)")
