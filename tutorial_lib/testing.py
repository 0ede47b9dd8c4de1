"""Tries handlers without a server."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tutorial_lib import worker


class HandlerAnswer(NamedTuple):
    """What one request of a batch would get.

    Attributes:
        status: HTTP status code.
        body: the answer's JSON, or its text where it is not JSON.
    """

    status: int
    body: Any


def run_handler(
    handler: str | Path,
    requests: Sequence[dict[str, Any]],
    *,
    model_dir: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    config_file: str | Path | None = None,
    gpu_id: int | None = None,
) -> list[HandlerAnswer]:
    """Runs a batch of requests through a handler file as TorchServe's worker does, with no server.

    The files are laid out as an unpacked archive, and `tutorial_lib.worker` does as the worker does.

    Args:
        handler: the Python file.
        requests: as a handler gets them, [{"body": {"input": ["a text"]}}, …].
        model_dir, extra_files, config_file: as for `build_archive`.
        gpu_id: the GPU that the worker would be given; None for the CPU.

    Returns:
        one answer for each request.

    Raises:
        Exception: whatever the handler raises in `initialize`.

    >>> from tutorial_lib.export import EMBEDDED
    >>> run_handler("handler.py", [{"body": {"input": []}}, {"body": 7}], model_dir=EMBEDDED)[0]
    HandlerAnswer(status=200, body=[])
    """
    with tempfile.TemporaryDirectory(prefix="handler-") as folder:
        unpacked = Path(folder)
        _lay_out(unpacked, Path(handler), model_dir, extra_files, config_file)
        return _predict(unpacked, Path(handler), requests, gpu_id)


def _lay_out(
    folder: Path,
    handler: Path,
    model_dir: str | Path | None,
    extra_files: Sequence[str | Path],
    config_file: str | Path | None,
) -> None:
    files = [*Path(model_dir).iterdir()] if model_dir else []
    files += [Path(file) for file in extra_files] + ([Path(config_file)] if config_file else [])
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    shutil.copyfile(handler, folder / handler.name)
    model: dict[str, str] = {"modelName": "model", "modelVersion": "1.0", "handler": handler.name}
    if (folder / "model.safetensors").exists():
        model["serializedFile"] = "model.safetensors"
    if config_file:
        model["configFile"] = Path(config_file).name
    (folder / "MAR-INF").mkdir()
    manifest = {"runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")


def _predict(
    folder: Path, handler: Path, requests: Sequence[dict[str, Any]], gpu_id: int | None
) -> list[HandlerAnswer]:
    # The worker imports the handler by its name, from the unpacked archive, in a process of its own.
    sys.path.insert(0, str(folder))
    earlier = sys.modules.pop(handler.stem, None)
    importlib.invalidate_caches()
    try:
        service = worker.load_service(folder, "model", gpu_id=gpu_id, batch_size=len(requests))
        batch = [worker.request(str(i), _parameters(r)) for i, r in enumerate(requests)]
        return [_answer(reply) for reply in worker.predict(service, batch)]
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(handler.stem, None)
        if earlier is not None:
            sys.modules[handler.stem] = earlier


def _parameters(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "contentType": "", "value": value} for name, value in request.items()]


def _answer(reply: worker.Reply) -> HandlerAnswer:
    if reply.error is not None:
        return HandlerAnswer(reply.status, reply.error)
    try:
        return HandlerAnswer(reply.status, json.loads(reply.body))
    except ValueError:
        return HandlerAnswer(reply.status, reply.body.decode("utf-8", errors="replace"))
