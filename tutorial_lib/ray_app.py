"""Serves a TorchServe archive, as it is, on Ray Serve: the same handler, addresses and answers.

    ray.init(); serve.run(build_app("model_store/BERTweetSentimentAnalysis.mar"))

A replica is what TorchServe calls a worker, in a process of its own, on any host of a Ray cluster.
What TorchServe's frontend does in Java (addresses, batches, error answers) is done here; what its
worker does in Python is done by `tutorial_lib.worker`. Behaviour is held to TorchServe 0.12.0 by
tests/test_ray_app.py, which asks both the same.

What does not carry over:

- tokens (put a gateway before Ray's proxies), registering and scaling over HTTP (deploy again), gRPC,
  workflows, explanations by OPTIONS, and reason phrases;
- of the metrics: CPU, memory, disk and GPU of the host (Ray's own metrics have them), and a handler's
  histograms; metrics.yaml is not read, so no metric of a handler is dropped for want of an entry in it;
- of a description: jobQueueStatus, since requests wait in Ray's proxies and not in one queue, and what
  is set for TorchServe's frontend alone;
- a /ping at any time: here it waits behind predictions. Load balancers ask the proxy's own /-/healthz.

`build_app` refuses or warns about settings of the archive that mean nothing here.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import functools
import io
import json
import logging
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import psutil
import yaml

from tutorial_lib import worker
from tutorial_lib.archive import archive_sha256, read_manifest
from tutorial_lib.errors import ArchiveError

try:
    import python_multipart
    import ray
    from python_multipart.exceptions import FormParserError
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response
except ImportError as error:
    raise ImportError(
        f"tutorial_lib.ray_app needs Ray Serve, and {error.name} is not installed. In the course's folder: "
        "pip install -c constraints.txt '.[ray]'"
    ) from error

MAX_REQUEST_SIZE = 6_553_500  # bytes; TorchServe's default
_DEFAULTS: dict[str, Any] = {
    "minWorkers": 1,
    "batchSize": 1,
    "maxBatchDelay": 100,
    "responseTimeout": 120,
    "startupTimeout": 120,
    "jobQueueSize": 100,
    "deviceType": "",
}
# Settings of model-config.yaml that change how TorchServe's frontend talks to a worker.
_REFUSED = ("continuousBatching", "sequenceBatching", "asyncCommunication", "parallelType", "torchrun")
# Settings that have no meaning here; the model is served all the same.
_IGNORED = {
    "deviceIds": "Ray chooses the GPUs",
    "useVenv": "replicas use the packages of their node",
    "useJobTicket": "Ray's proxies hold back what replicas can't take",
    "clientTimeoutInMills": "set request_timeout_s in Ray Serve's HTTP options",
    "maxRetryTimeoutInSec": "Ray starts a failed replica again without an end",
}
# What TorchServe's own handlers import and TorchServe does not bring.
_IMAGES = ("captum", "PIL", "torchvision")
_HANDLER_IMPORTS = {
    "text_classifier": ("captum",),
    **dict.fromkeys(("image_classifier", "image_segmenter", "object_detector"), _IMAGES),
}
# What TorchServe's frontend measures, and is measured here; a handler's own come beside.
_METRICS = {
    "ts_inference_requests_total": "counter",
    "ts_inference_latency_microseconds": "counter",
    "ts_queue_latency_microseconds": "counter",
    "Requests2XX": "counter",
    "Requests4XX": "counter",
    "Requests5XX": "counter",
    "QueueTime": "gauge",  # ms, of the last batch
    "WorkerLoadTime": "gauge",  # ms
    "WorkerThreadTime": "gauge",  # ms around the handler, of the last batch
}


@dataclass(frozen=True)
class Model:
    """What a replica has to know: the archive, and what its manifest and model-config say.

    Attributes:
        archive: the file's path, the same on every node.
        digest: its `archive_sha256`, so that each replica of a version serves the same bytes.
        name: what it is served as.
        version: the manifest's modelVersion.
        settings: TorchServe's keys: batchSize, maxBatchDelay (ms), responseTimeout (s), …
        max_request_size: in bytes.
    """

    archive: str
    digest: str
    name: str
    version: str
    settings: Mapping[str, Any]
    max_request_size: int


def build_app(
    mar: str | Path,
    *,
    name: str = "my_model",
    replicas: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    max_request_size: int = MAX_REQUEST_SIZE,
) -> serve.Application:
    """Makes a Ray Serve application of an archive, for `serve.run`.

    Run again with a new archive under the same application name, it is a rolling update: replicas of
    the new one start beside the old ones, which stop as the new ones are ready. If the new ones can't
    start, `serve.run` raises and the old ones stay. That takes room for replicas of both.

    Args:
        mar: the archive: a .mar, a .tar.gz or a folder. Every node has it at this path: in its image,
            or on a volume that all share. Each node unpacks it once.
        name: the model's name in /predictions/<name>.
        replicas: how many, or the least and the most between which Ray scales by load; None for the
            archive's minWorkers and maxWorkers.
        num_cpus: CPUs that Ray reserves for a replica; torch uses as many threads.
        num_gpus: GPUs for a replica; None for 1 where the archive's deviceType is "gpu", else 0.
        max_request_size: larger bodies are refused with a 413; in bytes.

    Raises:
        ArchiveError: the archive is missing, broken, or needs what only TorchServe has.
        ValueError: replicas is neither a number nor two.

    >>> build_app("missing.mar")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: There is no archive missing.mar. Build it with build_archive.
    """
    archive = Path(mar).absolute()
    manifest = read_manifest(mar)["model"]
    digest = archive_sha256(archive)
    with _unpacked(archive, digest) as folder:
        settings = _DEFAULTS | _settings(folder, manifest)
    _say_what_is_left_behind(archive, manifest, settings)
    _say_what_the_cluster_lacks(archive, settings, num_gpus)
    if num_gpus is None:
        num_gpus = 1 if settings["deviceType"] == "gpu" else 0
    least, most = _replica_bounds(replicas, settings)
    batch_size = int(settings["batchSize"])
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "max_ongoing_requests": 2 * batch_size,  # one batch in the handler, the next one gathering
        "max_queued_requests": int(settings["jobQueueSize"]),
        "max_surge_percent": 100,  # new replicas before old ones go: a broken archive does no harm
        "max_constructor_retry_count": 2,
        "graceful_shutdown_timeout_s": float(settings["responseTimeout"]),
    }
    if most > least:
        options["autoscaling_config"] = {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": batch_size,
        }
    else:
        options["num_replicas"] = least
    version = str(manifest.get("modelVersion", "1.0"))
    model = Model(str(archive), digest, name, version, settings, max_request_size)
    application: serve.Application = serve.deployment(name="Replica", **options)(Replica).bind(model)
    return application


def app(args: dict[str, Any]) -> serve.Application:
    """`build_app` for Ray's own command line and config files: `args` are its arguments.

    serve run tutorial_lib.ray_app:app mar=/models/my_model.mar name=my_model replicas=2

    The command line hands over texts, so numbers are read from them, and replicas=2,16 too.

    Raises:
        ValueError: an argument that `build_app` has not, or no number where one should be.

    >>> app({"mar": "model_store/my_model.mar", "num_cpus": "many"})
    Traceback (most recent call last):
    ValueError: num_cpus is 'many'. Give a number.
    """
    known: dict[str, Callable[[Any], Any]] = {"mar": str, "name": str, "replicas": _replicas}
    known |= {"num_cpus": float, "num_gpus": float, "max_request_size": int}
    if "mar" not in args or not args.keys() <= known.keys():
        raise ValueError(
            f"tutorial_lib.ray_app:app was given {', '.join(args) or 'nothing'}. Give mar=PATH, and of "
            f"{', '.join(list(known)[1:])} what you need."
        )
    return build_app(
        **{key: _argument(key, value, known[key]) for key, value in args.items() if value is not None}
    )


def _argument(name: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}. Give a number.") from None


def _replicas(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    numbers = [int(number) for number in value.strip("[]").split(",")]
    return numbers[0] if len(numbers) == 1 else numbers


# What the archive says


def _settings(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    if "configFile" not in manifest:
        return {}
    try:
        settings = yaml.safe_load((folder / manifest["configFile"]).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArchiveError(f"The archive's {manifest['configFile']} can't be read: {error}.") from error
    if not isinstance(settings or {}, dict):
        raise ArchiveError(f"The archive's {manifest['configFile']} has no settings (key: value). Mend it.")
    for key in ("maxWorkers", *_DEFAULTS):
        value, least = (settings or {}).get(key, 1), 0 if key in ("minWorkers", "maxBatchDelay") else 1
        if key != "deviceType" and (type(value) is not int or value < least):
            raise ArchiveError(f"The archive sets {key} to {value!r}. Give a whole number from {least} on.")
    return settings or {}


def _say_what_is_left_behind(archive: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    refused = [key for key in _REFUSED if settings.get(key)]
    if refused:
        raise ArchiveError(
            f"{archive.name} asks for {', '.join(refused)}, which only TorchServe's frontend gives. Take it "
            "out of the model config if the handler works without it; else stay with TorchServe."
        )
    for key, instead in _IGNORED.items():
        if key in settings:
            warnings.warn(f"{archive.name} sets {key}, which means nothing here: {instead}.", stacklevel=3)
    if "requirementsFile" in manifest:
        warnings.warn(
            f"{archive.name} has a {manifest['requirementsFile']}, which is not installed (nor is it by "
            "TorchServe's default): install it on every node, or in the cluster's image.",
            stacklevel=3,
        )
    missing = [name for name in _HANDLER_IMPORTS.get(manifest["handler"], ()) if find_spec(name) is None]
    if missing:
        warnings.warn(
            f"{archive.name} has TorchServe's handler {manifest['handler']}, which imports "
            f"{' and '.join(missing)}, not installed here. Without it on every node, replicas can't start.",
            stacklevel=3,
        )


def _say_what_the_cluster_lacks(archive: Path, settings: Mapping[str, Any], num_gpus: float | None) -> None:
    """Where it is known already: before `ray.init` there is no cluster to look at."""
    if not ray.is_initialized():
        return
    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    kind = settings["deviceType"]
    if gpus and num_gpus is None and not kind:
        warnings.warn(
            f"The cluster has GPUs, and {archive.name} asks for none, so it is served on CPUs. (TorchServe "
            "would take them.) Say num_gpus=1, or deviceType: gpu in the model config; or num_gpus=0.",
            stacklevel=3,
        )
    if not gpus and (num_gpus or (num_gpus is None and kind == "gpu")):
        warnings.warn(
            f"{archive.name} asks for a GPU, and the cluster has none: replicas wait until a node with one "
            "joins. Say num_gpus=0 to serve it on CPUs.",
            stacklevel=3,
        )


def _replica_bounds(replicas: int | tuple[int, int] | None, settings: Mapping[str, Any]) -> tuple[int, int]:
    if replicas is None:
        least = int(settings["minWorkers"])
        replicas = least, int(settings.get("maxWorkers", least))
    bounds = list(replicas) if isinstance(replicas, (tuple, list)) else [replicas, replicas]
    if [type(bound) for bound in bounds] != [int, int]:
        raise ValueError(f"replicas is {replicas!r}. Give a number, or the least and the most, as (2, 16).")
    least, most = bounds
    if not 0 < least <= most:
        raise ArchiveError(
            f"{least} to {most} replicas (minWorkers to maxWorkers) can't be: ask for at least 1, and no "
            "more at least than at most."
        )
    return least, most


# The archive on a node


@contextlib.contextmanager
def _unpacked(archive: Path, digest: str) -> Iterator[Path]:
    """The folder of the unpacked archive: one for a node, shared by all that are inside this context.

    Who uses a folder holds a shared lock on it, which ends with its process. Folders that nobody uses
    any more go when the next archive is unpacked or left.
    """
    root = _own_folder(Path(tempfile.gettempdir()) / f"ray-archives-{os.getuid()}")
    folder = root / digest
    with contextlib.ExitStack() as held:
        with _locked(root, fcntl.LOCK_EX):
            if not folder.exists():
                _unpack(archive, digest, folder)
            held.enter_context(_locked(folder, fcntl.LOCK_SH))
            _remove_unused(root)
        yield folder
    with _locked(root, fcntl.LOCK_EX):
        _remove_unused(root)


def _own_folder(folder: Path) -> Path:
    """Makes a folder that nobody else may write to: what lies in it is run."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ArchiveError(
            f"{folder} is there already, and is not a folder of this user alone (mode 0700), so others could "
            "change the code that runs from it. Remove it, or set TMPDIR to a folder of your own."
        )
    return folder


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _unpack(archive: Path, digest: str, folder: Path) -> None:
    here = socket.gethostname()
    if not archive.exists():
        raise ArchiveError(
            f"There is no archive {archive} on the node {here}. Put it at this path on every node: in the "
            "image, or on a volume that all share."
        )
    if archive_sha256(archive) != digest:
        raise ArchiveError(
            f"{archive} on the node {here} is not the archive that was deployed: it was replaced, or not "
            "copied to this node. Deploy again once every node has the same one."
        )
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as scratch:
        whole = Path(scratch) / "whole"
        try:
            if archive.is_dir():
                shutil.copytree(archive, whole)
            else:
                kind = "gztar" if archive.name.endswith(".tar.gz") else "zip"
                shutil.unpack_archive(archive, whole, kind)
            # The archiver puts all of a .tar.gz into a folder of the archive's name.
            [manifest] = [*whole.glob("MAR-INF"), *whole.glob("*/MAR-INF")][:1]
            whole = manifest.parent
        except (OSError, ValueError, shutil.ReadError, EOFError) as error:
            raise ArchiveError(f"{archive} can't be unpacked: {error}. Build it anew.") from error
        whole.rename(folder)


def _remove_unused(root: Path) -> None:
    for folder in root.iterdir():
        with contextlib.suppress(BlockingIOError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)


# One replica


class Refusal(Exception):
    """An answer that TorchServe's frontend gives itself."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message


def _not_found() -> Refusal:
    message = "Requested resource is not found, please refer to API document."
    return Refusal(404, "ResourceNotFoundException", message)


class Replica:
    """A worker with its own copy of the model, behind the addresses that TorchServe's frontend has."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._started = datetime.now(UTC)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._host = {"Level": "Host", "Hostname": socket.gethostname()}
        self._kinds = dict(_METRICS)
        self._values: dict[tuple[str, str], float] = collections.defaultdict(float)
        self._held = contextlib.ExitStack()
        folder = self._held.enter_context(_unpacked(Path(model.archive), model.digest))
        # As TorchServe starts a worker: in the model's folder, which imports come from first.
        sys.path.insert(0, str(folder))
        os.chdir(folder)
        logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
        gpus = ray.get_gpu_ids()
        load = functools.partial(
            worker.load_service,
            folder,
            model.name,
            gpu_id=0 if gpus else None,  # Ray shows a replica no GPUs but its own
            batch_size=int(model.settings["batchSize"]),
        )
        worker.on_metric(self._take)
        # All of the handler runs in one thread, as in a worker; requests are read and gathered meanwhile.
        self._thread = ThreadPoolExecutor(1)
        seconds, began = model.settings["startupTimeout"], time.monotonic()
        try:
            self._service = self._thread.submit(load).result(seconds)
        except TimeoutError:
            raise TimeoutError(
                f"The handler was not ready within startupTimeout, {seconds} s. Raise it in the model "
                "config, or see what `initialize` waits for."
            ) from None
        load_time = round((time.monotonic() - began) * 1e3)
        self._measure("WorkerLoadTime", {"WorkerName": self._id, **self._host}, load_time)
        self._batched = serve.batch(
            max_batch_size=int(model.settings["batchSize"]),
            batch_wait_timeout_s=model.settings["maxBatchDelay"] / 1000,
        )(self._predict)

    def __del__(self) -> None:
        self._held.close()

    async def __call__(self, request: Request) -> Response:
        """Answers one request as TorchServe's inference address would, and lists and describes the model."""
        id = str(uuid.uuid4())
        try:
            response = await self._answer(request, id)
        except Refusal as refusal:
            body = {"code": refusal.status, "type": refusal.kind, "message": refusal.message}
            response = _json(body, refusal.status)
        response.headers["x-request-id"] = id
        response.headers["cache-control"] = "no-cache; no-store, must-revalidate, private"
        if (kind := f"Requests{response.status_code // 100}XX") in _METRICS:
            self._measure(kind, self._host)
        return response

    async def _answer(self, request: Request, id: str) -> Response:
        match request.scope["path"].rstrip("/").split("/")[1:]:
            case ["ping", *_]:
                return _json({"status": "Healthy"})
            case ["predictions" | "explanations" as verb, name, *rest]:
                self._check_known(name, rest[0] if rest else None)
                extra = {"url_path": "/".join(rest[1:]), "explain": str(verb == "explanations")}
                return await self._infer(request, id, extra, rest[0] if rest else "default")
            case ["models", *rest] if len(rest) <= 2:
                return await self._describe(request.method, rest)
            case ["metrics"]:
                return Response(await self._metrics(), media_type="text/plain; version=0.0.4")
        raise _not_found()

    def _check_known(self, name: str, version: str | None) -> None:
        if name != self._model.name:
            raise Refusal(404, "ModelNotFoundException", f"Model not found: {name}")
        if version not in (None, self._model.version):
            message = f"Model version: {version} does not exist for model: {name}"
            raise Refusal(404, "ModelVersionNotFoundException", message)

    async def _infer(self, request: Request, id: str, extra: dict[str, str], version: str) -> Response:
        labels = {
            "model_name": self._model.name,
            "model_version": version,
            "hostname": self._host["Hostname"],
        }
        self._measure("ts_inference_requests_total", labels)
        began = time.monotonic()
        body = await request.body()
        if len(body) > self._model.max_request_size:
            return Response(status_code=413)
        item = worker.request(id, _parameters(request, body), {**request.headers, **extra})
        reply, queued = await self._batched((item, began))
        self._measure("ts_queue_latency_microseconds", labels, queued * 1e6)
        self._measure("ts_inference_latency_microseconds", labels, (time.monotonic() - began) * 1e6)
        if reply.error is None:
            return Response(reply.body, reply.status, reply.headers)
        status = 507 if reply.status == 413 else reply.status
        raise Refusal(status, "InternalServerException", reply.error)

    async def _predict(self, items: list[tuple[dict[str, Any], float]]) -> list[tuple[worker.Reply, float]]:
        """One batch through the handler; after what would end a worker, the replica ends too."""
        started = time.monotonic()
        self._measure("QueueTime", self._host, round((started - items[0][1]) * 1e3))
        loop = asyncio.get_running_loop()
        batch = [item for item, _ in items]
        work = loop.run_in_executor(self._thread, _predict_or_none, self._service, batch)
        try:
            replies = await asyncio.wait_for(work, self._model.settings["responseTimeout"])
        except TimeoutError:
            logging.error("No answer within responseTimeout, %s s.", self._model.settings["responseTimeout"])
            replies = None
        if replies is None:
            loop.call_later(1, os._exit, 1)  # the answers are on their way; then Ray starts a new replica
            replies = [worker.Reply(500, {}, b"", "Worker died.")] * len(batch)
        self._measure("WorkerThreadTime", self._host, round((time.monotonic() - started) * 1e3))
        return [(reply, started - began) for reply, (_, began) in zip(replies, items, strict=True)]

    async def _describe(self, method: str, rest: list[str]) -> Response:
        if method != "GET":
            message = "Requested method is not allowed, please refer to API document."
            raise Refusal(405, "MethodNotAllowedException", message)
        model, settings = self._model, self._model.settings
        if not rest:
            return _json({"models": [{"modelName": model.name, "modelUrl": Path(model.archive).name}]})
        self._check_known(rest[0], rest[1] if len(rest) > 1 and rest[1] != "all" else None)
        description = {
            "modelName": model.name,
            "modelVersion": model.version,
            "modelUrl": Path(model.archive).name,
            "runtime": "python",
            "minWorkers": settings["minWorkers"],
            "maxWorkers": settings.get("maxWorkers", settings["minWorkers"]),
            **{key: settings[key] for key in ("batchSize", "maxBatchDelay", "responseTimeout")},
            "startupTimeout": settings["startupTimeout"],
            "deviceType": "gpu" if ray.get_gpu_ids() else "cpu",
            "loadedAtStartup": True,
            "workers": [state["worker"] for state in await self._all_replicas()],
        }
        return _json([description])

    async def _metrics(self) -> str:
        """All replicas' metrics in Prometheus' text format: TorchServe's names, with one label more."""
        states = await self._all_replicas()
        lines = []
        for metric, kind in {name: kind for state in states for name, kind in state["kinds"].items()}.items():
            lines += [f"# HELP {metric} TorchServe's {kind}, by replica.", f"# TYPE {metric} {kind}"]
            lines += [
                f"{metric}{{{labels}}} {value}"
                for state in states
                for (name, labels), value in state["values"].items()
                if name == metric
            ]
        return "\n".join(lines) + "\n"

    def _measure(self, metric: str, labels: Mapping[str, str], value: float = 1) -> None:
        """Adds to a counter, or sets a gauge."""
        labels = {**labels, "replica": self._id}
        text = ",".join(f"{name}={json.dumps(label)}" for name, label in labels.items())
        before = self._values[metric, text] if self._kinds[metric] == "counter" else 0
        self._values[metric, text] = before + value

    def _take(self, metric: worker.Metric) -> None:
        """A metric of the handler, in place of TorchServe's frontend, which reads them from the log."""
        if metric.kind in ("counter", "gauge"):
            self._kinds.setdefault(metric.name, metric.kind)
            hostname = {"Hostname": self._host["Hostname"]}
            self._measure(metric.name, {**metric.labels, **hostname}, metric.value)

    async def _all_replicas(self) -> list[dict[str, Any]]:
        own = serve.get_replica_context()
        handle = serve.get_deployment_handle(own.deployment, own.app_name)
        states = await handle.broadcast("state").results_async(timeout_s=10, return_exceptions=True)
        return [state for state in states if isinstance(state, dict)]

    async def state(self) -> dict[str, Any]:
        """This replica as TorchServe describes a worker, and its metrics."""
        process = psutil.Process()
        return {
            "kinds": dict(self._kinds),
            "values": dict(self._values),
            "worker": {
                "id": self._id,
                "startTime": self._started.isoformat(timespec="milliseconds"),
                "status": "READY",
                "memoryUsage": process.memory_info().rss,
                "pid": process.pid,
                "gpu": bool(ray.get_gpu_ids()),
                "gpuUsage": "N/A",
            },
        }


def _predict_or_none(service: Any, batch: list[dict[str, Any]]) -> list[worker.Reply] | None:
    try:
        return worker.predict(service, batch)
    except BaseException:
        logging.exception("Backend worker process died.")
        return None


def _parameters(request: Request, body: bytes) -> list[dict[str, Any]]:
    """The parts of a request: the fields of a form, or the body; read as TorchServe reads them."""
    content_type = request.headers.get("content-type", "")
    mime, _, options = (part.strip() for part in content_type.partition(";"))
    if mime.lower() == "application/x-www-form-urlencoded":
        return [worker.parameter(name, "", value) for name, value in _urlencoded(body)]
    if mime.lower() == "multipart/form-data" and "boundary=" in options:
        return _multipart(content_type, body)
    return [worker.parameter("body", mime, body)]


def _urlencoded(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Fields as Netty's decoder in TorchServe reads them: a line end in a value ends them all."""
    *fields, last = body.split(b"&")
    for field in fields + ([last] if b"=" in last else []):  # it forgets a last one with no "="
        name, _, rest = field.partition(b"=")
        value, *more_lines = re.split(rb"\r?\n", rest, maxsplit=1)
        text = _unquoted(name).decode("utf-8", errors="replace")
        yield re.sub(r"[\r\t]", " ", text).replace("\n", "").strip(), _unquoted(value)
        if more_lines:
            return


def _unquoted(part: bytes) -> bytes:
    if re.search(rb"%(?![0-9A-Fa-f]{2})", part):
        message = f"Bad string: '{part.decode('utf-8', errors='replace')}'"
        raise Refusal(500, "ErrorDataDecoderException", message)
    return unquote_to_bytes(part.replace(b"+", b" "))


def _multipart(content_type: str, body: bytes) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []

    def add(name: bytes | None, kind: str | None, value: bytes | None) -> None:
        parts.append(worker.parameter((name or b"").decode("utf-8", "replace"), kind or "", value or b""))

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.content_type, file.file_object.read())

    with contextlib.suppress(FormParserError):  # the parts before a fault count
        python_multipart.parse_form(
            {"Content-Type": content_type.encode()},
            io.BytesIO(body),
            lambda field: add(field.field_name, None, field.value),
            on_file,
        )
    return parts


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, indent=2) + "\n", status, media_type="application/json")
