"""Waits for what takes an unknown time, up to a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 60, otherwise: Callable[[], object] = str) -> T:
    """Calls `condition` every 0.1 s until it gives something true, and returns that.

    Args:
        condition: what to wait for; an exception from it ends the waiting.
        seconds: the limit.
        otherwise: gives the reason for the error message, such as the end of a log.

    Raises:
        TimeoutError: it was not true within the limit.

    >>> numbers = iter([0, 0, 3])
    >>> wait_until(lambda: next(numbers))
    3
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"It did not come true within {seconds} seconds. {otherwise()}")
        time.sleep(0.1)
    return result
