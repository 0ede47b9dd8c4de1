"""Tests handlers without a server: `run_handler` runs one batch, `check_handler` runs all checks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tutorial_lib import worker
from tutorial_lib.archive import lay_out
from tutorial_lib.handler_report import HandlerReport, check_handler

__all__ = ["HandlerAnswer", "HandlerReport", "check_handler", "run_handler"]


class HandlerAnswer(NamedTuple):
    """The answer that one request of a batch would get.

    Attributes:
        status: HTTP status code.
        body: the answer's JSON, or its text if it is not JSON.
    """

    status: int
    body: Any


def run_handler(
    handler: str | Path,
    requests: Sequence[dict[str, Any]],
    *,
    model_dir: str | Path | None = None,
    model_file: str | Path | None = None,
    serialized_file: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    config_file: str | Path | None = None,
    gpu_id: int | None = None,
    envelope: str | None = None,
) -> list[HandlerAnswer]:
    """Runs a batch of requests through a handler as TorchServe's worker does, with no server.

    The files are laid out as an unpacked archive, and the handler runs in that folder. Every module of the
    archive is imported anew, the archive's metrics.yaml declares the metrics, and the parts of a streamed
    answer are joined. The whole process works in that folder meanwhile, so run one handler at a time.

    Args:
        handler: the Python file, or the name of one of TorchServe's own handlers ("image_classifier").
        requests: in the form that a handler gets: [{"body": {"input": ["a text"]}}, …].
        model_dir, model_file, serialized_file, extra_files, config_file: as for `build_archive`.
        gpu_id: the GPU that the worker would be given; None for the CPU.
        envelope: the server's `service_envelope` setting, as "json"; None for none.

    Returns:
        one answer for each request.

    Raises:
        ArchiveError: a file is missing, or two have one name.
        Exception: whatever the handler raises in `initialize`.

    >>> from tutorial_lib.export import EMBEDDED
    >>> run_handler("handler.py", [{"body": {"input": []}}, {"body": 7}], model_dir=EMBEDDED)[0]
    HandlerAnswer(status=200, body=[])
    """
    with tempfile.TemporaryDirectory(prefix="handler-") as folder:
        unpacked = Path(folder).resolve()
        lay_out(
            unpacked,
            handler=handler,
            model_dir=model_dir,
            model_file=model_file,
            serialized_file=serialized_file,
            extra_files=extra_files,
            config_file=config_file,
        )
        with worker.in_model_folder(unpacked):
            service = worker.load_service(
                unpacked, "model", gpu_id=gpu_id, batch_size=len(requests), envelope=envelope
            )
            batch = [worker.request(str(i), _parameters(r)) for i, r in enumerate(requests)]
            return [_answer(reply) for reply in worker.predict(service, batch)]


def _parameters(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "contentType": "", "value": value} for name, value in request.items()]


def _answer(reply: worker.Reply) -> HandlerAnswer:
    if reply.error is not None:
        return HandlerAnswer(reply.status, reply.error)
    try:
        return HandlerAnswer(reply.status, json.loads(reply.body))
    except ValueError:
        return HandlerAnswer(reply.status, reply.body.decode("utf-8", errors="replace"))
