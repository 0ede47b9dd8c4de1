"""Clients: one that asks again and again while a cell does something to its server, and many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from course.waiting import wait_until

S = TypeVar("S")
T = TypeVar("T")


class Asking(Generic[T]):
    """Calls a function in a thread, again and again, until the `with` block ends.

    Attributes:
        answers: what it returned, in order.

    Raises:
        Exception: at the block's end, the error that ended the asking early.

    >>> with Asking(lambda: "yes") as client:
    ...     client.wait_for(3)
    >>> set(client.answers)
    {'yes'}
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        self.answers: list[T] = []
        self._ask = ask
        self._error: Exception | None = None
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def wait_for(self, count: int) -> None:
        """Waits until `count` more answers have come, or the asking failed."""
        wanted = len(self.answers) + count
        wait_until(lambda: self._error or len(self.answers) >= wanted)

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                self.answers.append(self._ask())
        except Exception as error:
            self._error = error

    def __enter__(self) -> Asking[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough.set()
        self._thread.join()
        if self._error and error is None:
            raise self._error


def together(call: Callable[[S], T], items: Iterable[S], clients: int = 8) -> list[T]:
    """Calls a function for each item, from several threads at once; results in the items' order.

    >>> together(str.upper, ["a", "b"])
    ['A', 'B']
    """
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(call, items))
