"""TorchServe's worker without its sockets: loads an unpacked archive, and answers batches of requests.

`tutorial_lib.testing` runs it in a test, `tutorial_lib.ray_app` in a replica. The work is done by
TorchServe's own Python package: its loader imports the handler, its `Service.predict` calls it and
turns what comes back, or an exception, into statuses and bodies.
"""

from __future__ import annotations

import json
import logging
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What one request of a batch gets.

    Attributes:
        status: HTTP status code.
        headers: those that the handler set.
        body: what the handler returned, encoded; empty where TorchServe answers in its stead.
        error: what TorchServe says where the whole batch failed ("Prediction failed"); else None.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    error: str | None


class Headers(dict[str, Any]):
    """A request's headers, found however their names are spelled.

    TorchServe hands names over as the client spelled them; a proxy may have made them lower case.

    >>> Headers({"x-kind": "a"}).get("X-Kind")
    'a'
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
    """One update of a metric by a handler.

    Attributes:
        name: as the handler calls it.
        kind: "counter", "gauge" or "histogram".
        labels: its dimensions.
        value: what a counter grows by, or a gauge becomes.
    """

    name: str
    kind: str
    labels: dict[str, str]
    value: float


# "[METRICS]name.unit:1|#label:a,other:b|#type:COUNTER|#hostname:…", as ts/metrics/caching_metric.py writes.
_METRIC = re.compile(
    r"\[METRICS](?P<name>\w+)\.[^:]*:(?P<value>[^|]+)\|#(?P<labels>[^|]*)\|#type:(?P<kind>\w+)"
)


def on_metric(take: Callable[[Metric], None]) -> None:
    """From now on hands each metric of a handler to `take`, in place of this process's log.

    A handler's metrics are lines in its worker's log, which TorchServe's frontend reads.
    """

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := _METRIC.match(record.getMessage()):
                labels = dict(pair.partition(":")[::2] for pair in found["labels"].split(",") if pair)
                take(Metric(found["name"], found["kind"].lower(), labels, float(found["value"])))

    log = logging.getLogger("ts.metrics.caching_metric")
    log.handlers, log.propagate = [Reader()], False
    log.setLevel(logging.INFO)


def load_service(model_dir: Path, name: str, *, gpu_id: int | None = None, batch_size: int = 1) -> Any:
    """Imports the handler of an unpacked archive and calls its `initialize`.

    The handler is imported by its name, so `model_dir` has to be on `sys.path`.

    Args:
        model_dir: the folder with MAR-INF/MANIFEST.json.
        name: what the model is served as.
        gpu_id: the GPU that `context.system_properties` names; None for the CPU.
        batch_size: how many requests can come at once.

    Returns:
        a `ts.service.Service`.

    Raises:
        Exception: whatever the import or `initialize` raises.
    """
    import ts
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import TsModelLoader

    manifest = json.loads((model_dir / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))
    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = name
    service = TsModelLoader().load(
        name, str(model_dir), manifest["model"]["handler"], gpu_id, batch_size, metrics_cache=metrics
    )
    service.set_cl_socket(None)
    handle = service._entry_point

    def handle_any_spelling(data: Any, context: Any) -> Any:
        for processor in context.request_processor:
            processor._request_header = Headers(processor._request_header)
        return handle(data, context)

    service._entry_point = handle_any_spelling
    return service


def parameter(name: str, content_type: str, body: bytes) -> dict[str, Any]:
    """One part of a request, decoded by its content type as ts/protocol/otf_message_handler.py does.

    >>> parameter("body", "application/json", b"[1]")["value"]
    [1]
    >>> parameter("body", "application/json", b"[")["value"]
    bytearray(b'[')
    """
    value: Any = bytearray(body)
    try:
        if content_type == "application/json":
            value = json.loads(body.decode("utf-8"))
        elif content_type.startswith("text"):
            value = body.decode("utf-8")
    except (ValueError, RecursionError):
        pass  # what can't be decoded goes to the handler as it came
    return {"name": name, "contentType": content_type, "value": value}


def request(
    id: str, parameters: Sequence[dict[str, Any]], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A request as `Service.predict` takes it."""
    pairs = [{"name": k.encode(), "value": v.encode()} for k, v in (headers or {}).items()]
    return {"requestId": id.encode(), "headers": pairs, "parameters": list(parameters)}


def predict(service: Any, batch: Sequence[dict[str, Any]]) -> list[Reply]:
    """Has the handler answer a batch: one reply for each request, in order.

    Raises:
        BaseException: what would end TorchServe's worker: `sys.exit`, an answer that can't be encoded.
    """
    return _decode(bytes(service.predict(list(batch))))


def _decode(message: bytes) -> list[Reply]:
    """Reads the worker's message: the format of ts/protocol/otf_message_handler.py, big-endian ints."""
    position = 0

    def number() -> int:
        nonlocal position
        position += 4
        return int(struct.unpack("!i", message[position - 4 : position])[0])

    def blob() -> bytes:
        nonlocal position
        length = number()
        position += length
        return message[position - length : position]

    def text() -> str:
        return blob().decode("utf-8", errors="replace")

    whole_status, whole_message = number(), text()
    replies = []
    while (length := number()) != -1:
        position += length  # the request's id
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
