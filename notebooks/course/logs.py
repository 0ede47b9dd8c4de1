"""Events in TorchServe's logs: which requests a worker was given, and when it answered."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from course.waiting import wait_until
from tutorial_lib import first_traceback

_GIVEN = re.compile(r"Flushing req.cmd PREDICT .* at: (\d+)")


class Batch(NamedTuple):
    """A batch that a worker answered; times in seconds since 1970."""

    requests: int
    began: float
    ended: float


def batches(log: Path, since: float = 0) -> list[Batch]:
    """Returns the batches of one worker's console.log, in the order of their answers.

    Args:
        log: the server's console.log.
        since: batches that began earlier are left out; in seconds since 1970.
    """
    found, began, requests = [], 0.0, 0
    for text in log.read_text().splitlines():
        if match := _GIVEN.search(text):
            began, requests = int(match[1]) / 1000, 0
        elif "Sending response for jobId" in text:
            requests += 1
        elif (match := re.search(r"Backend response time: (\d+)", text)) and began:
            found.append(Batch(requests, began, began + int(match[1]) / 1000))
            began = 0.0
    return [batch for batch in found if _is_since(since, batch.began)]


def batches_given(log: Path, worker: str = "", since: float = 0) -> int:
    """Returns how many batches workers have been given so far, according to a ts_log.log.

    Args:
        log: the server's ts_log.log.
        worker: counts only lines with this part of a worker's name, such as "-slow_1.0 ".
        since: batches that were given earlier are left out; in seconds since 1970.
    """
    found = ((line, _GIVEN.search(line)) for line in log.read_text().splitlines() if worker in line)
    # TorchServe logs each line twice.
    return len({line for line, match in found if match and _is_since(since, int(match[1]) / 1000)})


def _is_since(since: float, logged: float) -> bool:
    return logged > since - 0.001  # TorchServe logs whole milliseconds


class News:
    """What is new in a server's logs, for the drills of chapter 13."""

    def __init__(self, log_dir: Path) -> None:
        self._seen = {log_dir / name: 0 for name in ("ts_log.log", "model_log.log")}

    def show(self, *words: str, until: str = "") -> None:
        """Prints new lines that have one of these words, then the last lines of the first exception.

        New lines came since the last call. Lines of ts_log.log are the server's own; lines of model_log.log
        are what the workers print. Where a traceback is a chain of exceptions, the first one is the cause.

        Args:
            words: in each line that is printed.
            until: waits until a new line has this text, since lines come a moment after the answer; for 10 s
                at most, since TorchServe may lose the last lines of a worker that dies.
        """
        with suppress(TimeoutError):
            wait_until(lambda: any(until in log for log in self._new().values()), 10)
        time.sleep(0.5)  # for the lines around it
        new = self._new()
        for log in self._seen:
            self._seen[log] += len(new[log.name])
        for name, text in new.items():
            found = [line for line in text.splitlines() if any(word in line for word in words)]
            if name == "ts_log.log":
                found = [line for line in found if "MODEL_LOG" not in line and "ACCESS_LOG" not in line]
            for line in dict.fromkeys(line.rpartition(" - ")[2] for line in found):
                print(f"{name}: {line[:130]}")
        traceback = first_traceback(new["model_log.log"]) or "(no traceback)"
        for line in [line for line in traceback.split("\n\n")[0].splitlines() if line.strip(" ~^")][-3:]:
            print("model_log.log:", re.sub(r"(/[\w.-]+)+/", "…/", line))

    def _new(self) -> dict[str, str]:
        """Returns what each log has that was not shown yet."""
        return {log.name: log.read_text()[seen:] if log.exists() else "" for log, seen in self._seen.items()}
