"""Checks a handler before it is served: what breaks in production, found without a server."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from tutorial_lib.archives.building import lay_out, read_settings, unpack
from tutorial_lib.archives.model_files import FilesAroundHandler, ModelFiles
from tutorial_lib.cores import usable_cores
from tutorial_lib.errors import ArchiveError, TutorialError
from tutorial_lib.extras import need
from tutorial_lib.handlers.bodies import Request, wire_of
from tutorial_lib.report import Check, Report

_MAX_SAMPLES = 10
_LIBRARY = str(Path(__file__).parents[2])


@dataclass(frozen=True, repr=False)
class HandlerReport(Report):
    """The result of `check_handler`: a table in a notebook, text in a terminal.

    Attributes:
        log: the output of the handler and of TorchServe's code, with tracebacks.

    In a test suite: `assert report.ok, report`.

    >>> print(HandlerReport((Check("loads", True, "in 0.1 s"),)))
    [OK]   loads  in 0.1 s
    """

    log: str = ""


def check_handler(
    handler: str | Path | ModelFiles,
    samples: Sequence[Any],
    *,
    envelope: str | None = None,
    timeout: float = 300,
    **keywords: Unpack[FilesAroundHandler],
) -> HandlerReport:
    """Runs a handler as TorchServe's worker does, in a process of its own, and reports what would go wrong.

    torch computes with as many threads as in a worker of `TorchServe`: the cores divided by the model
    config's minWorkers, unless OMP_NUM_THREADS or MKL_NUM_THREADS is set. The checks find:

    - imports and files that are missing, and files that only this machine has;
    - an answer that depends on its neighbours in the batch or on earlier requests;
    - too few or too many answers, or answers in another order;
    - a bad request that makes others lose their answers, or that gets a 200 or a 5xx;
    - bodies that are accepted in one form only, and answers that TorchServe can't encode;
    - a second `initialize` that fails;
    - memory that grows, and files and threads that requests leave;
    - metrics that no file declares.

    If no model config gives a batchSize, TorchServe sends one request at a time. What goes wrong in a batch
    is then information.

    Args:
        handler: the files; or an archive; or the handler alone, a Python file or the name of one of
            TorchServe's own, with the other fields of `ModelFiles` as keywords.
        samples: one to ten good request bodies, best two or three with different answers: JSON values,
            texts (str), or bytes such as a PNG; or `tutorial_lib.testing.Request`, with parts or headers.
        envelope: the server's `service_envelope` setting, as "json"; None for none.
        timeout: seconds that all checks may take.
        keywords: as for `ModelFiles`; none for an archive. The batchSize in the config_file says whether
            requests come in batches: 1 means that they do not.

    Returns:
        the report; its attribute ok is False if a check failed.

    Raises:
        ArchiveError: a file is missing, or two have one name.
        PackageMissing: TorchServe or torch is not installed.
        ValueError: there are no samples or too many, or one is neither JSON, nor text, nor bytes.

    >>> from tutorial_lib.export import EMBEDDED
    >>> report = check_handler("handler.py", [{"input": ["great day", "meh"]}], model_dir=EMBEDDED)
    >>> report.ok
    True
    """
    _require_samples(samples)
    need("serving", "check_handler", "ts", "torch")
    with tempfile.TemporaryDirectory(prefix="check-handler-") as scratch:
        work = Path(scratch).resolve()
        if not isinstance(handler, ModelFiles) and _is_archive(handler):
            if any(keywords.values()):
                raise ArchiveError(f"{handler} is an archive, and holds its files. Give no others with it.")
            unpack(handler, work / "model")
            source = Path(handler)
        else:
            files = ModelFiles.of(handler, keywords)
            lay_out(work / "model", files)
            source = Path(files.handler)
        job = {
            "folder": str(work / "model"),
            "rows": str(work / "rows"),
            "log": str(work / "log"),
            "samples": [*samples],
            "envelope": envelope,
            "sources": [str(source.resolve().parent), str(Path.cwd())],
        }
        (work / "job").write_bytes(pickle.dumps(job))
        status, log = _run(work, timeout)
        lines = (work / "rows").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    if found and isinstance(found[-1], str):
        raise TutorialError(f"check_handler itself failed; the handler is not at fault:\n{found[-1]}")
    rows = [Check(*row) for row in found if row is not None]
    if None not in found:
        rows.append(_end(status, log, timeout))
    return HandlerReport(tuple(rows), log)


def _require_samples(samples: Sequence[Any]) -> None:
    """Raises ValueError if they are no list of requests that a client can send."""
    if isinstance(samples, (str, bytes, dict, Request)):
        raise ValueError(f"samples is a {type(samples).__name__}. Give a list of good request bodies.")
    if not 1 <= len(samples) <= _MAX_SAMPLES:
        raise ValueError(f"There are {len(samples)} samples. Give one to {_MAX_SAMPLES} good request bodies.")
    for sample in samples:
        wire_of(sample)


def _is_archive(handler: str | Path) -> bool:
    path = Path(handler)
    return path.name.endswith((".mar", ".tar.gz")) or path.is_dir()


def _run(work: Path, timeout: float) -> tuple[int | None, str]:
    """Runs the checks in a process; returns its exit status (None: it was too slow) and its output."""
    (work / "rows").touch()
    (work / "tmp").mkdir()
    with (work / "log").open("w+b") as log:
        # -P: modules are not looked for in the working directory.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tutorial_lib.handlers.checks", str(work / "job")],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_threads(work / "model"), **os.environ, **_path(), "TMPDIR": str(work / "tmp")},
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            if hasattr(os, "killpg"):  # the handler's own processes may live on
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return status, log.read().decode("utf-8", errors="replace")


def _path() -> dict[str, str]:
    """Returns the variable with which a new process finds this library, if it is not installed."""
    if _LIBRARY in (*site.getsitepackages(), site.getusersitepackages()):
        return {}
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{given}{os.pathsep}{_LIBRARY}" if given else _LIBRARY}


def _threads(folder: Path) -> dict[str, str]:
    """Returns the variable that limits the threads as in a worker of `TorchServe`."""
    if "MKL_NUM_THREADS" in os.environ:
        return {}
    workers = read_settings(folder).get("minWorkers")
    workers = workers if isinstance(workers, int) and workers > 0 else 1
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // workers))}


def _end(status: int | None, log: str, timeout: float) -> Check:
    """Returns the row of a process that ended before all checks were made."""
    if status is None:
        fix = "Is a request hanging? Give timeout= more seconds if the model is that slow."
        return Check("ends in time", False, f"no end after {timeout:g} s", fix)
    last = (log.strip().splitlines() or ["no message"])[-1]
    ended = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
    fix = "The handler ended its process, which would end TorchServe's worker. report.log has what it wrote."
    return Check("stays alive", False, f"{ended}: {last}", fix)


def main(arguments: Sequence[str]) -> int:
    """Runs `python -m tutorial_lib check-handler HANDLER SAMPLE …`; returns 1 if a check failed.

    >>> main(["check-handler"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    parser = argparse.ArgumentParser(
        prog="python -m tutorial_lib check-handler", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("handler", help="a Python file, one of TorchServe's own handlers, or an archive")
    parser.add_argument(
        "samples",
        nargs="+",
        metavar="SAMPLE",
        help="a good request body: JSON, a text, or @FILE (.json, .png, …)",
    )
    for name in ("model-dir", "model-file", "serialized-file", "config-file"):
        parser.add_argument(f"--{name}", help="as for build_archive")
    parser.add_argument("--envelope", help="the server's service_envelope setting, as json")
    parser.add_argument("--extra-files", nargs="+", default=[], help="as for build_archive")
    options = vars(parser.parse_args(arguments[1:]))
    try:
        samples = [_read_sample(sample) for sample in options.pop("samples")]
        report = check_handler(samples=samples, **options)
    except (OSError, ValueError, TutorialError) as error:
        parser.error(str(error))
    print(report)
    if not report.ok:
        print(f"\nWhat the handler wrote:\n{report.log[-5000:]}", file=sys.stderr)
    return 0 if report.ok else 1


def _read_sample(text: str) -> Any:
    if text.startswith("@"):
        content = Path(text[1:]).read_bytes()
        return json.loads(content) if text.endswith(".json") else content
    try:
        return json.loads(text)
    except ValueError:
        if os.path.isfile(text):  # noqa: PTH113  (False for a text that is no path)
            raise ValueError(f"The sample {text} is the name of a file. Did you mean @{text}?") from None
        return text
