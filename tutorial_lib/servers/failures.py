"""Finds in a server's log why a prediction failed, and adds it to the error: the log goes with the server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests

from tutorial_lib.clients.inference import InferenceClient
from tutorial_lib.errors import AnswerBrokeOff, ApiError, NoAnswer, TimedOut, hint_for_log
from tutorial_lib.servers.exit_status import without_exception
from tutorial_lib.servers.logs import cause_of_death, exception_line, too_slow, tracebacks

Read = Callable[[], str]  # returns the log's lines since a moment
Limit = Callable[[str, str], int | None]  # returns a setting's value for a model; None if it is unknown

_LONGEST_WAIT = 3.0  # seconds for log lines, which are written a moment after the answer
_ALL_READ = "Stopped Scanner - "  # TorchServe has read all that a worker's process wrote to one stream
# A message of TorchServe, and how the line begins that a worker logs with it, before the traceback.
_LOGGED = {
    "Prediction failed": ("Invoking custom service failed.",),
    "Out of resources": ("CUDA out of memory", "System out of memory"),
    "Unsupported model output": ("Unable to serialize model output",),
}


class ExplainingClient(InferenceClient):
    """A client of a server whose log can be read: the error of a prediction has the traceback.

    Attributes:
        log_from_now: returns a function that reads what the log has from now on.
        limit: returns the value of a setting for a model.
    """

    log_from_now: Callable[[], Read]
    limit: Limit

    def _predict(self, model: str, *args: Any, **kwargs: Any) -> requests.Response:
        read = self.log_from_now()
        try:
            return super()._predict(model, *args, **kwargs)
        except (ApiError, NoAnswer) as error:
            explain(error, model, read, self.limit)
            raise

    def predict_stream(self, model: str, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        """Streams an answer, as `InferenceClient.predict_stream` does."""
        read = self.log_from_now()
        return self._explained(super().predict_stream(model, *args, **kwargs), model, read)

    def _explained(self, parts: Iterator[bytes], model: str, read: Read) -> Iterator[bytes]:
        try:
            yield from parts
        except (ApiError, NoAnswer) as error:
            explain(error, model, read, self.limit)
            raise


def explain(error: ApiError | NoAnswer, model: str, read: Read, limit: Limit) -> None:
    """Adds to the error of a prediction what the log says about this failure, or which limit was hit.

    Args:
        error: the error; its text changes.
        model: the name of the model.
        read: returns the log's lines since the request was sent.
        limit: returns the value of a setting.

    >>> error = ApiError(413, "Request Entity Too Large", "")
    >>> explain(error, "my_model", lambda: "", lambda name, model: 1000)
    >>> print(error)
    413 Request Entity Too Large. Send less... max_request_size is 1000 here.
    """
    if isinstance(error, TimedOut):
        _name_limit(error, "responseTimeout", limit("responseTimeout", model))
    elif isinstance(error, AnswerBrokeOff):
        _add(error, _wait(lambda: _failure(read(), model, *_LOGGED.values()) or _traceback(read(), model)))
    elif isinstance(error, NoAnswer):
        return
    elif error.status == 413 and not error.message:  # TorchServe's own; a handler says why itself
        _name_limit(error, "max_request_size", limit("max_request_size", model))
    elif error.status == 503 and "no worker" in error.message:
        _name_limit(error, "jobQueueSize", limit("jobQueueSize", model))
    elif error.status in (500, 507) and "died" in error.message:
        _explain_death(error, model, read, limit)
    elif titles := next((titles for words, titles in _LOGGED.items() if words in error.message), None):
        _add(error, _wait(lambda: _failure(read(), model, titles)))


def _explain_death(error: ApiError, model: str, read: Read, limit: Limit) -> None:
    log = _wait(lambda: _finished(read(), model)) or read()
    again = "A retry of this request ends the next worker too."
    if size := re.search(r"Message size exceed limit: (\d+)", log):
        value = limit("max_response_size", model)
        error.add_cause(
            f"The answer has {size[1]} bytes or more, and max_response_size is {value or 'lower'}: raise it "
            f"with config={{'max_response_size': …}}, or answer with less. {again}",
            in_place_of_advice=True,
        )
    elif too_slow(_lines_of(log, model)):
        value = limit("responseTimeout", model)
        error.add_cause(
            f"The worker took longer than responseTimeout{f', which is {value} s' if value else ''}, and was "
            "ended; TorchServe starts it again. Raise responseTimeout in the archive's config_file (and the "
            f"client's timeout=), or give the model less to do. {again}",
            in_place_of_advice=True,
        )
    elif hint := hint_for_log(log):
        error.add_cause(hint)
    else:
        _add(error, _traceback(log, model) or without_exception())


def _name_limit(error: ApiError | NoAnswer, name: str, value: int | None) -> None:
    if value is not None:
        error.args = (f"{error} {name} is {value} here.",)


def _add(error: ApiError | NoAnswer, cause: str | None) -> None:
    if cause is not None:
        error.add_cause(f"From the server's log, since this request was sent:\n{cause}")


def _wait(find: Callable[[], str | None]) -> str | None:
    """Returns what is found when it is the same twice, for it may not be complete yet; None if nothing is."""
    deadline, before = time.monotonic() + _LONGEST_WAIT, None
    while True:
        found = find()
        if (found and found == before) or time.monotonic() > deadline:
            return found
        before = found
        time.sleep(0.1)


def _failure(log: str, model: str, *titles: tuple[str, ...]) -> str | None:
    """Returns the latest traceback that a worker of the model logged for a failed prediction."""
    known = sum(titles, ())
    found = [one.text for one in tracebacks(_lines_of(log, model)) if one.title.startswith(known)]
    return found[-1] if found and exception_line(found[-1]) else None


def _traceback(log: str, model: str) -> str | None:
    """Returns the traceback that ended a worker of the model."""
    return cause_of_death(_lines_of(log, model), had_started=True)


def _finished(log: str, model: str) -> str | None:
    """Returns the log if it has all that a lost worker wrote, to both of its streams, or if it was hung."""
    own = _lines_of(log, model)
    return log if own.count(_ALL_READ) >= 2 or too_slow(own) else None


def _lines_of(log: str, model: str) -> str:
    """Returns the lines of the model's workers, and those of exceptions of TorchServe."""
    prefix = re.compile(rf"\S+ \[\w+\s*\] (?!W-\d+-{re.escape(model)}_[^_ ]+ )")
    return "\n".join(line for line in log.splitlines() if not prefix.match(line))
