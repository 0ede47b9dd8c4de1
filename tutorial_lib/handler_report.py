"""Checks a handler before it is served: what breaks in production, found without a server."""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutorial_lib.archive import lay_out, unpack
from tutorial_lib.errors import ArchiveError
from tutorial_lib.report import Check, Report

_MAX_SAMPLES = 10
_LIBRARY = Path(__file__).parent.parent
# The library comes last on the path, so that the archive's modules are found as they are on the server.
_MAIN = (
    "import pathlib, sys; sys.path.append(sys.argv[1]); "
    "from tutorial_lib.handler_checks import main; main(pathlib.Path(sys.argv[2]))"
)


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
    handler: str | Path,
    samples: Sequence[Any],
    *,
    model_dir: str | Path | None = None,
    model_file: str | Path | None = None,
    serialized_file: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    config_file: str | Path | None = None,
    envelope: str | None = None,
    timeout: float = 300,
) -> HandlerReport:
    """Runs a handler as TorchServe's worker does, in a process of its own, and reports what would go wrong.

    In that process torch computes with one thread, unless the handler or OMP_NUM_THREADS asks for more.

    The checks find:

    - imports and files that are missing;
    - an answer that depends on its neighbours in the batch or on earlier requests;
    - too few or too many answers, or answers in another order;
    - a bad request that makes others lose their answers, or that gets a 200 or a 5xx;
    - bodies that are accepted in one form only, and answers that TorchServe can't encode;
    - a second `initialize` that fails;
    - memory that grows;
    - metrics that no file declares.

    Args:
        handler: a Python file, the name of one of TorchServe's own handlers, or an archive.
        samples: one to ten good request bodies, of which two or three are enough: JSON values, texts (str),
            or bytes such as a PNG.
        model_dir, model_file, serialized_file, extra_files, config_file: as for `build_archive`; leave
            them out for an archive. The batchSize in the model config says whether requests come in batches:
            1 means that they do not.
        envelope: the server's `service_envelope` setting, as "json"; None for none.
        timeout: seconds that all checks may take.

    Returns:
        the report; its attribute ok is False if a check failed.

    Raises:
        ArchiveError: a file is missing, or two have one name.
        ValueError: there are no samples or too many, or one is neither JSON, nor text, nor bytes.

    >>> from tutorial_lib.export import EMBEDDED
    >>> report = check_handler("handler.py", [{"input": ["great day", "meh"]}], model_dir=EMBEDDED)
    >>> report.ok
    True
    """
    encoded = [_encode(sample) for sample in _check_samples(samples)]
    with tempfile.TemporaryDirectory(prefix="check-handler-") as scratch:
        work = Path(scratch).resolve()
        options = {"model_dir": model_dir, "model_file": model_file, "serialized_file": serialized_file}
        if _is_archive(handler):
            if any(options.values()) or extra_files or config_file:
                raise ArchiveError(f"{handler} is an archive, and holds its files. Give no others with it.")
            unpack(handler, work / "model")
        else:
            lay_out(
                work / "model",
                handler=handler,
                model_dir=model_dir,
                model_file=model_file,
                serialized_file=serialized_file,
                extra_files=extra_files,
                config_file=config_file,
            )
        job = {
            "folder": str(work / "model"),
            "rows": str(work / "rows"),
            "samples": encoded,
            "envelope": envelope,
            "sources": [str(Path(handler).resolve().parent), str(Path.cwd())],
        }
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        ended, log = _run(work, timeout)
        rows = [Check(*json.loads(line)) for line in (work / "rows").read_text(encoding="utf-8").splitlines()]
    return HandlerReport((*rows, *ended), log)


def _check_samples(samples: Sequence[Any]) -> list[Any]:
    if isinstance(samples, (str, bytes, dict)):
        raise ValueError(f"samples is a {type(samples).__name__}. Give a list of good request bodies.")
    if not 1 <= len(samples) <= _MAX_SAMPLES:
        raise ValueError(f"There are {len(samples)} samples. Give one to {_MAX_SAMPLES} good request bodies.")
    return [*samples]


def _encode(sample: Any) -> dict[str, Any]:
    if isinstance(sample, (bytes, bytearray)):
        return {"bytes": base64.b64encode(sample).decode()}
    try:
        json.dumps(sample, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A sample is neither JSON, nor text, nor bytes: {error}. Give the body that a client sends."
        ) from error
    return {"value": sample}


def _is_archive(handler: str | Path) -> bool:
    path = Path(handler)
    return path.name.endswith((".mar", ".tar.gz")) or path.is_dir()


def _run(work: Path, timeout: float) -> tuple[list[Check], str]:
    """Runs the checks in a process; returns a failed check if the process did not finish, and its output."""
    (work / "rows").touch()
    with (work / "log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(_LIBRARY), str(work / "job.json")],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                "OMP_NUM_THREADS": "1",
                **os.environ,
            },  # else torch's threads of several checks at once would compete
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        text = log.read().decode("utf-8", errors="replace")
    if status == 0:
        return [], text
    if status is None:
        fix = "Is a request hanging? Give timeout= more seconds if the model is that slow."
        return [Check("ends in time", False, f"no end after {timeout:g} s", fix)], text
    last = (text.strip().splitlines() or ["no message"])[-1]
    fix = "The handler ended its process, which would end TorchServe's worker. report.log has what it wrote."
    return [Check("stays alive", False, f"exit status {status}: {last}", fix)], text


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
    except (OSError, ValueError, ArchiveError) as error:
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
        return text
