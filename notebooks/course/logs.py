"""Events in TorchServe's logs: which requests a worker was given, and when it answered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Batch(NamedTuple):
    """A batch that a worker answered; times in seconds since 1970."""

    requests: int
    began: float
    ended: float


def batches(log: Path, line: int = 0) -> list[Batch]:
    """The batches of a console.log, from this line on, in the order of their answers. One worker's only."""
    found, began, requests = [], 0.0, 0
    for text in log.read_text().splitlines()[line:]:
        if match := re.search(r"Flushing req.cmd PREDICT .* at: (\d+)", text):
            began, requests = int(match[1]) / 1000, 0
        elif "Sending response for jobId" in text:
            requests += 1
        elif (match := re.search(r"Backend response time: (\d+)", text)) and began:
            found.append(Batch(requests, began, began + int(match[1]) / 1000))
            began = 0.0
    return found


def batches_given(log: Path, worker: str = "") -> int:
    """How many batches workers have been given so far, by a ts_log.log.

    Args:
        log: the server's ts_log.log.
        worker: only lines with this part of a worker's name, such as "-slow_1.0 ".
    """
    lines = log.read_text().splitlines()
    # TorchServe logs each line twice.
    return len({line for line in lines if worker in line and "Flushing req.cmd PREDICT" in line})
