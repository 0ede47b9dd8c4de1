"""Defines the checks that `check_handler` runs in a worker process of their own.

Each check calls the handler as TorchServe's worker would, and gives a row of the report. A row is written as
soon as it is known, so that rows survive a handler that ends the process.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import math
import os
import pickle
import sys
import time
import traceback
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tutorial_lib.archives.building import read_manifest, read_settings
from tutorial_lib.archives.model_files import is_built_in
from tutorial_lib.handlers import traces as handler_traces
from tutorial_lib.handlers.answers import (
    advice_on_loading,
    advice_on_status,
    grouped,
    has_nan,
    same,
    short,
    status_and_text,
    text_of,
)
from tutorial_lib.handlers.bodies import Wire, bad_bodies, forms, wire_of
from tutorial_lib.report import Check
from tutorial_lib.worker import contract as worker

_SOME = 4  # requests in a batch of these checks
_TIMED = (1, 2, 4, 8)  # batch sizes whose time is measured
_ROUND_REQUESTS, _ROUND_SECONDS = 1000, 1.0  # a round of the memory check ends at the first of these limits
_LEAK_PYTHON, _LEAK_PROCESS = 15_000, 2_000_000  # bytes in a round; smaller growth is the interpreter's own
_MANY = 10  # files or threads that are left by the requests: more than a handler makes once
_OF_TORCHSERVE = {"HandlerTime", "PredictionTime"}  # metrics that TorchServe's own code reports
_ONE_AT_A_TIME = ("text_classifier",)  # TorchServe's own; it answers only the first request of a batch
_ONE_BODY = ("kserve", "kservev2")  # envelopes that read only the first body of a batch


class Worker:
    """Runs the handler in this process, batch by batch."""

    def __init__(self, folder: Path, batch_size: int, envelope: str | None) -> None:
        self._folder, self._batch_size, self._envelope = folder, batch_size, envelope
        self.service: Any = None
        self.seeds = handler_traces.Seeds()
        self._raised: BaseException | None = None

    def load(self) -> None:
        self.service = worker.load_service(
            self._folder, "model", batch_size=self._batch_size, envelope=self._envelope
        )
        handle = self.service._entry_point

        def noting(data: Any, context: Any) -> Any:
            try:
                return handle(data, context)
            except BaseException as error:
                self._raised = error
                raise

        self.service._entry_point = noting
        self.seeds.find_own(self._folder)

    def ask(self, *wires: Wire, seeded: bool = True) -> list[worker.Reply]:
        """Returns a reply to each request; an error quotes the handler's exception and its place."""
        (self.seeds.set if seeded else self.seeds.scatter)()
        self._raised = None
        batch = [wire.as_batch_item(str(i)) for i, wire in enumerate(wires)]
        try:
            replies = worker.predict(self.service, batch)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it would end the worker, and each request would get a 500
            traceback.print_exc()
            message = f"Worker died: {short(error, self._folder)}"
            return [worker.Reply(500, {}, b"", message)] * len(wires)
        if self._raised is None:
            return replies
        cause, self._raised = short(self._raised, self._folder), None
        return [
            reply._replace(error=f"{reply.error}: {cause}") if reply.error is not None else reply
            for reply in replies
        ]

    def metrics(self) -> set[str]:
        return {name for metrics in self.service.context.metrics.cache.values() for name in metrics}


class Checks:
    """The checks, in the order of the report."""

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Any],
        files: handler_traces.OpenedFiles,
        envelope: str | None,
        log: Path,
    ) -> None:
        self._folder, self._samples, self._files_opened, self._log = folder, samples, files, log
        self._handler = read_manifest(folder)["model"]["handler"]
        size = read_settings(folder).get("batchSize")
        self._batch_size: int | None = size if isinstance(size, int) else None
        self._single = (
            size == 1 or envelope in _ONE_BODY or (size is None and self._handler in _ONE_AT_A_TIME)
        )
        self._own_metrics = (folder / "metrics.yaml").is_file()
        # What reads the request before the author's code does.
        self._reader = (
            self._handler if is_built_in(self._handler) else envelope and f"The envelope {envelope}"
        )
        self._worker = Worker(folder, self._batch_size or 1, envelope)
        self._wires = [wire_of(sample) for sample in samples]
        self._expected: list[worker.Reply] = []
        self._random = False
        self._requests = 0

    def run(self) -> Iterator[Check]:
        for check in (self._loads, self._answers):
            row = check()
            yield row
            if not row.ok:
                return
        self._left_before = self._files_now()
        self._threads_before = len(handler_traces.own_threads())
        for next_check in (
            self._repeats,
            self._batches,
            self._forms,
            self._bad_bodies,
            self._reloads,
            self._memory,
            self._metrics,
            self._files,
            self._files_left,
            self._output,
            self._threads,
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
            return Check("loads", False, short(error, self._folder), advice_on_loading(error))
        self._declared = self._worker.metrics()
        return Check("loads", True, f"in {time.monotonic() - started:.1f} s")

    def _answers(self) -> Check:
        for number, wire in enumerate(self._wires, 1):
            [reply] = self._worker.ask(wire)
            if reply.status != 200:
                return Check(
                    "answers the samples",
                    False,
                    f"sample {number}: {status_and_text(reply)}",
                    advice_on_status(reply),
                )
            if has_nan(reply):
                return Check(
                    "answers the samples",
                    False,
                    f"sample {number}: NaN or Infinity, which is not JSON",
                    "Answer null or a number: most clients can't read it.",
                )
            self._expected.append(reply)
        return Check("answers the samples", True, f"{len(self._wires)} of {len(self._wires)}")

    def _repeats(self) -> Check:
        name = "same answer again"
        if layers := handler_traces.layers_in_training():
            return Check(
                name, False, f"{', '.join(layers)} in training mode", "Call model.eval() in `initialize`."
            )
        for _ in range(2):
            for wire, expected in zip(reversed(self._wires), reversed(self._expected), strict=True):
                [reply] = self._worker.ask(wire)
                if not same(reply, expected):
                    return Check(
                        name,
                        False,
                        f"{text_of(expected)}, then {status_and_text(reply)}",
                        "The handler keeps something from earlier requests, or answers at random with a seed "
                        "that can't be set. Set state in `initialize` alone, and leave times and ids out.",
                    )
        replies = [self._worker.ask(self._wires[0], seeded=False)[0] for _ in range(_SOME)]
        self._random = not all(same(reply, self._expected[0]) for reply in replies)
        if self._random:
            found = "with the same seed; else the handler answers at random, and an order can't be checked"
            return Check(name, None, found)
        return Check(name, True, "also after other requests")

    def _batches(self) -> Check:
        name = "same answer in a batch"
        if self._single:
            return Check(name, None, "not checked: each request comes alone (batchSize or envelope)")
        fault = self._fault_in_batch()
        if fault and self._batch_size is None:
            found = f"{fault[0]}; but TorchServe sends one request at a time, as no config gives a batchSize"
            return Check(name, None, found, f"Before you give a batchSize: {fault[1]}")
        if fault:
            return Check(name, False, *fault)
        if self._random:
            order = "status alone, as answers are random"
        elif all(same(reply, self._expected[0]) for reply in self._expected):
            order = "all answers alike, so their order was not checked: give samples with other answers"
        else:
            order = "in several orders"
        return Check(name, True, f"up to {max(map(len, self._orders()))} requests, {order}")

    def _fault_in_batch(self) -> tuple[str, str] | None:
        """Returns what is wrong with the answers in batches, and what to do."""
        for order in self._orders():
            replies = self._worker.ask(*(self._wires[i] for i in order))
            if failed := next((reply for reply in replies if reply.status != 200), None):
                return f"{len(order)} requests: {status_and_text(failed)}", advice_on_status(failed)
            for i, reply in zip(order, replies, strict=True):
                if not self._is_expected(reply, i):
                    return (
                        f"alone {text_of(self._expected[i])}, in a batch of {len(order)} {text_of(reply)}",
                        "An answer depends on its neighbours, or the order changes. Return answers in the "
                        "order of the requests, mask padding, and call model.eval().",
                    )
        return None

    def _is_expected(self, reply: worker.Reply, number: int) -> bool:
        """Returns whether it is the answer to the sample; of a random answer only the status is known."""
        return reply.status == 200 if self._random else same(reply, self._expected[number])

    def _orders(self) -> list[list[int]]:
        """Returns the samples' numbers in batches, up to the greatest that TorchServe sends."""
        numbers = [*range(len(self._wires))]
        most = self._batch_size or max(2 * len(numbers), _SOME + 1)
        orders = [numbers * 2, numbers[::-1] * 3, [0] * _SOME, [numbers[-1], *([0] * _SOME)]]
        full = list(itertools.islice(itertools.cycle(numbers), most))
        return [order[:most] for order in orders] + [full]

    def _forms(self) -> Check:
        name = "every form of a body"
        different: dict[str, str] = {}
        for sample, expected in zip(self._samples, self._expected, strict=True):
            for form, part in forms(sample).items():
                [reply] = self._worker.ask(part)
                if reply.status != 200 or not (self._random or same(reply, expected)):
                    different[form] = status_and_text(reply)
        if not different:
            return Check(name, True, ", ".join(forms(self._samples[0])))
        if self._reader:
            fix = f"{self._reader} does so: have clients send the form that works."
            return Check(name, None, grouped(different), fix)
        return Check(
            name,
            False,
            grouped(different),
            'Take row.get("body") or row.get("data"), and decode what is bytes or str: clients send the same '
            "body with and without a content type, and as a form field.",
        )

    def _bad_bodies(self) -> Check:
        name = "bad requests"
        broken: dict[str, str] = {}
        costly = []
        bodies = bad_bodies(self._samples)
        first = self._wires[0]
        for bad in bodies:
            [reply] = self._worker.ask(bad.wire)
            if reply.status >= 500 or (bad.refused and reply.status < 400):
                broken[bad.name] = status_and_text(reply)
            if not self._single and self._batch_size != 2:
                # Not in the middle, so that answers in another order are seen.
                one, _, *others = self._worker.ask(
                    first, bad.wire, *[first] * min(2, (self._batch_size or 4) - 2)
                )
                if not all(self._is_expected(reply, 0) for reply in (one, *others)):
                    costly.append(bad.name)
        [after] = self._worker.ask(first)
        if not self._is_expected(after, 0):
            costly.append("the next good request")
        if not broken and not costly:
            return Check(name, True, f"{len(bodies)} kinds, each with a status of its own")
        if not broken and self._batch_size is None and costly != ["the next good request"]:
            found = f"in a batch, neighbours would lose their answers: {', '.join(costly)}"
            return Check(name, None, found, "Answer each request by itself before you give a batchSize.")
        costs = f"their neighbours lose their answers: {', '.join(costly)}" if costly else ""
        found = "; ".join(part for part in (grouped(broken), costs) if part)
        if self._reader:
            fix = f"{self._reader} does so: keep batchSize at 1, or write a subclass that checks requests."
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
            return Check(name, False, short(error, self._folder), fix)
        replies = [self._worker.ask(wire)[0] for wire in self._wires]
        if all(self._is_expected(reply, number) for number, reply in enumerate(replies)):
            return Check(name, True, "and answers the same")
        return Check(
            name, False, f"and answers {status_and_text(replies[0])}, not {text_of(self._expected[0])}", fix
        )

    def _memory(self) -> Check:
        """Repeats a request; if memory grows in each of three rounds, the handler keeps something."""
        name = "memory"
        requests = self._ask_again()
        python, process, nodes = [], [], []
        tracemalloc.start()
        try:
            for _ in range(4):
                requests += self._ask_again()
                gc.collect()
                python.append(tracemalloc.get_traced_memory()[0])
                process.append(psutil.Process().memory_info().rss)
                nodes.append(handler_traces.autograd_nodes())
                growth = max(
                    step if step >= minimum else 0
                    for step, minimum in (
                        (_least_step(python), _LEAK_PYTHON),
                        (_least_step(process), _LEAK_PROCESS),
                    )
                )
                if len(nodes) > 1 and not growth and _least_step(nodes) <= 0:
                    break  # more rounds would change nothing
        finally:
            tracemalloc.stop()
        self._requests = requests
        if len(nodes) > 2 and _least_step(nodes) > 0:
            found = "keeps tensors with what their gradients need, more with each request"
            return Check(
                name, False, found, "Run the model in torch.inference_mode(), and keep .item() or .tolist()."
            )
        if not growth:
            unseen = _LEAK_PROCESS * 5 / requests / 1000
            return Check(
                name,
                True,
                f"steady over {requests} requests (tensors of under {unseen:,.1f} kB a request are not seen)",
            )
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
            self._worker.ask(self._wires[0])
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
        if missing := self._files_opened.missing:
            found = f"reads files that are not in the archive: {', '.join(missing)}"
            return Check(name, False, found, f"Add them to extra_files, and {fix}")
        if elsewhere := self._files_opened.elsewhere:
            found = f"reads files of this machine that the archive does not have: {', '.join(elsewhere)}"
            return Check(
                name, None, found, f"Each server needs them too; or add them to extra_files, and {fix}"
            )
        if relative := self._files_opened.relative:
            found = f"finds {', '.join(relative)} only because TorchServe's worker runs in the model's folder"
            return Check(name, None, found, f"To be found everywhere, {fix}")
        return Check(name, True, "Python opened the archive's alone")

    def _files_now(self) -> dict[str, tuple[int, int]]:
        return handler_traces.files_below(self._folder.parent / "model") | {
            f"the temporary folder's {name}": stat
            for name, stat in handler_traces.files_below(self._folder.parent / "tmp").items()
        }

    def _files_left(self) -> Check:
        name, now = "files left", self._files_now()
        changed = [file for file, stat in self._left_before.items() if now.get(file) != stat]
        new = [file for file in now if file not in self._left_before]
        fix = "Remove what a request needs no more; all workers of a model share its folder."
        some = f"{', '.join(sorted(new)[:3])}{' …' if len(new) > 3 else ''}"
        if changed:
            found = f"requests change or remove {', '.join(changed[:3])}"
            return Check(name, False, found, fix)
        if len(new) > _MANY:
            return Check(name, False, f"requests leave {len(new)} files: {some}", fix)
        if new:
            return Check(name, None, f"requests leave {some}", fix)
        if written := self._files_opened.written:
            return Check(name, None, f"writes {', '.join(written)}", "Can a server's user write there?")
        return Check(name, True, "none in the model's folder, none in the temporary folder")

    def _output(self) -> Check:
        """Looks at what one request writes to the log."""
        name = "log"
        sys.stdout.flush()
        before = self._log.stat().st_size
        for wire in self._wires:
            self._worker.ask(wire)
        sys.stdout.flush()
        with self._log.open("rb") as log:
            log.seek(before)
            text = log.read().decode("utf-8", errors="replace")
        squeezed = "".join(text.split()).replace("'", '"')
        bodies = {
            "".join(part.body.decode("utf-8", errors="replace").split())
            for w in self._wires
            for part in w.parts
        }
        quoted = [value for sample in self._samples for value in _texts(sample)]
        if any(body and body in squeezed for body in bodies) or any(value in text for value in quoted):
            return Check(
                name, None, "has the bodies of requests", "Bodies may be private, and fill the disk."
            )
        if text:
            return Check(name, None, f"{len(text) / len(self._wires):,.0f} characters a request")
        return Check(name, True, "good requests write nothing")

    def _threads(self) -> Check:
        name = "threads and processes"
        for number, wire in enumerate(self._wires):
            [reply] = self._worker.ask(wire)
            if not self._is_expected(reply, number):
                found = (
                    f"{text_of(self._expected[number])}, and {status_and_text(reply)} after all these checks"
                )
                return Check(name, False, found, "Does a thread, or a count of requests, change the model?")
        threads, children = handler_traces.own_threads(), handler_traces.child_processes()
        if len(threads) - self._threads_before > _MANY:
            return Check(name, False, f"requests leave {len(threads)} threads", "End them, or use a pool.")
        if threads or children:
            found = f"{len(threads)} threads, {len(children)} processes: what they do was not checked"
            return Check(name, None, found)
        return Check(name, True, "none of its own; the same answers at the end")

    def _time(self) -> Check:
        seconds = {}
        for size in (1,) if self._single else [n for n in _TIMED if n <= (self._batch_size or _TIMED[-1])]:
            wires = [self._wires[i % len(self._wires)] for i in range(size)]
            times = []
            for _ in range(3):
                started = time.monotonic()
                self._worker.ask(*wires)
                times.append(time.monotonic() - started)
            seconds[size] = min(times)
        figures = ", ".join(f"{size}: {spent * 1000:.1f} ms" for size, spent in seconds.items())
        largest = max(seconds)
        if largest > 1:
            a_row = (seconds[largest] - seconds[1]) / (largest - 1)
            figures += f"; {a_row * 1000:.1f} ms for each row more"
            if a_row > max(seconds[1] / 2, 0.001):
                figures += ", so a batch saves little"
        return Check("time by batch size", None, f"{figures} ({os.environ.get('OMP_NUM_THREADS')} threads)")


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a sample that are long enough to be known again."""
    if isinstance(value, str) and len(value) >= 6:
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in _texts(item))
    elif isinstance(value, (list, tuple)):
        yield from (text for item in value for text in _texts(item))


def _least_step(values: Sequence[int]) -> float:
    return min((after - before for before, after in itertools.pairwise(values)), default=math.inf)


def main(job: Path) -> None:
    """Reads a job, runs the checks, and writes each row into the job's "rows" file as a line of JSON.

    The last line is null if all checks were made, or the traceback of a fault of the checks themselves. The
    process then ends at once, whatever threads the handler has.
    """
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)  # as in the worker
    logging.getLogger("ts").setLevel(logging.WARNING)
    task = pickle.loads(job.read_bytes())
    folder = Path(task["folder"])
    files = handler_traces.OpenedFiles(task["sources"], folder.parent)
    last: str | None = None
    with Path(task["rows"]).open("w", encoding="utf-8") as rows:
        try:
            with worker.in_model_folder(folder):
                checks = Checks(folder, task["samples"], files, task["envelope"], Path(task["log"]))
                for check in checks.run():
                    rows.write(json.dumps([check.name, check.ok, check.found, check.fix]) + "\n")
                    rows.flush()
        except Exception:
            last = traceback.format_exc()
        rows.write(json.dumps(last) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
