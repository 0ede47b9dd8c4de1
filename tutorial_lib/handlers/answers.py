"""Compares a handler's replies, and words them for a row of the report."""

from __future__ import annotations

import contextlib
import json
import math
import traceback
from pathlib import Path
from typing import Any

from tutorial_lib.worker import contract as worker

_CLOSE = {"rel_tol": 5e-3, "abs_tol": 1e-3}  # how near numbers of one answer alone and in a batch must be


def same(reply: worker.Reply, expected: worker.Reply) -> bool:
    """Returns whether a reply is good and equal to the expected one, except for rounding."""
    return reply.status == 200 and _alike(_value(reply.body), _value(expected.body))


def _alike(one: Any, two: Any) -> bool:
    """Returns whether values are equal, except for the differences of floats computed in another batch."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_alike(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(_alike(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, float) and isinstance(two, (int, float)):
        return math.isclose(one, two, **_CLOSE)
    return bool(one == two)


def _value(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def has_nan(reply: worker.Reply) -> bool:
    """Returns whether it has NaN or Infinity, which Python writes and JSON does not have."""
    found: list[str] = []
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(reply.body, parse_constant=found.append)
    return bool(found)


def grouped(answers: dict[str, str]) -> str:
    """Joins the answers, each followed by the requests that got it.

    >>> grouped({"null": "503 Prediction failed", "a number": "503 Prediction failed"})
    '503 Prediction failed (null, a number)'
    """
    groups: dict[str, list[str]] = {}
    for request, answer in answers.items():
        groups.setdefault(answer, []).append(request)
    return "; ".join(f"{answer} ({', '.join(requests)})" for answer, requests in groups.items())


def status_and_text(reply: worker.Reply) -> str:
    return f"{reply.status} {reply.error or text_of(reply)}"


def text_of(reply: worker.Reply) -> str:
    text = " ".join(reply.body.decode("utf-8", errors="replace").split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def short(error: BaseException, folder: Path) -> str:
    """Returns an exception in a line, with the place in the handler's own code that it came through last.

    >>> short(KeyError("x"), Path("/model"))
    "KeyError: 'x'"
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    if isinstance(error, SyntaxError):
        return text  # it names the file and the line
    return f"{text} ({Path(own[-1].filename).relative_to(folder)}, line {own[-1].lineno})" if own else text


def advice_on_loading(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"Install {error.name} where the model is served, or add its file or package to extra_files."
    if isinstance(error, FileNotFoundError):
        return "Add the file to extra_files, and open it in context.system_properties['model_dir']."
    return "The report's .log has the traceback."


def advice_on_status(reply: worker.Reply) -> str:
    advice = {
        "number of batch": "Return a list with exactly one item for each request of the batch.",
        "Unsupported": "Return what JSON has (tensor.tolist(), float(…)), a str, or bytes.",
        "Invalid": "Return a list, with one item for each request.",
        "Worker died": "It ends TorchServe's worker, and each request gets a 500. Raise an Exception, or set "
        "a status.",
    }
    for start, sentence in advice.items():
        if (reply.error or "").startswith(start):
            return sentence
    if reply.error:
        return "The handler raised that exception. The report's .log has the whole traceback."
    return "A sample must be a good request. Is it?"
