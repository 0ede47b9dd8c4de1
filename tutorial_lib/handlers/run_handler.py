"""Runs one batch of requests through a handler, without a server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from tutorial_lib.archives.building import lay_out
from tutorial_lib.archives.model_files import FilesAroundHandler, ModelFiles
from tutorial_lib.extras import need
from tutorial_lib.handlers.bodies import Request, wire_of
from tutorial_lib.worker import contract as worker


class HandlerAnswer(NamedTuple):
    """The answer that one request of a batch would get.

    Attributes:
        status: HTTP status code.
        body: the answer's JSON; its text if it is not JSON; its bytes if it is no text either, as a picture.
    """

    status: int
    body: Any


def run_handler(
    handler: str | Path | ModelFiles,
    requests: Sequence[Any],
    *,
    gpu_id: int | None = None,
    envelope: str | None = None,
    **keywords: Unpack[FilesAroundHandler],
) -> list[HandlerAnswer]:
    """Runs a batch of requests through a handler as TorchServe's worker does, with no server.

    Every module of the archive is imported anew, the archive's metrics.yaml declares the metrics, and the
    parts of a streamed answer are joined. The whole process works in the folder of the unpacked archive
    meanwhile, so run one handler at a time.

    Args:
        handler: the files; or the handler alone, a Python file or the name of one of TorchServe's own, with
            the other fields of `ModelFiles` as keywords.
        requests: a list. Each is a body (a JSON value, a text, or bytes), a `Request`, or what a handler
            gets: a dict with "body" or "data" alone, as [{"body": {"input": ["a text"]}}, …], or a dict with
            bytes by name.
        gpu_id: the GPU that the worker would be given; None for the CPU.
        envelope: the server's `service_envelope` setting, as "json"; None for none.
        keywords: model_dir, model_file, serialized_file, extra_files, config_file: as for `ModelFiles`.

    Returns:
        one answer for each request.

    Raises:
        ArchiveError: a file is missing, or two have one name.
        PackageMissing: TorchServe is not installed.
        ValueError: `requests` is no list of requests, or has none.
        Exception: whatever the handler raises in `initialize`.

    >>> from tutorial_lib.export import EMBEDDED
    >>> run_handler("handler.py", [{"body": {"input": []}}, {"body": 7}], model_dir=EMBEDDED)[0]
    HandlerAnswer(status=200, body=[])
    """
    need("serving", "run_handler", "ts", "torch")
    batch = _batch(requests)
    with tempfile.TemporaryDirectory(prefix="handler-") as folder:
        unpacked = Path(folder).resolve()
        lay_out(unpacked, ModelFiles.of(handler, keywords))
        with worker.in_model_folder(unpacked):
            service = worker.load_service(
                unpacked, "model", gpu_id=gpu_id, batch_size=len(batch), envelope=envelope
            )
            return [_answer(reply) for reply in worker.predict(service, batch)]


def _batch(requests: Sequence[Any]) -> list[dict[str, Any]]:
    if isinstance(requests, (str, bytes, bytearray, dict, Request)) or not isinstance(requests, Sequence):
        raise ValueError(
            f"requests is a {type(requests).__name__}. "
            'Give a list of requests, as [{"x": [1, 2]}] or ["a text"].'
        )
    if not requests:
        raise ValueError('There are no requests. Give a list with at least one, as [{"x": [1, 2]}].')
    return [_request(str(number), request) for number, request in enumerate(requests)]


def _request(id: str, request: Any) -> dict[str, Any]:
    if isinstance(request, dict) and (
        request.keys() <= {"body", "data"}
        or any(isinstance(value, (bytes, bytearray)) for value in request.values())
    ):
        parts = [{"name": name, "contentType": "", "value": value} for name, value in request.items()]
        return worker.request(id, parts)
    return wire_of(request).as_batch_item(id)


def _answer(reply: worker.Reply) -> HandlerAnswer:
    if reply.error is not None:
        return HandlerAnswer(reply.status, reply.error)
    for read in (json.loads, bytes.decode):
        try:
            return HandlerAnswer(reply.status, read(reply.body))
        except (ValueError, RecursionError):
            continue
    return HandlerAnswer(reply.status, reply.body)
