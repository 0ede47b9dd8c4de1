"""Answers at the addresses of TorchServe's frontend, for one model in a process; knows nothing of Ray."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tutorial_lib.extras import extra
from tutorial_lib.ray_app.batches import Batches, Job, NotBegun
from tutorial_lib.ray_app.bodies import read_body
from tutorial_lib.ray_app.metrics import Metrics, exposition
from tutorial_lib.worker import contract as worker
from tutorial_lib.worker.process import WorkerProcess

with extra("ray", "tutorial_lib.ray_app"):
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from tutorial_lib.ray_app.settings import Model  # that module imports Ray

# A route prefix that begins with one of these, as /predictions/my_model, is part of an address.
_ADDRESSES = ("explanations", "metrics", "models", "ping", "predictions")
_SECONDS_FOR_BODY = 30.0  # a request holds one of the replica's places while its body arrives


class HTTPError(Exception):
    """An error that TorchServe's frontend, not the handler, answers with."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message


class Frontend:
    """Does the work of TorchServe's frontend for one process that runs the handler.

    A server of several such processes overrides `all_states`, `has_gpu` and `end`.
    """

    has_gpu = False

    def __init__(self, model: Model, folder: Path, id: str) -> None:
        """Starts the process, and waits until the handler is loaded; called in the event loop.

        Args:
            model: from `read_model`.
            folder: the unpacked archive.
            id: identifies this process in descriptions and metrics.
        """
        self._model, self._id = model, id
        self._started, began = datetime.now(UTC), time.monotonic()
        self._host = {"Level": "Host", "Hostname": socket.gethostname()}
        self._metrics = Metrics({"replica": id})
        settings = model.settings
        self._process = WorkerProcess(
            folder,
            model.name,
            on_metric=self._take_metric,
            gpu_id=0 if self.has_gpu else None,
            batch_size=int(settings["batchSize"]),
            envelope=model.envelope,
        )
        self._batches = Batches(
            self._process,
            size=int(settings["batchSize"]),
            delay=settings["maxBatchDelay"] / 1000,
            silence=settings["responseTimeout"],
            on_batch=self._count_batch,
            on_end=self.end,
        )
        try:
            self._batches.loaded.result(settings["startupTimeout"])
        except TimeoutError:
            self._process.kill()
            raise TimeoutError(
                f"The handler was not ready within startupTimeout, {settings['startupTimeout']} s. Raise "
                "startupTimeout in the model config, or find out what `initialize` waits for."
            ) from None
        load_time = round((time.monotonic() - began) * 1e3)
        self._metrics.update("WorkerLoadTime", {"WorkerName": id, **self._host}, load_time)

    def end(self) -> None:
        """Called in the event loop after a fault that ends a TorchServe worker."""

    async def all_states(self) -> list[dict[str, Any]]:
        """Returns the `state` of each process that serves the model."""
        return [await self.state()]

    async def state(self) -> dict[str, Any]:
        """Describes the process as TorchServe describes a worker, and adds its metrics."""
        return {
            "metrics": self._metrics.state(),
            "worker": {
                "id": self._id,
                "startTime": self._started.isoformat(timespec="milliseconds"),
                "status": "READY",
                "memoryUsage": psutil.Process(self._process.pid).memory_info().rss,
                "pid": self._process.pid,
                "gpu": self.has_gpu,
                "gpuUsage": "N/A",
            },
        }

    def _count_batch(self, queued: float, took: float) -> None:
        self._metrics.update("QueueTime", self._host, round(queued * 1e3))
        self._metrics.update("WorkerThreadTime", self._host, round(took * 1e3))

    def _take_metric(self, metric: worker.Metric) -> None:
        if metric.kind in ("counter", "gauge"):
            labels = {**metric.labels, "Hostname": self._host["Hostname"]}
            self._metrics.update(metric.name, labels, metric.value, metric.kind)

    async def __call__(self, request: Request) -> Response:
        """Answers one request as TorchServe would, at its inference, management or metrics address."""
        id = str(uuid.UUID(int=random.getrandbits(128), version=4))  # unlike uuid4(), makes no system call
        try:
            response = await self._answer(request, id)
        except HTTPError as error:
            body = {"code": error.status, "type": error.kind, "message": error.message}
            response = _json(body, error.status)
        response.headers["x-request-id"] = id
        response.headers["cache-control"] = "no-cache; no-store, must-revalidate, private"
        self._metrics.count_answer(response.status_code, self._host)
        return response

    async def _answer(self, request: Request, id: str) -> Response:
        match _address(request.scope):
            case ["ping", *_]:
                return _json({"status": "Healthy"})
            case ["predictions" | "explanations" as verb, name, *rest]:
                self._check_known(name, rest[0] if rest else None)
                extra = {"url_path": "/".join(rest[1:]), "explain": str(verb == "explanations")}
                return await self._infer(request, id, extra, rest[0] if rest else "default")
            case ["models", *rest] if len(rest) <= 2:
                return await self._describe(request.method, rest)
            case ["metrics"]:
                states = [state["metrics"] for state in await self.all_states()]
                return Response(exposition(states), media_type="text/plain; version=0.0.4")
        message = "Requested resource is not found, please refer to API document."
        raise HTTPError(404, "ResourceNotFoundException", message)

    def _check_known(self, name: str, version: str | None) -> None:
        if name != self._model.name:
            raise HTTPError(404, "ModelNotFoundException", f"Model not found: {name}")
        if version not in (None, self._model.version):
            message = f"Model version: {version} does not exist for model: {name}"
            raise HTTPError(404, "ModelVersionNotFoundException", message)

    async def _infer(self, request: Request, id: str, extra: dict[str, str], version: str) -> Response:
        hostname = self._host["Hostname"]
        labels = {"model_name": self._model.name, "model_version": version, "hostname": hostname}
        self._metrics.update("ts_inference_requests_total", labels)
        began = time.monotonic()
        if self._batches.ended:
            raise _ask_again()
        try:
            body = await asyncio.wait_for(request.body(), _SECONDS_FOR_BODY)
        except TimeoutError:
            message = f"The body did not arrive within {_SECONDS_FOR_BODY:g} s."
            raise HTTPError(408, "RequestTimeout", message) from None
        if len(body) > self._model.max_request_size:
            return Response(status_code=413)
        try:
            parameters = read_body(request.headers.get("content-type", ""), body)
        except ValueError as error:
            raise HTTPError(500, "ErrorDataDecoderException", str(error)) from error
        job = Job(worker.request(id, parameters, {**request.headers, **extra}))
        self._batches.put(job)
        try:
            part = await job.parts.get()
        except asyncio.CancelledError:  # the client is gone
            job.answer.cancel()
            raise
        if part is not None:
            # TorchServe's worker marks a part by this header.
            headers = {name: value for name, value in part.headers.items() if name != "ts_stream_next"}
            return StreamingResponse(_stream(part, job), part.status, headers)
        try:
            reply, queued = await job.answer
        except NotBegun:
            raise _ask_again() from None
        self._metrics.update("ts_queue_latency_microseconds", labels, queued * 1e6)
        self._metrics.update("ts_inference_latency_microseconds", labels, (time.monotonic() - began) * 1e6)
        if reply.error is None:
            # HTTP allows no body with these statuses: a client would take the bytes for the next answer.
            body = b"" if reply.status in (204, 304) else reply.body
            return Response(body, reply.status, reply.headers)
        status = 507 if reply.status == 413 else reply.status
        raise HTTPError(status, "InternalServerException", reply.error)

    async def _describe(self, method: str, rest: list[str]) -> Response:
        if method != "GET":
            message = "Requested method is not allowed, please refer to API document."
            raise HTTPError(405, "MethodNotAllowedException", message)
        model, settings = self._model, self._model.settings
        if not rest:
            return _json({"models": [{"modelName": model.name, "modelUrl": model.archive.name}]})
        self._check_known(rest[0], rest[1] if len(rest) > 1 and rest[1] != "all" else None)
        description = {
            "modelName": model.name,
            "modelVersion": model.version,
            "modelUrl": model.archive.name,
            "runtime": "python",
            "minWorkers": settings["minWorkers"],
            "maxWorkers": settings.get("maxWorkers", settings["minWorkers"]),
            **{key: settings[key] for key in ("batchSize", "maxBatchDelay", "responseTimeout")},
            "startupTimeout": settings["startupTimeout"],
            "deviceType": "gpu" if self.has_gpu else "cpu",
            "loadedAtStartup": True,
            "workers": [state["worker"] for state in await self.all_states()],
        }
        return _json([description])


def _ask_again() -> HTTPError:
    """Returns the error for a request that the handler has not seen, so that it may be repeated."""
    message = "This replica ends after a fault of its handler, and Ray starts a new one. Ask again."
    return HTTPError(503, "ServiceUnavailableException", message)


def _address(scope: Mapping[str, Any]) -> list[str]:
    """Returns the parts of the path below the application's route prefix."""
    prefix, path = scope.get("root_path", ""), scope["path"]
    if prefix.split("/")[1:2] not in [[address] for address in _ADDRESSES]:
        path = path.removeprefix(prefix)
    parts: list[str] = path.rstrip("/").split("/")[1:]
    return parts


async def _stream(part: worker.Reply, job: Job) -> AsyncIterator[bytes]:
    """Yields a streamed answer: the parts as the handler sends them, then what it returns at the end."""
    sent = 0
    more: worker.Reply | None = part
    while more is not None:
        sent += len(more.body)
        yield more.body
        more = await job.parts.get()
    reply, _ = await job.answer
    if reply.error is not None:
        raise RuntimeError(f"The answer ends before its last part: {reply.error}")
    yield reply.body[sent:]


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, indent=2) + "\n", status, media_type="application/json")
