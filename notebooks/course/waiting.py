"""Waits for what takes an unknown time, up to a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def changes(look: Callable[[], T], last: T, seconds: float = 60) -> list[tuple[float, T]]:
    """Looks every 0.02 s until it sees `last`; returns what it saw, with the seconds until each change.

    Raises:
        TimeoutError: `last` was not seen within the limit; the message has what was seen.

    >>> colors = iter(["red", "red", "green"])
    >>> [color for _, color in changes(lambda: next(colors), "green")]
    ['red', 'green']
    """
    began = time.monotonic()
    seen: list[tuple[float, T]] = []
    while not seen or seen[-1][1] != last:
        if time.monotonic() > began + seconds:
            raise TimeoutError(f"{last!r} was not seen within {seconds} seconds, only {seen}.")
        now = look()
        if not seen or now != seen[-1][1]:
            seen.append((time.monotonic() - began, now))
        time.sleep(0.02)
    return seen


def wait_until(condition: Callable[[], T], seconds: float = 60, otherwise: Callable[[], object] = str) -> T:
    """Calls `condition` every 0.1 s until it returns something true, and returns this result.

    Args:
        condition: what to wait for; an exception from it ends the waiting.
        seconds: the limit.
        otherwise: returns the reason for the error message, such as the end of a log.

    Raises:
        TimeoutError: the condition was not true within the limit.

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
