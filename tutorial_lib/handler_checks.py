"""Defines the checks that `check_handler` runs in a worker process of their own.

Each check calls the handler as TorchServe's worker would, and gives a row of the report. A row is written as
soon as it is known, so that rows survive a handler that ends the process.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import itertools
import json
import logging
import math
import os
import random
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tutorial_lib import worker
from tutorial_lib.archive import read_manifest, read_settings
from tutorial_lib.archive_inputs import is_built_in
from tutorial_lib.report import Check

_SOME = 4  # requests in a batch of these checks
_TIMED = (1, 2, 4, 8)  # batch sizes whose time is measured
_CLOSE = {"rel_tol": 5e-3, "abs_tol": 1e-3}  # how near numbers of one answer alone and in a batch must be
_LONG_CHARACTERS, _LONG_ITEMS = 50_000, 500
_ROUND_REQUESTS, _ROUND_SECONDS = 100, 1.0  # a round of the memory check ends at the first of these limits
_LEAK_PYTHON, _LEAK_PROCESS = 15_000, 2_000_000  # bytes in a round; smaller growth is the interpreter's own
_OF_TORCHSERVE = {"HandlerTime", "PredictionTime"}  # metrics that TorchServe's own code reports
_ONE_AT_A_TIME = ("text_classifier",)  # TorchServe's own; it answers only the first request of a batch

Sample = Any  # a JSON value, a text, or bytes


class Part(NamedTuple):
    """A request's body on the wire: the part's name, its content type, its bytes."""

    name: str
    content_type: str
    body: bytes


class BadBody(NamedTuple):
    """A body unlike the samples. If `refused` is True it must get a 4xx; else it may be answered."""

    name: str
    part: Part
    refused: bool


class Worker:
    """Runs the handler in this process, batch by batch."""

    def __init__(self, folder: Path, batch_size: int, envelope: str | None) -> None:
        self._folder, self._batch_size, self._envelope = folder, batch_size, envelope
        self.service: Any = None

    def load(self) -> None:
        self.service = worker.load_service(
            self._folder, "model", batch_size=self._batch_size, envelope=self._envelope
        )

    def ask(self, *parts: Part) -> list[worker.Reply]:
        """Returns a reply to each request. Seeds random numbers, so that a sampling model repeats itself."""
        import torch

        random.seed(0)
        torch.manual_seed(0)
        with contextlib.suppress(ImportError):
            import numpy

            numpy.random.seed(0)
        batch = [worker.request(str(i), [worker.parameter(*part)]) for i, part in enumerate(parts)]
        try:
            return worker.predict(self.service, batch)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it would end the worker, and each request would get a 500
            traceback.print_exc()
            return [worker.Reply(500, {}, b"", f"Worker died: {_short(error)}")] * len(parts)

    def metrics(self) -> set[str]:
        return {name for metrics in self.service.context.metrics.cache.values() for name in metrics}


class Checks:
    """The checks, in the order of the report."""

    def __init__(
        self, folder: Path, samples: Sequence[Sample], files: OpenedFiles, envelope: str | None
    ) -> None:
        self._handler = read_manifest(folder)["model"]["handler"]
        batch_size = read_settings(folder).get("batchSize")
        self._built_in = is_built_in(self._handler)
        self._single = batch_size == 1 or (batch_size is None and self._handler in _ONE_AT_A_TIME)
        self._own_metrics = (folder / "metrics.yaml").is_file()
        self._worker = Worker(folder, batch_size or 1, envelope)
        self._parts = [_part(sample) for sample in samples]
        self._samples, self._files_opened = samples, files
        self._expected: list[worker.Reply] = []

    def run(self) -> Iterator[Check]:
        for check in (self._loads, self._answers):
            row = check()
            yield row
            if not row.ok:
                return
        for next_check in (
            self._repeats,
            self._batches,
            self._forms,
            self._bad_bodies,
            self._reloads,
            self._memory,
            self._metrics,
            self._files,
            self._time,
        ):
            yield next_check()

    def _loads(self) -> Check:
        started = time.monotonic()
        try:
            self._worker.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            traceback.print_exc()
            return Check("loads", False, _short(error), _advice_on_loading(error))
        self._declared = self._worker.metrics()
        return Check("loads", True, f"in {time.monotonic() - started:.1f} s")

    def _answers(self) -> Check:
        for number, part in enumerate(self._parts, 1):
            [reply] = self._worker.ask(part)
            if reply.status != 200:
                return Check(
                    "answers the samples",
                    False,
                    f"sample {number}: {_status_and_text(reply)}",
                    _advice_on_status(reply),
                )
            if _has_nan(reply):
                return Check(
                    "answers the samples",
                    False,
                    f"sample {number}: NaN or Infinity, which is not JSON",
                    "Answer null or a number: most clients can't read it.",
                )
            self._expected.append(reply)
        return Check("answers the samples", True, f"{len(self._parts)} of {len(self._parts)}")

    def _repeats(self) -> Check:
        name = "same answer again"
        for _ in range(2):
            for part, expected in zip(reversed(self._parts), reversed(self._expected), strict=True):
                [reply] = self._worker.ask(part)
                if not _same(reply, expected):
                    return Check(
                        name,
                        False,
                        f"{_text(expected)}, then {_text(reply)}",
                        "The handler keeps something from earlier requests, or its model is in training "
                        "mode. Set state in `initialize` alone; leave times and ids out of answers.",
                    )
        return Check(name, True, "also after other requests")

    def _batches(self) -> Check:
        name = "same answer in a batch"
        if self._single:
            return Check(name, None, "batchSize is 1, so each request comes alone")
        for order in self._orders():
            replies = self._worker.ask(*(self._parts[i] for i in order))
            if failed := next((reply for reply in replies if reply.status != 200), None):
                return Check(
                    name,
                    False,
                    f"{len(order)} requests: {_status_and_text(failed)}",
                    _advice_on_status(failed),
                )
            for i, reply in zip(order, replies, strict=True):
                if not _same(reply, self._expected[i]):
                    return Check(
                        name,
                        False,
                        f"alone {_text(self._expected[i])}, in a batch of {len(order)} {_text(reply)}",
                        "An answer depends on its neighbours, or the order changes. Return answers in the "
                        "order of the requests, mask padding, and call model.eval().",
                    )
        orders = (
            "in several orders" if len(self._parts) > 1 else "all alike: two samples would show their order"
        )
        return Check(name, True, f"up to {max(map(len, self._orders()))} requests, {orders}")

    def _orders(self) -> list[list[int]]:
        numbers = [*range(len(self._parts))]
        return [numbers * 2, numbers[::-1] * 3, [0] * _SOME, [numbers[-1], *([0] * _SOME)]]

    def _forms(self) -> Check:
        name = "every form of a body"
        different: dict[str, str] = {}
        for sample, expected in zip(self._samples, self._expected, strict=True):
            for form, part in _forms(sample).items():
                [reply] = self._worker.ask(part)
                if not _same(reply, expected):
                    different[form] = _status_and_text(reply)
        if not different:
            return Check(name, True, ", ".join(_forms(self._samples[0])))
        if self._built_in:
            fix = f"{self._handler} does so: have clients send the form that works."
            return Check(name, None, _grouped(different), fix)
        return Check(
            name,
            False,
            _grouped(different),
            'Take row.get("body") or row.get("data"), and decode what is bytes or str: clients send the same '
            "body with and without a content type, and as a form field.",
        )

    def _bad_bodies(self) -> Check:
        name = "bad requests"
        broken: dict[str, str] = {}
        costly = []
        bodies = [bad for sample in self._samples[:1] for bad in _bad_bodies(sample)]
        for bad in bodies:
            [reply] = self._worker.ask(bad.part)
            if reply.status >= 500 or (bad.refused and reply.status < 400):
                broken[bad.name] = _status_and_text(reply)
            if not self._single:
                one, _, two = self._worker.ask(self._parts[0], bad.part, self._parts[0])
                if not (_same(one, self._expected[0]) and _same(two, self._expected[0])):
                    costly.append(bad.name)
        [after] = self._worker.ask(self._parts[0])
        if not _same(after, self._expected[0]):
            costly.append("the next good request")
        if not broken and not costly:
            return Check(name, True, f"{len(bodies)} kinds, each with a status of its own")
        costs = f"their neighbours lose their answers: {', '.join(costly)}" if costly else ""
        found = "; ".join(part for part in (_grouped(broken), costs) if part)
        if self._built_in:
            fix = f"{self._handler} does so: keep batchSize at 1, or write a subclass that checks requests."
            return Check(name, None, found, fix)
        return Check(
            name,
            False,
            found,
            "Check each request by itself and answer a bad one with context.set_response_status(code=400, "
            "phrase='Bad Request', idx=…) and a sentence; give the model the others.",
        )

    def _reloads(self) -> Check:
        name = "loads a second time"
        fix = "`initialize` must not change the files, the settings or the modules that it reads."
        try:
            self._worker.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            traceback.print_exc()
            return Check(name, False, _short(error), fix)
        replies = [self._worker.ask(part)[0] for part in self._parts]
        if all(_same(reply, expected) for reply, expected in zip(replies, self._expected, strict=True)):
            return Check(name, True, "and answers the same")
        return Check(name, False, f"and answers {_text(replies[0])}, not {_text(self._expected[0])}", fix)

    def _memory(self) -> Check:
        """Repeats a request; if memory grows in each of three rounds, the handler keeps something."""
        name = "memory"
        requests = self._ask_again()
        python, process = [], []
        tracemalloc.start()
        try:
            for _ in range(4):
                requests += self._ask_again()
                gc.collect()
                python.append(tracemalloc.get_traced_memory()[0])
                process.append(psutil.Process().memory_info().rss)
                growth = max(
                    step if step >= minimum else 0
                    for step, minimum in (
                        (_least_step(python), _LEAK_PYTHON),
                        (_least_step(process), _LEAK_PROCESS),
                    )
                )
                if not growth:
                    break  # more rounds would change nothing
        finally:
            tracemalloc.stop()
        if not growth:
            return Check(name, True, f"steady over {requests} requests")
        return Check(
            name,
            False,
            f"grows by about {growth * 5 / requests:,.0f} bytes a request",
            "Something is kept: a list, a cache without a limit, tensors with gradients. Limit it, and run "
            "the model in torch.inference_mode().",
        )

    def _ask_again(self) -> int:
        """Runs one round of the memory check, and returns how many times it sent the first sample."""
        deadline, count = time.monotonic() + _ROUND_SECONDS, 0
        while count < _ROUND_REQUESTS and time.monotonic() < deadline:
            self._worker.ask(self._parts[0])
            count += 1
        return count

    def _metrics(self) -> Check:
        name = "metrics"
        unknown = sorted(self._worker.metrics() - self._declared - _OF_TORCHSERVE)
        if not unknown:
            return Check(name, True, "each is declared")
        found = f"not declared, so TorchServe drops them: {', '.join(unknown)}"
        fix = "Declare them in a metrics.yaml: in extra_files here, and as the server's metrics_config."
        return Check(name, False if self._own_metrics else None, found, fix)

    def _files(self) -> Check:
        name, fix = "files", "open them in context.system_properties['model_dir']."
        if outside := self._files_opened.outside:
            found = f"reads files that are not in the archive: {', '.join(outside)}"
            return Check(name, False, found, f"Add them to extra_files, and {fix}")
        if relative := self._files_opened.relative:
            found = f"finds {', '.join(relative)} only because TorchServe's worker runs in the model's folder"
            return Check(name, None, found, f"To be found everywhere, {fix}")
        return Check(name, True, "reads the archive's alone")

    def _time(self) -> Check:
        figures = []
        for size in (1,) if self._single else _TIMED:
            parts = [self._parts[i % len(self._parts)] for i in range(size)]
            times = []
            for _ in range(3):
                started = time.monotonic()
                self._worker.ask(*parts)
                times.append(time.monotonic() - started)
            figures.append(f"{size}: {min(times) * 1000:.1f} ms")
        return Check("time by batch size", None, ", ".join(figures))


def _part(sample: Sample) -> Part:
    if isinstance(sample, bytes):
        return Part("body", "", sample)
    if isinstance(sample, str):
        return Part("body", "text/plain", sample.encode())
    return Part("body", "application/json", json.dumps(sample).encode())


def _forms(sample: Sample) -> dict[str, Part]:
    """Returns a good body in each form in which clients send one of its kind."""
    body = _part(sample).body
    if isinstance(sample, bytes):
        return {"bytes": Part("body", "", body), "a form field": Part("data", "", body)}
    forms = {
        "JSON": Part("body", "application/json", body),
        "text": Part("body", "text/plain", body),
        "bytes": Part("body", "", body),
        "a form field": Part("data", "", body),
        "a JSON form field": Part("data", "application/json", body),
    }
    if isinstance(sample, str):
        del forms["JSON"], forms["a JSON form field"]
    return forms


def _bad_bodies(sample: Sample) -> list[BadBody]:
    if isinstance(sample, bytes):
        bodies = {
            "an empty body": b"",
            "other bytes": bytes(range(256)),
            "half a body": sample[: len(sample) // 2],
        }
        return [BadBody(name, Part("body", "", body), refused=False) for name, body in bodies.items()]
    if isinstance(sample, str):
        long = (sample or "a") * (_LONG_CHARACTERS // max(len(sample), 1))
        bodies = {"an empty text": b"", "a very long text": long.encode(), "not UTF-8": b"\xff\xfe\x00"}
        return [
            BadBody(name, Part("body", "text/plain", body), refused=False) for name, body in bodies.items()
        ]
    refused = {"an empty body": b"", "not JSON": b"{", "not UTF-8": b"\xff\xfe\x00", "null": b"null"}
    if isinstance(sample, (dict, list)):
        refused["a number"] = b"7"
    answered: dict[str, Sample] = {
        "nothing in it": type(sample)(),
        "null in place of each value": _replaced(sample, lambda value: None),
        "text in place of each value": _replaced(
            sample, lambda value: "a" if not isinstance(value, str) else 1
        ),
        "half a surrogate pair": _replaced(sample, lambda v: v + "\ud800" if isinstance(v, str) else v),
        "very long": _lengthened(sample),
    }
    bad = [BadBody(name, Part("body", "application/json", body), True) for name, body in refused.items()]
    for name, value in answered.items():
        if value != sample:
            bad.append(BadBody(name, Part("body", "application/json", json.dumps(value).encode()), False))
    return bad


def _replaced(value: Sample, replace: Callable[[Any], Any]) -> Sample:
    """Returns the same structure with each innermost value replaced."""
    if isinstance(value, dict):
        return {key: _replaced(item, replace) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, replace) for item in value]
    return replace(value)


def _lengthened(value: Sample) -> Sample:
    """Makes each text, and each list of texts or numbers, many times as long."""
    if isinstance(value, dict):
        return {key: _lengthened(item) for key, item in value.items()}
    if isinstance(value, str):
        return value * (_LONG_CHARACTERS // max(len(value), 1))
    if isinstance(value, list) and value:
        nested = isinstance(value[0], (dict, list))
        return [_lengthened(item) for item in value] if nested else value * (_LONG_ITEMS // len(value) + 1)
    return value


def _same(reply: worker.Reply, expected: worker.Reply) -> bool:
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


def _has_nan(reply: worker.Reply) -> bool:
    """Returns whether it has NaN or Infinity, which Python writes and JSON does not have."""
    found: list[str] = []
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(reply.body, parse_constant=found.append)
    return bool(found)


def _least_step(values: Sequence[int]) -> float:
    return min((after - before for before, after in itertools.pairwise(values)), default=math.inf)


def _grouped(answers: dict[str, str]) -> str:
    """Joins the answers, each followed by the requests that got it.

    >>> _grouped({"null": "503 Prediction failed", "a number": "503 Prediction failed"})
    '503 Prediction failed (null, a number)'
    """
    groups: dict[str, list[str]] = {}
    for request, answer in answers.items():
        groups.setdefault(answer, []).append(request)
    return "; ".join(f"{answer} ({', '.join(requests)})" for answer, requests in groups.items())


def _status_and_text(reply: worker.Reply) -> str:
    return f"{reply.status} {reply.error or _text(reply)}"


def _text(reply: worker.Reply) -> str:
    text = " ".join(reply.body.decode("utf-8", errors="replace").split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"


def _advice_on_loading(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"Install {error.name} where the model is served, or add its file or package to extra_files."
    if isinstance(error, FileNotFoundError):
        return "Add the file to extra_files, and open it in context.system_properties['model_dir']."
    return "The report's .log has the traceback."


def _advice_on_status(reply: worker.Reply) -> str:
    if reply.error and "mismatched" in reply.error:
        return "Return a list with exactly one item for each request of the batch."
    if reply.error and "Unsupported" in reply.error:
        return "Return what JSON has (tensor.tolist(), float(…)), a str, or bytes."
    if reply.error and "Invalid" in reply.error:
        return "Return a list, with one item for each request."
    if reply.error and reply.error.startswith("Worker died"):
        return (
            "It ends TorchServe's worker, and each request gets a 500. Raise an Exception, or set a status."
        )
    if reply.error:
        return "The handler raised an exception: the report's .log has the traceback."
    return "A sample must be a good request. Is it?"


class OpenedFiles:
    """Notes which opened files won't be on the server, and which are named by a relative path.

    Files below hidden folders (.venv, .cache), installed packages and files made meanwhile do not count.

    Args:
        sources: folders of the author, whose files are on the server only if they are in the archive.
        own: the folder of this check, with the unpacked archive.
    """

    def __init__(self, sources: Sequence[str], own: Path) -> None:
        self._started = time.time()
        self._outside: dict[str, None] = {}
        self._relative: dict[str, None] = {}
        kept = [source for source in sources if Path(source) not in (Path("/"), Path.home())]
        below = tuple(f"{source.rstrip('/')}/" for source in kept)
        exempt = (str(own), sys.prefix, str(Path(__file__).parent))

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event != "open" or not isinstance(arguments[0], str):
                return
            name = arguments[0]
            path = os.path.normpath(os.path.join(os.getcwd(), name))  # noqa: PTH109, PTH118
            if path.startswith(below) and not path.startswith(exempt):
                self._outside[path] = None
            elif not name.startswith("/") and path.startswith(str(own)):
                self._relative[name] = None

        sys.addaudithook(note)

    @property
    def outside(self) -> list[str]:
        """Files of the sources that are not in the archive."""
        return [path for path in self._outside if self._counts(path)][:5]

    @property
    def relative(self) -> list[str]:
        """Files of the archive that were opened by a path relative to the working directory."""
        return [name for name in self._relative if self._counts(name)][:5]

    def _counts(self, path: str) -> bool:
        hidden = "/." in path or "-packages/" in path or "__pycache__" in path
        return not hidden and Path(path).is_file() and Path(path).stat().st_mtime < self._started


def main(job: Path) -> None:
    """Reads a job, runs the checks, and writes each row into the job's "rows" file as a line of JSON."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    task = json.loads(job.read_text(encoding="utf-8"))
    folder = Path(task["folder"])
    samples = [base64.b64decode(s["bytes"]) if "bytes" in s else s["value"] for s in task["samples"]]
    files = OpenedFiles(task["sources"], folder.parent)
    with worker.in_model_folder(folder), Path(task["rows"]).open("w", encoding="utf-8") as rows:
        for check in Checks(folder, samples, files, task["envelope"]).run():
            rows.write(json.dumps([check.name, check.ok, check.found, check.fix]) + "\n")
            rows.flush()
