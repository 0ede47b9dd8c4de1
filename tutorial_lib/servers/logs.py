"""Reads TorchServe's logs: the context, tracebacks, and why a worker died."""

from __future__ import annotations

import ast
import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Before a worker's own text, TorchServe writes time, level, thread and logger. The thread names the worker
# and the stream that it wrote to: "[INFO ] W-9000-my_model_1.0-stdout MODEL_LOG - Properties: {…}".
_LINE = re.compile(r"^\S+ \[(?P<level>\w+)\s*\] (?P<thread>\S+) (?P<logger>\S+) - (?P<text>.*)$")

NO_TRACEBACK = "(no traceback)"
# How a traceback begins, and how its other lines begin, except those that name an exception.
_HEAD, _INDENT = "Traceback (most recent call last)", (" ", "\t")

_REFUSED = "Failed to load model: "
_THREAD_FAILED = re.compile(r"Backend worker thread exception\.|Out of memory error when creating workers")
_DEATH = "or backend worker process died"  # TorchServe logs it once for each worker that dies
_DIED_IN_IMPORTS = "Backend stream closed."  # TorchServe's words for a worker that ended before it listened
_TIMED_OUT = re.compile(r"did not respond in given time|worker startup time out", re.IGNORECASE)

# What a worker logs before the traceback that ends it. The first one only passes on a failed load.
_DIES, _NOT_LOADED = "Backend worker process died.", re.compile(r"(Failed to load|Load) model .*, exception ")
_PASSED_ON = re.compile(r"RuntimeError: \d+ - (Unknown exception|System out of memory)$")
_STARTED, _FATAL = "Torch worker started.", "Fatal Python error: "
# If the handler's import fails, TorchServe looks for a handler of its own with that name.
_TRAP = re.compile(r"^ModuleNotFoundError: No module named 'ts\.torch_handler\.", re.MULTILINE)
_ALSO = "\n\nDuring handling of the above exception"
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

    TorchServe starts a worker that died again, and later attempts may fail in other ways. Lines in between,
    of other workers and of TorchServe itself, are left out; so is the error with which TorchServe hides a
    failed import of the handler: "No module named 'ts.torch_handler.my_handler'".

    Args:
        log: the text of a model log, or the path of one.

    >>> print(first_traceback("hello\nTraceback (most recent call last):\n  File …\nKeyError: 'a'\nbye"))
    Traceback (most recent call last):
      File …
    KeyError: 'a'
    """
    return next((found.text for found in tracebacks(log)), None)


class Found(NamedTuple):
    """A traceback in a log.

    Attributes:
        worker: "W-9000-my_model_1.0"; "" in a log without TorchServe's prefixes.
        title: the line that the worker printed before it: "Invoking custom service failed."
        text: the traceback, without prefixes.
    """

    worker: str
    title: str
    text: str


def tracebacks(log: str | Path) -> list[Found]:
    r"""Returns all tracebacks of a log, in the order in which they begin.

    If a handler's import fails, TorchServe looks for a handler of its own with that name. The error about
    that name, "No module named 'ts.torch_handler.my_handler'", hides the cause and is left out.

    >>> [found.title for found in tracebacks("a caught one\nTraceback (most recent call last):\nKeyError: 0")]
    ['a caught one']
    """
    found: list[tuple[str, str, list[str]]] = []
    open_ones: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for thread, text in _messages(log):
        if thread in open_ones and _goes_on(text, open_ones[thread][-1]):
            open_ones[thread].append(text)
        elif text.startswith(_HEAD):
            open_ones[thread] = [text]
            found.append((_worker(thread), titles.get(thread, ""), open_ones[thread]))
        else:
            open_ones.pop(thread, None)
            titles[thread] = text
    return [Found(worker, title, _without_trap("\n".join(lines).rstrip())) for worker, title, lines in found]


def exception_line(traceback: str) -> str:
    r"""Returns the line of a traceback that names the exception; "" if it is not there yet.

    >>> exception_line("Traceback (most recent call last):\n  File …\nRuntimeError: Errors:\n\ta key")
    'RuntimeError: Errors:'
    """
    lines = [line for line in traceback.splitlines() if line and not line.startswith((*_INDENT, _HEAD))]
    return lines[-1] if lines and not traceback.endswith(_HEAD + ":") else ""


def dead_worker(log: str) -> str | None:
    """Returns the first worker that died, as "W-9000-my_model_1.0"; None if none died.

    >>> dead_worker("all is well")
    """
    if not any(words in log for words in (_DEATH, _DIES, _DIED_IN_IMPORTS)):
        return None
    for line in log.splitlines():
        found = _LINE.match(line)
        said = found["text"] if found else line
        if _DEATH in said or said == _DIES or said.endswith(_DIED_IN_IMPORTS):
            return _worker(found["thread"]) if found else ""
    return None


def _messages(log: str | Path) -> list[tuple[str, str]]:
    """Returns (thread, message) for each line; all lines without a prefix count as one thread's."""
    text = log.read_text(encoding="utf-8", errors="replace") if isinstance(log, Path) else log
    parsed = ((_LINE.match(line), line) for line in text.splitlines())
    return [(found["thread"], found["text"]) if found else ("", line) for found, line in parsed]


def cause_of_death(log: str, *, had_started: bool = False) -> str | None:
    r"""Returns the traceback that ended the first worker that died; None if no exception ended it.

    A traceback that the handler caught and logged is not the cause, so the line before a traceback decides.
    A fatal error of the interpreter, such as a segmentation fault, has a traceback too.

    Args:
        log: the text of a log with TorchServe's own lines.
        had_started: whether the worker had started before the log's first line.

    >>> cause_of_death("caught\nTraceback (most recent call last):\nKeyError: 0\nTorch worker started.")
    """
    worker = dead_worker(log)
    own = [found for found in tracebacks(log) if worker in (None, found.worker)]
    for place, found in enumerate(own):
        if found.title == _DIES:
            loads = [one for one in own[:place] if _NOT_LOADED.match(one.title)]
            passed_on = loads and _PASSED_ON.match(exception_line(found.text))
            return loads[-1].text if passed_on else found.text
    texts = [text for thread, text in _messages(log) if worker in (None, _worker(thread))]
    fatal = next((place for place, text in enumerate(texts) if text.startswith(_FATAL)), None)
    if fatal is not None:
        of_it = itertools.takewhile(lambda text: not text.startswith("Extension"), texts[fatal : fatal + 30])
        return "\n".join(of_it).rstrip()
    had_started = had_started or _STARTED in texts
    return own[-1].text if own and not had_started else None  # nothing catches an exception in its imports


def wait_for_traceback(read: Callable[[], str], timeout: float = 10) -> str:
    """Returns the traceback that ended a worker, else "(no traceback)" and the worker's last lines.

    Log lines arrive late, so the log is read until the traceback is complete: its last line names the
    exception, and no line was added since the last read. TorchServe may lose the last lines of a worker that
    dies soon after its start; it starts the worker again after a second, so the second death is waited for
    too.

    Args:
        read: returns the log as it is now.
        timeout: seconds to wait at most.

    Returns:
        the traceback, or the last 20 lines if there is none.

    >>> wait_for_traceback(lambda: "no traceback", timeout=0)
    '(no traceback)\\nno traceback'
    """
    deadline = time.monotonic() + timeout
    found = cause_of_death(read())
    while time.monotonic() < deadline:
        time.sleep(0.5)
        log = read()
        before, found = found, cause_of_death(log)
        done = log.count(_DEATH) > 1 if found is None else bool(exception_line(found))
        if done and found == before:
            break
    return found or f"{NO_TRACEBACK}\n" + telling_lines(read(), 20)


def too_slow(log: str) -> str | None:
    r"""Returns the worker that TorchServe ended because it did not answer in time; None if there is none.

    >>> prefix = "2026-01-31T10:00:00,123 [ERROR] W-9000-m_1.0 org.pytorch.serve.wlm.WorkerThread - "
    >>> too_slow(prefix + "Backend worker error\na.b.C: Backend worker did not respond in given time")
    'W-9000-m_1.0'
    """
    lines = log.splitlines()
    for line, following in itertools.pairwise(lines):
        found = _LINE.match(line)
        if found and not _LINE.match(following) and _TIMED_OUT.search(following):
            return found["thread"]
    return None


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
    at = next((number for number, line in enumerate(lines) if _THREAD_FAILED.search(line)), None)
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
    if text == "" or text.startswith((*_INDENT, *chained)):
        return True
    if text.startswith(_HEAD):
        return previous == ""  # else it is another one
    return previous.startswith((*_INDENT, _HEAD))


def _without_trap(text: str) -> str:
    at = text.rfind(_ALSO)
    return text[:at] if at >= 0 and _TRAP.search(text, at) else text


def _worker(thread: str) -> str:
    return thread.removesuffix("-stdout").removesuffix("-stderr")
