"""Runs TorchServe's worker without its sockets: loads an unpacked archive, and answers batches of requests.

TorchServe's own Python package does the work: its loader imports the handler, and its `Service.predict` calls
the handler and turns the result, or an exception, into statuses and bodies.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from tutorial_lib.archives.building import python_files, read_manifest
from tutorial_lib.extras import extra

# TorchServe's worker imports these before an archive's modules, so a file of such a name is never used.
_LOADED_BEFORE = {*sys.stdlib_module_names, "numpy", "packaging", "psutil", "torch", "ts", "yaml"}


class Reply(NamedTuple):
    """The reply to one request of a batch."""

    status: int
    headers: dict[str, str]  # those that the handler set
    body: bytes  # what the handler returned, encoded; of a streamed answer all parts, as a client reads them
    error: str | None  # TorchServe's message if the whole batch failed ("Prediction failed")
    chunks: tuple[bytes, ...] = ()  # the parts of a streamed answer before the last one


class Headers(dict[str, Any]):
    """A request's headers; a look-up ignores the case of the name.

    TorchServe passes on names as the client spelled them; a proxy may have changed them to lower case.
    """

    def __init__(self, headers: Mapping[str, Any]) -> None:
        super().__init__({name.lower(): value for name, value in headers.items()})

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class Metric(NamedTuple):
    """One update of a metric by a handler."""

    name: str
    kind: str  # "counter", "gauge" or "histogram"
    labels: dict[str, str]
    value: float  # the amount that a counter grows by, or the new value of a gauge


# ts/metrics/caching_metric.py writes "[METRICS]name.unit:1|#label:a,other:b|#type:COUNTER|#hostname:…".
_METRIC = re.compile(
    r"\[METRICS](?P<name>\w+)\.[^:]*:(?P<value>[^|]+)\|#(?P<labels>[^|]*)\|#type:(?P<kind>\w+)"
)


def on_metric(take: Callable[[Metric], None]) -> None:
    """Passes each metric of a handler to `take` from now on, instead of writing it to this process's log.

    In TorchServe, a handler's metrics are lines in the worker's log, which the frontend reads.
    """

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := _METRIC.match(record.getMessage()):
                labels = dict(pair.partition(":")[::2] for pair in found["labels"].split(",") if pair)
                take(Metric(found["name"], found["kind"].lower(), labels, float(found["value"])))

    log = logging.getLogger("ts.metrics.caching_metric")
    log.handlers, log.propagate = [Reader()], False
    log.setLevel(logging.INFO)


@contextlib.contextmanager
def in_model_folder(folder: Path) -> Iterator[None]:
    """Makes this process import and find files as the worker of an unpacked archive does.

    The folder becomes the working directory and the first place to import from. Each module of the archive is
    imported anew, even if a module of that name was imported before. At the end everything is restored. The
    working directory belongs to the whole process, so use one folder at a time.
    """
    folder = folder.resolve()
    own = {name.partition("/")[0].removesuffix(".py") for name in python_files(folder)} - _LOADED_BEFORE
    earlier = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in own}
    for name in earlier:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.path.remove(str(folder))
        for name, module in [*sys.modules.items()]:
            file = getattr(module, "__file__", None)
            if name.partition(".")[0] in own or (file and Path(file).is_relative_to(folder)):
                del sys.modules[name]
        sys.modules.update(earlier)


def load_service(
    model_dir: Path,
    name: str,
    *,
    gpu_id: int | None = None,
    batch_size: int = 1,
    envelope: str | None = None,
) -> Any:
    """Imports the handler of an unpacked archive, calls its `initialize`, and returns a `ts.service.Service`.

    Call this in `in_model_folder`: the handler is imported by its name. Metrics are declared by the archive's
    own metrics.yaml, or else by TorchServe's.

    Args:
        model_dir: the unpacked archive.
        name: the name that the model is served as.
        gpu_id: the GPU that `context.system_properties` names; None for the CPU.
        batch_size: how many requests can come at once.
        envelope: TorchServe's `service_envelope`: "json", "body", "kserve", "kservev2"; None for none.

    Raises:
        Exception: whatever the import or `initialize` raises.
        PackageMissing: TorchServe is not installed.
    """
    with extra("serving", "running a handler"):
        import ts
        from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
        from ts.model_loader import TsModelLoader

    manifest = read_manifest(model_dir)
    declared = model_dir / "metrics.yaml"
    if not declared.is_file():
        declared = Path(ts.__file__).parent / "configs" / "metrics.yaml"
    metrics = MetricsCacheYamlImpl(str(declared))
    metrics.initialize_cache()
    metrics.model_name = name
    handler = manifest["model"]["handler"]
    try:
        service = TsModelLoader().load(
            name, str(model_dir), handler, gpu_id, batch_size, envelope, metrics_cache=metrics
        )
    except ImportError as error:
        # If the archive's handler can't be imported, TorchServe looks for one of its own with that name.
        cause: BaseException | None = error
        while cause and "_load_handler_file" not in {
            frame.name for frame in traceback.extract_tb(cause.__traceback__)
        }:
            cause = cause.__context__
        module = handler.partition(":")[0].removesuffix(".py")
        is_absent = isinstance(cause, ModuleNotFoundError) and cause.name == module
        if cause is None or cause is error or is_absent:
            raise
        raise cause from None
    handle = service._entry_point

    def handle_any_spelling(data: Any, context: Any) -> Any:
        for processor in context.request_processor:
            processor._request_header = Headers(processor._request_header)
        return handle(data, context)

    service._entry_point = handle_any_spelling
    return service


def parameter(name: str, content_type: str, body: bytes) -> dict[str, Any]:
    """Returns one part of a request, decoded by content type as ts/protocol/otf_message_handler.py does.

    >>> parameter("body", "application/json", b"[1]")["value"]
    [1]
    """
    value: Any = bytearray(body)
    try:
        if content_type == "application/json":
            value = json.loads(body.decode("utf-8"))
        elif content_type.startswith("text"):
            value = body.decode("utf-8")
    except (ValueError, RecursionError):
        pass  # a body that can't be decoded goes to the handler unchanged
    return {"name": name, "contentType": content_type, "value": value}


def request(
    id: str, parameters: Sequence[dict[str, Any]], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns a request as `Service.predict` takes it."""
    pairs = [{"name": k.encode(), "value": v.encode()} for k, v in (headers or {}).items()]
    return {"requestId": id.encode(), "headers": pairs, "parameters": list(parameters)}


def predict(
    service: Any,
    batch: Sequence[dict[str, Any]],
    on_chunk: Callable[[int, Reply], None] | None = None,
) -> list[Reply]:
    """Calls the handler with a batch, and returns one reply for each request, in order.

    Args:
        service: from `load_service`.
        batch: each from `request`.
        on_chunk: called with a request's index and a part of its streamed answer, except for the last part.

    Raises:
        BaseException: what would end TorchServe's worker: `sys.exit`, or an answer that can't be encoded.
    """
    parts: list[list[bytes]] = []

    def sendall(message: bytes) -> None:
        part = _decode(bytes(message))
        parts.append([reply.body for reply in part])
        for index, reply in enumerate(part):
            if on_chunk:
                on_chunk(index, reply)

    # A handler that streams sends each part of its answers to the worker's socket.
    service.set_cl_socket(SimpleNamespace(sendall=sendall))
    replies = _decode(bytes(service.predict(list(batch))))
    if parts:
        replies = [
            reply._replace(body=b"".join((*chunks, reply.body)), chunks=chunks)
            for reply, chunks in zip(replies, zip(*parts, strict=True), strict=True)
        ]
    return replies


def _decode(message: bytes) -> list[Reply]:
    """Reads the worker's message, in the format of ts/protocol/otf_message_handler.py (big-endian ints)."""
    stream = io.BytesIO(message)

    def number() -> int:
        return int.from_bytes(stream.read(4), "big", signed=True)

    def blob() -> bytes:
        return stream.read(number())

    def text() -> str:
        return blob().decode("utf-8", errors="replace")

    whole_status, whole_message = number(), text()
    replies = []
    while (length := number()) != -1:
        stream.read(length)  # the request's id
        text()  # content type, which is among the headers too
        status = number()
        text()  # reason phrase
        headers = {text(): text() for _ in range(number())}
        body = blob()
        if whole_status == 200:
            replies.append(Reply(status, headers, body, None))
        else:
            replies.append(Reply(whole_status, {}, b"", whole_message))
    return replies
