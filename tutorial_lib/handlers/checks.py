"""The program that `check_handler` starts: it makes the checks, and writes their rows.

Each check calls the handler as TorchServe's worker would. Its row is written as soon as it is known, so that
rows survive a handler that ends the process.
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
import threading
import time
import traceback
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tutorial_lib.archives.building import read_manifest, read_settings
from tutorial_lib.archives.model_files import is_built_in
from tutorial_lib.handlers import traces
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
_ROUNDS = 4  # after a first one, in which memory may grow
_LEAK_PYTHON, _LEAK_PROCESS = 15_000, 2_000_000  # bytes in a round; smaller growth is the interpreter's own
_MANY = 10  # files or threads that are left by the requests: more than a handler makes once
_OF_TORCHSERVE = {"HandlerTime", "PredictionTime"}  # metrics that TorchServe's own code reports
_ONE_AT_A_TIME = ("text_classifier",)  # TorchServe's own; it answers only the first request of a batch
_ONE_BODY = ("kserve", "kservev2")  # envelopes that read only the first body of a batch


class Finding(NamedTuple):
    """The result of a check: a row of the report without its name."""

    ok: bool | None
    found: str
    fix: str = ""


class LoadedHandler:
    """The handler in this process, called batch by batch."""

    def __init__(self, folder: Path, batch_size: int, envelope: str | None) -> None:
        self._folder, self._batch_size, self._envelope = folder, batch_size, envelope
        self._service: Any = None
        self._seeds = traces.Seeds()
        self._raised: BaseException | None = None

    def load(self) -> BaseException | None:
        """Loads the handler, also for a second time; returns the exception if it does not load."""
        try:
            self._service = worker.load_service(
                self._folder, "model", batch_size=self._batch_size, envelope=self._envelope
            )
        except BaseException as error:
            traceback.print_exc()
            return error
        handle = self._service._entry_point

        def noting(data: Any, context: Any) -> Any:
            try:
                return handle(data, context)
            except BaseException as error:
                self._raised = error
                raise

        self._service._entry_point = noting
        self._seeds.find_own(self._folder)
        return None

    def ask(self, *wires: Wire, seeded: bool = True) -> list[worker.Reply]:
        """Returns a reply to each request; an error quotes the handler's exception and its place."""
        (self._seeds.set if seeded else self._seeds.scatter)()
        self._raised = None
        batch = [wire.as_batch_item(str(i)) for i, wire in enumerate(wires)]
        try:
            replies = worker.predict(self._service, batch)
        except BaseException as error:  # it would end the worker, and each request would get a 500
            traceback.print_exc()
            message = f"Worker died: {short(error, self._folder)}"
            return [worker.Reply(500, {}, b"", message)] * len(wires)
        if self._raised is None:
            return replies
        cause, self._raised = short(self._raised, self._folder), None
        return [
            reply if reply.error is None else reply._replace(error=f"{reply.error}: {cause}")
            for reply in replies
        ]

    def metrics(self) -> set[str]:
        return {name for metrics in self._service.context.metrics.cache.values() for name in metrics}


class Checks:
    """The checks; `run` has them in the order of the report."""

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Any],
        files: traces.OpenedFiles,
        envelope: str | None,
        log: Path,
    ) -> None:
        self._folder, self._samples, self._opened, self._log = folder, samples, files, log
        handler = read_manifest(folder)["model"]["handler"]
        size = read_settings(folder).get("batchSize")
        self._batch_size: int | None = size if isinstance(size, int) else None
        self._single = size == 1 or envelope in _ONE_BODY or (size is None and handler in _ONE_AT_A_TIME)
        # What reads the request before the author's code does.
        self._reader = handler if is_built_in(handler) else envelope and f"The envelope {envelope}"
        self._handler = LoadedHandler(folder, self._batch_size or 1, envelope)
        self._wires = [wire_of(sample) for sample in samples]
        self._expected: list[worker.Reply] = []
        self._random = False

    def run(self) -> Iterator[Check]:
        checks = {
            "loads": self._loads,
            "answers the samples": self._answers,
            "same answer again": self._repeats,
            "same answer in a batch": self._batches,
            "every form of a body": self._forms,
            "bad requests": self._bad_bodies,
            "loads a second time": self._reloads,
            "memory": self._memory,
            "metrics": self._metrics,
            "files": self._files,
            "files left": self._files_left,
            "log": self._output,
            "threads and processes": self._threads,
            "time by batch size": self._time,
        }
        for name, check in checks.items():
            row = Check(name, *check())
            yield row
            if not row.ok and check in (self._loads, self._answers):
                return

    def _loads(self) -> Finding:
        started = time.monotonic()
        if error := self._handler.load():
            return Finding(False, short(error, self._folder), advice_on_loading(error))
        self._declared = self._handler.metrics()
        return Finding(True, f"in {time.monotonic() - started:.1f} s")

    def _answers(self) -> Finding:
        for number, wire in enumerate(self._wires, 1):
            [reply] = self._handler.ask(wire)
            if reply.status != 200:
                return Finding(False, f"sample {number}: {status_and_text(reply)}", advice_on_status(reply))
            if has_nan(reply):
                found = f"sample {number}: NaN or Infinity, which is not JSON"
                return Finding(False, found, "Answer null or a number: most clients can't read it.")
            self._expected.append(reply)
        self._files_before, self._threads_before = self._files_now(), threading.active_count()
        return Finding(True, f"{len(self._wires)} of {len(self._wires)}")

    def _is_expected(self, reply: worker.Reply, expected: worker.Reply) -> bool:
        """Returns whether it is that answer; of a random answer only the status is known."""
        return reply.status == 200 if self._random else same(reply, expected)

    def _other_answer(self) -> tuple[str, str] | None:
        """Sends each sample alone, the last one first; returns a wrong answer and the expected one."""
        for wire, expected in zip(reversed(self._wires), reversed(self._expected), strict=True):
            [reply] = self._handler.ask(wire)
            if not self._is_expected(reply, expected):
                return status_and_text(reply), text_of(expected)
        return None

    def _repeats(self) -> Finding:
        if layers := traces.layers_in_training():
            found = f"{', '.join(layers)} in training mode"
            return Finding(False, found, "Call model.eval() in `initialize`.")
        if other := self._other_answer() or self._other_answer():
            return Finding(
                False,
                f"{other[1]}, then {other[0]}",
                "The handler keeps something from earlier requests, or answers at random with a seed that "
                "can't be set. Set state in `initialize` alone, and leave times and ids out.",
            )
        replies = [self._handler.ask(self._wires[0], seeded=False)[0] for _ in range(_SOME)]
        self._random = not all(same(reply, self._expected[0]) for reply in replies)
        if self._random:
            found = "with the same seed; else the handler answers at random, and an order can't be checked"
            return Finding(None, found)
        return Finding(True, "also after other requests")

    def _batches(self) -> Finding:
        if self._single:
            return Finding(None, "not checked: each request comes alone (batchSize or envelope)")
        numbers = [*range(len(self._wires))]
        most = self._batch_size or max(2 * len(numbers), _SOME + 1)
        full = list(itertools.islice(itertools.cycle(numbers), most))
        orders = [numbers * 2, numbers[::-1] * 3, [0] * _SOME, [numbers[-1], *([0] * _SOME)], full]
        for order in orders:
            if fault := self._fault_in_batch(order[:most]):
                break
        if fault and self._batch_size is None:
            found = (
                f"{fault.found}; but TorchServe sends one request at a time, as no config gives a batchSize"
            )
            return Finding(None, found, f"Before you give a batchSize: {fault.fix}")
        if fault:
            return fault
        if self._random:
            seen = "status alone, as answers are random"
        elif all(same(reply, self._expected[0]) for reply in self._expected):
            seen = "all answers alike, so their order was not checked: give samples with other answers"
        else:
            seen = "in several orders"
        return Finding(True, f"up to {most} requests, {seen}")

    def _fault_in_batch(self, order: Sequence[int]) -> Finding | None:
        replies = self._handler.ask(*(self._wires[i] for i in order))
        if failed := next((reply for reply in replies if reply.status != 200), None):
            return Finding(
                False, f"{len(order)} requests: {status_and_text(failed)}", advice_on_status(failed)
            )
        for i, reply in zip(order, replies, strict=True):
            if not self._is_expected(reply, self._expected[i]):
                return Finding(
                    False,
                    f"alone {text_of(self._expected[i])}, in a batch of {len(order)} {text_of(reply)}",
                    "An answer depends on its neighbours, or the order changes. Return answers in the order "
                    "of the requests, mask padding, and call model.eval().",
                )
        return None

    def _forms(self) -> Finding:
        different: dict[str, str] = {}
        for sample, expected in zip(self._samples, self._expected, strict=True):
            for form, wire in forms(sample).items():
                [reply] = self._handler.ask(wire)
                if not self._is_expected(reply, expected):
                    different[form] = status_and_text(reply)
        if not different:
            return Finding(True, ", ".join(forms(self._samples[0])))
        if self._reader:
            fix = f"{self._reader} does so: have clients send the form that works."
            return Finding(None, grouped(different), fix)
        return Finding(
            False,
            grouped(different),
            'Take row.get("body") or row.get("data"), and decode what is bytes or str: clients send the same '
            "body with and without a content type, and as a form field.",
        )

    def _bad_bodies(self) -> Finding:
        broken: dict[str, str] = {}
        costly = []
        bodies = bad_bodies(self._samples)
        first, expected = self._wires[0], self._expected[0]
        for bad in bodies:
            [reply] = self._handler.ask(bad.wire)
            if reply.status >= 500 or (bad.refused and reply.status < 400):
                broken[bad.name] = status_and_text(reply)
            if not self._single and self._batch_size != 2:
                # Not in the middle, so that answers in another order are seen.
                others = [first] * min(2, (self._batch_size or _SOME) - 2)
                replies = self._handler.ask(first, bad.wire, *others)
                if not all(self._is_expected(reply, expected) for reply in replies[:1] + replies[2:]):
                    costly.append(bad.name)
        if not self._is_expected(self._handler.ask(first)[0], expected):
            costly.append("the next good request")
        if not broken and not costly:
            return Finding(True, f"{len(bodies)} kinds, each with a status of its own")
        if not broken and self._batch_size is None and costly != ["the next good request"]:
            found = f"in a batch, neighbours would lose their answers: {', '.join(costly)}"
            return Finding(None, found, "Answer each request by itself before you give a batchSize.")
        costs = f"their neighbours lose their answers: {', '.join(costly)}" if costly else ""
        found = "; ".join(part for part in (grouped(broken), costs) if part)
        if self._reader:
            fix = f"{self._reader} does so: keep batchSize at 1, or write a subclass that checks requests."
            return Finding(None, found, fix)
        return Finding(
            False,
            found,
            "Check each request by itself and answer a bad one with context.set_response_status(code=400, "
            "phrase='Bad Request', idx=…) and a sentence; give the model the others.",
        )

    def _reloads(self) -> Finding:
        fix = "`initialize` must not change the files, the settings or the modules that it reads."
        if error := self._handler.load():
            return Finding(False, short(error, self._folder), fix)
        if other := self._other_answer():
            return Finding(False, f"and answers {other[0]}, not {other[1]}", fix)
        return Finding(True, "and answers the same")

    def _memory(self) -> Finding:
        """Repeats a request in rounds; if memory grows in each of them, the handler keeps something."""
        requests = self._ask_again()
        python: list[int] = []
        process: list[int] = []
        nodes: list[int] = []
        tracemalloc.start()
        try:
            for _ in range(_ROUNDS):
                requests += self._ask_again()
                gc.collect()
                python.append(tracemalloc.get_traced_memory()[0])
                process.append(psutil.Process().memory_info().rss)
                nodes.append(traces.autograd_nodes())
                growth = max(_growth(python, _LEAK_PYTHON), _growth(process, _LEAK_PROCESS))
                graphs = _growth(nodes, 1)
                if not growth and not graphs:
                    break  # more rounds would change nothing
        finally:
            tracemalloc.stop()
        in_a_round = requests / (len(nodes) + 1)
        if graphs:
            found = "keeps tensors with what their gradients need, more with each request"
            fix = "Run the model in torch.inference_mode(), and keep .item() or .tolist()."
            return Finding(False, found, fix)
        if growth:
            return Finding(
                False,
                f"grows by about {growth / in_a_round:,.0f} bytes a request",
                "Something is kept: a list, a cache without a limit, tensors with gradients. Limit it, and "
                "run the model in torch.inference_mode().",
            )
        unseen = _LEAK_PROCESS / in_a_round / 1000
        found = f"steady over {requests} requests (tensors of under {unseen:,.1f} kB a request are not seen)"
        return Finding(True, found)

    def _ask_again(self) -> int:
        """Runs one round of the memory check, and returns how many times it sent the first sample."""
        deadline, count = time.monotonic() + _ROUND_SECONDS, 0
        while count < _ROUND_REQUESTS and time.monotonic() < deadline:
            self._handler.ask(self._wires[0])
            count += 1
        return count

    def _metrics(self) -> Finding:
        unknown = sorted(self._handler.metrics() - self._declared - _OF_TORCHSERVE)
        if not unknown:
            return Finding(True, "each is declared")
        found = f"not declared, so TorchServe drops them: {', '.join(unknown)}"
        fix = "Declare them in a metrics.yaml: in extra_files here, and as the server's metrics_config."
        return Finding(False if (self._folder / "metrics.yaml").is_file() else None, found, fix)

    def _files(self) -> Finding:
        fix = "open them in context.system_properties['model_dir']."
        if missing := self._opened.missing:
            found = f"reads files that are not in the archive: {', '.join(missing)}"
            return Finding(False, found, f"Add them to extra_files, and {fix}")
        if elsewhere := self._opened.elsewhere:
            found = f"reads files of this machine that the archive does not have: {', '.join(elsewhere)}"
            return Finding(None, found, f"Each server needs them too; or add them to extra_files, and {fix}")
        if relative := self._opened.relative:
            found = f"finds {', '.join(relative)} only because TorchServe's worker runs in the model's folder"
            return Finding(None, found, f"To be found everywhere, {fix}")
        return Finding(True, "Python opened the archive's alone")

    def _files_now(self) -> dict[str, tuple[int, int]]:
        temporary = traces.files_below(self._folder.parent / "tmp")
        return traces.files_below(self._folder) | {
            f"the temporary folder's {name}": stat for name, stat in temporary.items()
        }

    def _files_left(self) -> Finding:
        now = self._files_now()
        changed = [file for file, stat in self._files_before.items() if now.get(file) != stat]
        new = sorted(now.keys() - self._files_before.keys())
        fix = "Remove what a request needs no more; all workers of a model share its folder."
        some = f"{', '.join(new[:3])}{' …' if len(new) > 3 else ''}"
        if changed:
            return Finding(False, f"requests change or remove {', '.join(changed[:3])}", fix)
        if len(new) > _MANY:
            return Finding(False, f"requests leave {len(new)} files: {some}", fix)
        if new:
            return Finding(None, f"requests leave {some}", fix)
        if written := self._opened.written:
            return Finding(None, f"writes {', '.join(written)}", "Can a server's user write there?")
        return Finding(True, "none in the model's folder, none in the temporary folder")

    def _output(self) -> Finding:
        sys.stdout.flush()
        before = self._log.stat().st_size
        for wire in self._wires:
            self._handler.ask(wire)
        sys.stdout.flush()
        text = self._log.read_bytes()[before:].decode("utf-8", errors="replace")
        squeezed = "".join(text.split()).replace("'", '"')
        parts = [part.body.decode("utf-8", errors="replace") for wire in self._wires for part in wire.parts]
        bodies = ["".join(part.split()) for part in parts]
        quoted = [value for sample in self._samples for value in _texts(sample)]
        if any(body and body in squeezed for body in bodies) or any(value in text for value in quoted):
            return Finding(None, "has the bodies of requests", "Bodies may be private, and fill the disk.")
        if text:
            return Finding(None, f"{len(text) / len(self._wires):,.0f} characters a request")
        return Finding(True, "good requests write nothing")

    def _threads(self) -> Finding:
        if other := self._other_answer():
            found = f"{other[1]}, and {other[0]} after all these checks"
            return Finding(False, found, "Does a thread, or a count of requests, change the model?")
        threads = threading.active_count()
        processes = len(psutil.Process().children(recursive=True))
        if threads - self._threads_before > _MANY:
            return Finding(False, f"requests leave {threads - 1} threads", "End them, or use a pool.")
        if threads > 1 or processes:
            found = f"{threads - 1} threads, {processes} processes: what they do was not checked"
            return Finding(None, found)
        return Finding(True, "none of its own; the same answers at the end")

    def _time(self) -> Finding:
        most = 1 if self._single else self._batch_size or _TIMED[-1]
        seconds = {}
        for size in (size for size in _TIMED if size <= most):
            wires = list(itertools.islice(itertools.cycle(self._wires), size))
            times = []
            for _ in range(3):
                started = time.monotonic()
                self._handler.ask(*wires)
                times.append(time.monotonic() - started)
            seconds[size] = min(times)
        figures = ", ".join(f"{size}: {spent * 1000:.1f} ms" for size, spent in seconds.items())
        largest = max(seconds)
        if largest > 1:
            a_row = (seconds[largest] - seconds[1]) / (largest - 1)
            figures += f"; {a_row * 1000:.1f} ms for each row more"
            if a_row > max(seconds[1] / 2, 0.001):
                figures += ", so a batch saves little"
        return Finding(None, f"{figures} ({os.environ.get('OMP_NUM_THREADS')} threads)")


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a sample that are long enough to be known again."""
    if isinstance(value, str) and len(value) >= 6:
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.values()])
    elif isinstance(value, (list, tuple)):
        yield from (text for item in value for text in _texts(item))


def _growth(values: Sequence[int], minimum: int) -> float:
    """Returns the least growth from one value to the next; 0 if it is less than the minimum."""
    least = min((after - before for before, after in itertools.pairwise(values)), default=math.inf)
    return least if least >= minimum else 0


def main(job: Path) -> None:
    """Reads a job, makes the checks, and writes each row into the job's "rows" file as a line of JSON.

    The last line is null if all checks were made, or the traceback of a fault of the checks themselves. The
    process then ends at once, whatever threads the handler has.
    """
    library = str(Path(__file__).parents[2])
    if library in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path.remove(library)
        sys.path.append(library)  # last, so that the archive's imports are found as they are on the server
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)  # as in the worker
    logging.getLogger("ts").setLevel(logging.WARNING)
    task = pickle.loads(job.read_bytes())
    folder = Path(task["folder"])
    files = traces.OpenedFiles(task["sources"], folder.parent)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
