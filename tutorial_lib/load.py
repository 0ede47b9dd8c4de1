"""Measures under load how many right answers a second a server gives, and how long each one takes.

>>> from tutorial_lib import load_test
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tutorial_lib.clients.arguments import check_url, mask, quote_path
from tutorial_lib.clients.bodies import Body, decode, encode
from tutorial_lib.clients.tokens import tokens_to_try, was_refused
from tutorial_lib.clients.transport import error_answer
from tutorial_lib.errors import ApiError, ConnectionFailed, NoAnswer, TimedOut, TlsError, TutorialError
from tutorial_lib.extras import extra
from tutorial_lib.report import alike

with extra("load", "load_test", "pandas"):
    import aiohttp
    import numpy as np
    from tqdm.auto import tqdm

if TYPE_CHECKING:
    import pandas as pd

    from tutorial_lib.clients.connect import ConnectedServer
    from tutorial_lib.servers.base import ModelServer

PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99_9_ms": 99.9}
COLUMNS = (
    *("mode", "clients", "rate", "requests_per_s", "texts_per_s", *PERCENTILES),
    *("requests", "errors", "wrong", "outcomes", "client_cpu"),
)
_MAXIMUM_CONNECTIONS = 500  # of an open loop; a process may often open only 1,024 files


def as_input(texts: list[str]) -> object:
    """Returns the body that this course's handler takes.

    >>> as_input(["a text"])
    {'input': ['a text']}
    """
    return {"input": texts}


def load_test(
    server: ModelServer | ConnectedServer | str,
    texts: Sequence[Any],
    *,
    labels: Sequence[Any] | None = None,
    concurrency: int | Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    rate: float | Sequence[float] | None = None,
    duration: float = 10,
    warmup: float = 1,
    texts_per_request: int = 1,
    model: str | None = None,
    headers: Mapping[str, str] | None = None,
    body: Callable[[list[Any]], object] | None = None,
    answer: Callable[[bytes], object] | None = None,
    tolerance: float = 0.001,
    timeout: float = 30,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Puts a server under load, checks every answer, and measures throughput and response times.

    Closed loop (`concurrency`): each client sends its next request when it has its answer. A slow server
    slows its clients down, so this shows the server's highest rate, not how long people wait.
    Open loop (`rate`): requests are sent at a fixed rate. Time counts from when a request was due, so waiting
    in a queue counts too. (Schroeder et al., "Open versus closed: a cautionary tale", NSDI 2006.)

    Args:
        server: a running `TorchServe` or `Container`, what `connect` returns, or the whole URL that requests
            are posted to.
        texts: the samples to send, in this order, again and again. Texts are sent as `as_input` makes them;
            any other sample is the body of a request: bytes, a `Body`, or what JSON can hold.
        labels: the right answer to each sample, as `predict` returns it, or as the only item of a list. None
            asks the server itself first, one request at a time; this finds answers that load changes or
            swaps, but not a model that is wrong.
        concurrency: numbers of clients, one row each.
        rate: requests a second, one row each; `concurrency` is then ignored.
        duration: seconds measured for each row.
        warmup: seconds of the same load before the measurement.
        texts_per_request: how many texts go into one request.
        model: the model's name, where `server` is not a URL; None for the only one that the server has, or
            for "my_model".
        headers: more headers, as {"Authorization": …} for a URL that needs an access token.
        body: makes a request's body from its samples. Bytes are sent unchanged, a str as text/plain, a `Body`
            (which `clients.encode(files=…)` makes from multipart files) with its content type, and anything
            else as JSON.
        answer: takes the labels out of an answer's bytes, for a server that wraps them; None if the answer is
            what `labels` has.
        tolerance: how far a number may be off, relative to the label, if one of the two is a float; batches
            change the last digits of floats. (Near 0, a thousandth of this is allowed.)
        timeout: seconds after which a request counts as an error.
        progress: show a progress bar; None shows it if a person watches (in a terminal).

    Returns:
        one row for each number of clients or rate. requests_per_s, texts_per_s: right answers only.
        p50_ms, p90_ms, p99_ms, p99_9_ms: how long right answers took, in milliseconds. requests: all
        that ended after the warm-up. errors: no answer, or not a 200. wrong: a 200 with other labels.
        outcomes: how many were "right", "wrong", "503", "TimeoutError", … client_cpu: how much of one
        core this client used; near 1.0 the client, and not the server, was the bottleneck. (It spends 0.11 to
        0.15 ms of CPU on a request; TorchServe spends 0.8 ms, with a handler that does nothing.)

    Raises:
        ApiError, NoAnswer: the server does not answer the first request with a 200.
        ValueError: a body can't be sent, there are no samples, not one label for each, a number is not
            positive, or the server has several models and none is "my_model".
    """
    import pandas as pd

    levels = _levels(concurrency, rate)
    _check_arguments(texts, labels, duration=duration, texts_per_request=texts_per_request, timeout=timeout)
    if not 0 <= warmup < float("inf"):
        raise ValueError(f"warmup is {warmup!r}. Give a number of seconds, 0 or more.")
    jobs = _jobs(texts, labels, texts_per_request, body or _body)
    url = check_url(server, "server") if isinstance(server, str) else _url(server, model)
    read = decode if answer is None else lambda content, _: answer(content)
    new_token = None
    own_token = "authorization" in map(str.lower, headers or {})
    if not isinstance(server, str) and server.token_auth and not own_token:
        new_token = partial(server.token, "inference")

    def sender(connections: int) -> _Sender:  # a new one for each row
        return _Sender(url, headers or {}, timeout, connections, read, tolerance, new_token)

    async def run() -> list[dict[str, Any]]:
        async with sender(1) as first:
            await first.record_expected(jobs if labels is None else jobs[:1], keep=labels is None)
        rows = []
        with _bar(len(levels) * (warmup + duration), progress) as bar:
            for level in levels:
                bar.set_description(str(level))
                async with sender(level.clients or _MAXIMUM_CONNECTIONS) as one:
                    rows.append(await _measure(one, level, cycle(jobs), warmup, duration, bar))
        return rows

    frame = pd.DataFrame(_run(run()), columns=[*COLUMNS])
    frame["texts_per_s"] = frame["requests_per_s"] * texts_per_request
    return frame


class _Level(NamedTuple):
    """What one row measures: a number of clients, or a rate."""

    mode: Literal["closed", "open"]
    clients: int | None
    rate: float | None

    def __str__(self) -> str:
        return f"{self.clients} clients" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass
class _Job:
    """A request's body, and the forms of its right answer."""

    body: Body
    answers: list[object]


@dataclass
class _Sender:
    """Sends requests to one address and notes when each was due, when it ended, and how."""

    url: str
    headers: Mapping[str, str]
    timeout: float
    connections: int
    read: Callable[[bytes, str | None], object]
    tolerance: float
    new_token: Callable[[], str] | None
    notes: list[tuple[float, float, str]] = field(default_factory=list)

    async def __aenter__(self) -> _Sender:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.connections),
            headers=self.headers,
            skip_auto_headers=["Content-Type"],
            timeout=aiohttp.ClientTimeout(total=self.timeout),
        )
        self._token = self.new_token() if self.new_token else ""
        self._renewing = threading.Lock()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _post(self, job: _Job) -> tuple[bytes, str | None]:
        """Returns the content and the content type of an answer; raises ApiError if its status is not 200."""
        headers = {}
        if job.body.content_type and "Content-Type" not in self._session.headers:  # the caller's header wins
            headers["Content-Type"] = job.body.content_type
        tokens = tokens_to_try(self._token, self._renew)
        token: str | None = next(tokens)
        while True:
            if token:
                headers["Authorization"] = f"Bearer {token}"
            # A redirect could take the body to another host.
            async with self._session.post(
                self.url, data=job.body.content, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
            if response.status == 200:
                return content, response.headers.get("Content-Type")
            error = error_answer(response.status, content, response.reason or "")
            if not (token and was_refused(error)):
                raise error
            token = await asyncio.to_thread(next, tokens, None)
            if token is None:  # the new ones were refused too
                raise error

    def _renew(self, refused: str) -> str:
        """Returns the server's current access token, asked for once for all clients."""
        with self._renewing:
            if self._token == refused and self.new_token:
                self._token = self.new_token()
            return self._token

    async def send(self, job: _Job, due: float) -> None:
        try:
            outcome = self._check(*await self._post(job), job.answers)
        except (OSError, aiohttp.ClientError) as error:  # TimeoutError is an OSError
            outcome = type(error).__name__
        except ApiError as error:
            outcome = str(error.status)
        except NoAnswer as error:  # the access token could not be renewed
            outcome = error.kind
        self.notes.append((due, time.perf_counter(), outcome))

    async def record_expected(self, jobs: Sequence[_Job], *, keep: bool) -> None:
        """Sends each job once, to check that the server answers; `keep` takes its answer as right."""
        url = mask(self.url)
        for job in jobs:
            try:
                content, content_type = await self._post(job)
            except ApiError as error:
                if 300 <= error.status < 400:
                    advice = "Give load_test the address that this one redirects to"
                    raise ApiError(error.status, "Redirected", advice) from error
                raise
            except TimeoutError as error:
                raise TimedOut(f"No answer from {url} within {self.timeout:g} s.") from error
            except aiohttp.ClientSSLError as error:
                raise TlsError(f"{url} was not asked: {error}") from error
            except (OSError, aiohttp.ClientError) as error:
                raise ConnectionFailed(f"Nothing answers at {url}.") from error
            if keep:
                job.answers = [self.read(content, content_type)]

    def _check(self, content: bytes, content_type: str | None, answers: list[object]) -> str:
        try:
            answer = self.read(content, content_type)
        except (ValueError, LookupError, TypeError):  # an answer of another form
            return "wrong"
        is_right = any(alike(answer, one, self.tolerance, self.tolerance / 1000) for one in answers)
        return "right" if is_right else "wrong"


async def _measure(
    sender: _Sender, level: _Level, jobs: Iterator[_Job], warmup: float, duration: float, bar: tqdm[Any]
) -> dict[str, Any]:
    """Measures one row. The load begins before the window and ends with it; then all answers are awaited."""
    start = time.perf_counter() + warmup
    end = start + duration
    load = asyncio.create_task(
        _open_loop(sender, jobs, level.rate, end) if level.rate else _closed_loop(sender, jobs, level, end)
    )
    await _sleep_until(start, bar)
    cpu = time.process_time()
    await _sleep_until(end, bar)
    cpu = time.process_time() - cpu
    await load
    return {**level._asdict(), "client_cpu": cpu / duration, **_summarize(sender.notes, start, end)}


async def _sleep_until(then: float, bar: tqdm[Any]) -> None:
    while (left := then - time.perf_counter()) > 0:
        step = min(left, 0.5)
        await asyncio.sleep(step)
        bar.update(step)


async def _closed_loop(sender: _Sender, jobs: Iterator[_Job], level: _Level, end: float) -> None:
    async def client() -> None:
        while (now := time.perf_counter()) < end:
            await sender.send(next(jobs), due=now)

    await asyncio.gather(*(client() for _ in range(level.clients or 0)))


async def _open_loop(sender: _Sender, jobs: Iterator[_Job], rate: float, end: float) -> None:
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as waiting:
        for number in count():
            due = begin + number / rate
            if due >= end:
                break
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            waiting.create_task(sender.send(next(jobs), due))


def _summarize(notes: list[tuple[float, float, str]], start: float, end: float) -> dict[str, Any]:
    """Returns a row: throughput of what ended in the window, errors and times also of what ended later."""
    ended = [note for note in notes if note[1] >= start]
    outcomes = Counter(outcome for _, _, outcome in ended)
    right = [(due, done) for due, done, outcome in ended if outcome == "right"]
    waits = [1000 * (done - due) for due, done in right] or [np.nan]
    return {
        "requests_per_s": sum(done <= end for _, done in right) / (end - start),
        **{name: float(np.percentile(waits, percent)) for name, percent in PERCENTILES.items()},
        "requests": len(ended),
        "errors": len(ended) - outcomes["right"] - outcomes["wrong"],
        "wrong": outcomes["wrong"],
        "outcomes": dict(outcomes),
    }


def _body(samples: list[Any]) -> object:
    """Returns the body of a request: texts as `as_input` makes it, any other sample by itself."""
    if all(isinstance(sample, str) for sample in samples):
        return as_input(samples)
    if len(samples) > 1:
        raise ValueError(
            "A sample that is no text is a request by itself. Leave texts_per_request= out, or "
            "give body=, which puts several samples into one request."
        )
    return samples[0]


def _jobs(
    texts: Sequence[Any],
    labels: Sequence[Any] | None,
    size: int,
    body: Callable[[list[Any]], object],
) -> list[_Job]:
    """Returns the requests, ready to be sent, so that encoding them is not measured."""
    labels = getattr(labels, "tolist", lambda: labels)()  # of an array too
    jobs = []
    for start in range(0, len(texts), size):
        some = [i % len(texts) for i in range(start, start + size)]
        right = [labels[i] for i in some] if labels is not None else []
        made = body([texts[i] for i in some])
        answers = [right, *right] if size == 1 else [right]
        jobs.append(_Job(made if isinstance(made, Body) else encode(made), answers))
    return jobs


def _url(server: ModelServer | ConnectedServer, model: str | None) -> str:
    if model is None:
        management = None
        with contextlib.suppress(AttributeError, TutorialError):  # a connection may have none
            management = server.management
        names = [entry["modelName"] for entry in management.list_models()] if management else []
        model = names[0] if len(names) == 1 else "my_model"
        if names and model not in names:
            raise ValueError(f"This server has the models {', '.join(names)}. Give one of them as model=.")
    return f"{server.inference_address}/predictions/{quote_path('model', model)}"


def _levels(concurrency: int | Sequence[int], rate: float | Sequence[float] | None) -> list[_Level]:
    if rate is not None:
        return [_Level("open", None, float(one)) for one in _numbers("rate", rate, Real)]
    return [_Level("closed", one, None) for one in _numbers("concurrency", concurrency, Integral)]


def _numbers(name: str, value: Any, kind: Any) -> list[Any]:
    """Returns one number or several as a list; each must be finite and above 0."""
    numbers = list(value) if isinstance(value, Iterable) else [value]
    if not numbers or not all(isinstance(one, kind) and 0 < one < float("inf") for one in numbers):
        whole = "whole number" if kind is Integral else "number"
        raise ValueError(f"{name} is {value!r:.100}. Give a {whole} above 0, or a list of such numbers.")
    return numbers


def _check_arguments(texts: Sequence[Any], labels: Sequence[Any] | None, **above_zero: float) -> None:
    if isinstance(texts, str | bytes) or len(texts) == 0:
        raise ValueError('There is nothing to send: give a list of texts, as ["great day"].')
    if labels is not None and len(labels) != len(texts):
        raise ValueError(f"{len(texts)} texts have {len(labels)} labels. Give one for each text, in order.")
    for name, value in above_zero.items():
        _numbers(name, value, Integral if name == "texts_per_request" else Real)


def _bar(seconds: float, progress: bool | None) -> tqdm[Any]:
    disable = not (sys.stderr.isatty() if progress is None else progress)
    form = "{desc} |{bar}| {n:.0f} of {total:.0f} s"
    return tqdm(total=seconds, disable=disable, leave=False, bar_format=form)


def _run(measurement: Coroutine[Any, Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Runs a coroutine in a thread: in a notebook, this one has an event loop that is busy already."""
    with contextlib.closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as pool:
        task = loop.create_task(measurement)
        try:
            return pool.submit(loop.run_until_complete, task).result()
        except BaseException:  # after a Ctrl-C, the measurement must not go on in the background
            loop.call_soon_threadsafe(task.cancel)
            raise
