"""Clients: some send requests again and again while a cell changes the server, others all at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from course.waiting import wait_until

S = TypeVar("S")
T = TypeVar("T")


class Asking(Generic[T]):
    """Calls a function in threads, again and again, until the `with` block ends.

    Args:
        ask: the function.
        clients: how many threads call it.
        pause: seconds that each thread waits after a call.

    Attributes:
        answers: what the function returned, in order.

    Raises:
        Exception: at the block's end, the error that ended the calls early.

    >>> with Asking(lambda: "yes") as client:
    ...     client.wait_for(3)
    >>> set(client.answers)
    {'yes'}
    """

    def __init__(self, ask: Callable[[], T], *, clients: int = 1, pause: float = 0) -> None:
        self.answers: list[T] = []
        self._ask, self._pause = ask, pause
        self._error: Exception | None = None
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def wait_for(self, count: int) -> None:
        """Waits until `count` more answers have come, or a call failed."""
        wanted = len(self.answers) + count
        wait_until(lambda: self._error or len(self.answers) >= wanted)

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                self.answers.append(self._ask())
                self._enough.wait(self._pause)
        except Exception as error:
            self._error = self._error or error

    def __enter__(self) -> Asking[T]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()
        if self._error and error is None:
            raise self._error


def together(call: Callable[[S], T], items: Iterable[S], clients: int = 8) -> list[T]:
    """Calls a function for each item, from several threads at once; returns results in the items' order.

    >>> together(str.upper, ["a", "b"])
    ['A', 'B']
    """
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(call, items))


def paced(call: Callable[[S], object], items: Sequence[S], gap: float) -> list[tuple[float, float]]:
    """Calls a function for each item, `gap` seconds after the last one, whether that was answered or not.

    Returns:
        for each item when it was sent and when it was answered, in seconds since 1970.

    >>> len(paced(str.upper, ["a", "b"], gap=0.05))
    2
    """
    first = time.time() + 0.2  # until then all threads have started

    def one(number: int) -> tuple[float, float]:
        time.sleep(max(0.0, first + number * gap - time.time()))
        sent = time.time()
        call(items[number])
        return sent, time.time()

    return sorted(together(one, range(len(items)), clients=len(items)))


def in_background(call: Callable[..., T], *args: object, **options: object) -> Future[T]:
    """Calls a function in a thread of its own; `result()` of the returned future waits for the result.

    >>> in_background(str.upper, "a").result()
    'A'
    """
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call, *args, **options)
    pool.shutdown(wait=False)  # the thread ends with the call
    return future
