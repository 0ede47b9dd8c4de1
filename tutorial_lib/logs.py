"""Reads TorchServe's logs: the context, and the first traceback."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before a worker's own text, TorchServe writes time, level, thread and logger. The thread names the worker
# and the stream that it wrote to: "[INFO ] W-9000-my_model_1.0-stdout MODEL_LOG - Properties: {…}".
_LINE = re.compile(r"^\S+ \[(?P<level>\w+)\s*\] (?P<thread>\S+) (?P<logger>\S+) - (?P<text>.*)$")

# How a traceback begins, and how its other lines begin, except those that name an exception.
_HEAD, _INDENT = "Traceback (most recent call last)", (" ", "\t")

_REFUSED = "Failed to load model: "
_THREAD_FAILED = "Backend worker thread exception."
_DEATH = "or backend worker process died"  # TorchServe logs it once for each worker that dies
_REGULAR = re.compile(r" (ACCESS_LOG|TS_METRICS|MODEL_METRICS|TELEMETRY_METRICS) - ")


@dataclass(frozen=True)
class LoggedContext:
    """The context that a handler logged.

    Attributes:
        properties: `context.system_properties`: model_dir, gpu_id, batch_size, …
        manifest: `context.manifest`: createdOn, runtime, model, archiverVersion.
    """

    properties: dict[str, Any]
    manifest: dict[str, Any]


def parse_context(log: str | Path) -> LoggedContext:
    r"""Returns the last Properties and Manifest that a handler logged, as the skeleton handler logs them.

    Args:
        log: the text of a model log, or the path of one.

    Raises:
        ValueError: the log has no such lines.

    >>> context = parse_context("Properties: {'gpu_id': None}\nManifest: {'runtime': 'python'}")
    >>> context.properties, context.manifest["runtime"]
    ({'gpu_id': None}, 'python')
    """
    found: dict[str, dict[str, Any]] = {}
    for _, text in _messages(log):
        name, _, value = text.partition(": ")
        if name in ("Properties", "Manifest"):
            found[name] = ast.literal_eval(value)
    if len(found) < 2:
        raise ValueError(
            "The log has no 'Properties: {…}' and 'Manifest: {…}' lines. Does the handler log "
            "them in initialize, and is this the model log (model_log.log)?"
        )
    return LoggedContext(found["Properties"], found["Manifest"])


def first_traceback(log: str | Path) -> str | None:
    r"""Returns the first traceback of a log, without TorchServe's prefixes; None if there is none.

    The first traceback shows the true cause: TorchServe tries again, and later attempts fail in other ways.
    Lines in between, of other workers and of TorchServe itself, are left out.

    Args:
        log: the text of a model log, or the path of one.

    >>> print(first_traceback("hello\nTraceback (most recent call last):\n  File …\nKeyError: 'a'\nbye"))
    Traceback (most recent call last):
      File …
    KeyError: 'a'
    """
    worker: str | None = None
    lines: list[str] = []
    for thread, text in _messages(log):
        if not lines:
            if text.startswith(_HEAD):
                worker, lines = thread, [text]
        elif thread == worker:
            if _goes_on(text, lines[-1]):
                lines.append(text)
            else:
                break
    return "\n".join(lines).rstrip() or None


def wait_for_traceback(read: Callable[[], str], timeout: float = 10) -> str:
    """Returns the first traceback of a worker that died, else the worker's last lines.

    Log lines arrive late, so the log is read until the traceback is complete: its last line is not indented,
    and no line was added since the last read. TorchServe may lose the last lines of a worker that dies soon
    after its start; it starts the worker again after a second, so the second death is waited for too.

    Args:
        read: returns the log as it is now.
        timeout: seconds to wait at most.

    Returns:
        the traceback, or the last 20 lines if there is none.

    >>> wait_for_traceback(lambda: "no traceback", timeout=0)
    '(no traceback)\\nno traceback'
    """
    deadline = time.monotonic() + timeout
    found = first_traceback(read())
    while time.monotonic() < deadline:
        time.sleep(0.5)
        log = read()
        before, found = found, first_traceback(log)
        if found is None:
            done = log.count(_DEATH) > 1
        else:
            done = not found.rpartition("\n")[2].startswith((*_INDENT, _HEAD))
        if done and found == before:
            break
    return found or "(no traceback)\n" + "\n".join(read().splitlines()[-20:])


def refusal(log: str) -> str | None:
    r"""Returns the archive that TorchServe refused when it started, and the errors logged around that.

    Returns:
        the archive's name and the reason; None if no archive was refused.

    >>> prefix = "2026-01-31T10:00:00,123 [{}] main org.pytorch.serve.ModelServer - "
    >>> log = prefix.format("ERROR") + "pip failed:\nERROR: No matching distribution\n"
    >>> refusal(log + prefix.format("WARN ") + "Failed to load model: x.mar\na.b.ModelException: pip failed")
    'x.mar: pip failed:\nERROR: No matching distribution\npip failed'
    """
    lines = log.splitlines()
    at = next((number for number, line in enumerate(lines) if _REFUSED in line), None)
    if at is None:
        return None
    reasons = [*_errors_before(lines, at)[-15:], *_exceptions_after(lines, at)]
    return f"{lines[at].partition(_REFUSED)[2]}: " + ("\n".join(reasons) or "no reason is in the log")


def worker_thread_failure(log: str) -> str | None:
    """Returns why TorchServe could not even start a worker's process; None if it could.

    >>> worker_thread_failure("all is well")
    """
    lines = log.splitlines()
    at = next((number for number, line in enumerate(lines) if _THREAD_FAILED in line), None)
    return None if at is None else "\n".join(_exceptions_after(lines, at)) or lines[at]


def telling_lines(log: str, n: int) -> str:
    r"""Returns the last n lines of a log, without those that come regularly: requests and measured values.

    >>> telling_lines("an error\n2026-01-31T10:00:00,123 [INFO ] a ACCESS_LOG - GET /ping", 20)
    'an error'
    """
    return "\n".join([line for line in log.splitlines() if not _REGULAR.search(line)][-n:])


def _errors_before(lines: list[str], at: int) -> list[str]:
    """Returns all lines of the errors that were logged directly before a line."""
    start = at
    while start > 0:
        found = _LINE.match(lines[start - 1])
        if found and found["level"] != "ERROR":
            break
        start -= 1
    block = [(_LINE.match(line), line) for line in lines[start:at]]
    while block and not block[0][0]:  # the lines of an entry that is no error
        block.pop(0)
    return [text for found, line in block if (text := found["text"] if found else line).strip()]


def _exceptions_after(lines: list[str], at: int) -> list[str]:
    """Returns the messages of the Java exceptions that were logged with a line."""
    messages = []
    for line in lines[at + 1 :]:
        if _LINE.match(line):
            break
        if found := re.match(r"(?:Caused by: )?(?:[\w$]+\.)+[\w$]+(?:: (.*))?$", line):
            messages.append(found[1] or line)
    return messages


def _goes_on(text: str, previous: str) -> bool:
    """Returns whether a line still belongs to the traceback.

    A traceback ends with its first line that is not indented, the exception itself. After that line, a blank
    line or one of Python's joining sentences leads on to the next traceback of the chain.
    """
    chained = "The above exception was", "During handling of the above"
    if text == "" or text.startswith((*_INDENT, *chained, _HEAD)):
        return True
    return previous.startswith(_INDENT)


def _messages(log: str | Path) -> list[tuple[str, str]]:
    """Returns (thread, message) for each line; all lines without a prefix count as one thread's."""
    text = log.read_text(encoding="utf-8", errors="replace") if isinstance(log, Path) else log
    parsed = ((_LINE.match(line), line) for line in text.splitlines())
    return [(found["thread"], found["text"]) if found else ("", line) for found, line in parsed]
