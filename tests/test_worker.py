"""TorchServe's worker without its sockets: how it finds an archive's files, and how it encodes answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import handlers
from tutorial_lib.worker import contract as worker

USES_HELPER = "import helper\nimport json\n\ndef handle(data, context):\n    return data and [helper.NAME]\n"

STREAMER = """
from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    for part in ("one ", "two "):
        answers = [part * len(bytes(row["body"])) for row in data]
        send_intermediate_predict_response(answers, context.request_ids, "part", 200, context)
    if bytes(data[0]["body"]) == b"fail":
        raise ValueError("halfway")
    return ["three"] * len(data)
"""

METRICS = """
ts_metrics: {}
model_metrics:
  counter:
    - {name: Words, unit: count, dimensions: [ModelName, Level]}
"""
COUNTS = """
def handle(data, context):
    if data is None:
        return None
    context.metrics.add_metric("Words", 3, unit="count")
    return [[name for metrics in context.metrics.cache.values() for name in metrics]] * len(data)
"""


def ask(folder: Path, *bodies: bytes, **options: Any) -> list[worker.Reply]:
    with worker.in_model_folder(folder):
        service = worker.load_service(folder, "model", batch_size=len(bodies), **options)
        batch = [
            worker.request(str(i), [worker.parameter("body", "", body)]) for i, body in enumerate(bodies)
        ]
        return worker.predict(service, batch)


def test_each_archive_imports_its_own_modules_and_everything_is_put_back(tmp_path: Path) -> None:
    one = handlers.laid_out(
        tmp_path, "one", USES_HELPER, **{"helper.py": "NAME = 'one'\n", "pytest.py": "raise SystemExit\n"}
    )
    two = handlers.laid_out(tmp_path, "two", USES_HELPER, **{"helper.py": "NAME = 'two'\n"})
    mine: Any = object()
    sys.modules["helper"] = mine
    here, path = Path.cwd(), [*sys.path]
    try:
        for folder in (one, two, one):
            assert ask(folder, b"")[0].body == folder.name.encode()
            assert (Path.cwd(), sys.path, sys.modules["helper"]) == (here, path, mine)
        assert "handler" not in sys.modules and sys.modules["pytest"] is pytest
    finally:
        del sys.modules["helper"]


def test_files_are_found_by_their_names_alone(tmp_path: Path) -> None:
    folder = handlers.laid_out(tmp_path, "words", handlers.TEXT, **{"words.txt": "good bad"})
    assert json.loads(ask(folder, b"a good day")[0].body) == ["good"]


def test_streamed_answers_are_collected(tmp_path: Path) -> None:
    folder = handlers.laid_out(tmp_path, "stream", STREAMER)
    one, two = ask(folder, b"1", b"22")
    assert one.body == b"one two three" and one.chunks == (b"one ", b"two ")
    assert two.body == b"one one two two three"
    [failed] = ask(folder, b"fail")
    assert (failed.status, failed.error) == (503, "Prediction failed")


def test_metrics_are_those_that_the_archive_declares(tmp_path: Path) -> None:
    own = handlers.laid_out(tmp_path, "own", COUNTS, **{"metrics.yaml": METRICS})
    assert json.loads(ask(own, b"")[0].body) == ["Words"]
    updates: list[worker.Metric] = []
    worker.on_metric(updates.append)
    ask(own, b"")
    assert ("Words", "counter", 3.0) in [(m.name, m.kind, m.value) for m in updates]


@pytest.mark.parametrize(
    ("envelope", "body", "expected"),
    [
        (None, b"[1]", {"body": [1]}),
        ("body", b"[1]", [1]),
        ("json", b'{"instances": [5]}', {"predictions": [5]}),
    ],
)
def test_envelopes(envelope: str | None, body: bytes, expected: object, tmp_path: Path) -> None:
    source = "def handle(data, context):\n    return data\n"
    folder = handlers.laid_out(tmp_path, "envelope", source)
    with worker.in_model_folder(folder):
        service = worker.load_service(folder, "model", envelope=envelope)
        [reply] = worker.predict(
            service, [worker.request("1", [worker.parameter("body", "application/json", body)])]
        )
    assert json.loads(reply.body) == expected


@pytest.mark.parametrize(
    ("do", "status", "body", "error"),
    [
        ({"do": "status", "code": 418}, 418, {"code": 418}, None),
        ({"do": "all"}, 429, "later", None),
        ({"do": "headers"}, 200, "a,b", None),
        ({"do": "number"}, 200, 0.1, None),
        ({"do": "raise"}, 503, "", "Prediction failed"),
        ({"do": "cuda"}, 507, "", "Out of resources"),
        ({"do": "memory"}, 507, "", "Out of resources"),
        ({"do": "prediction", "message": "no", "code": 422}, 422, "", "no"),
        ({"do": "too few"}, 503, "", "number of batch response mismatched"),
        ({"do": "wrong type"}, 503, "", "Unsupported model output data type."),
    ],
)
def test_what_a_handler_does_gets_torchserves_status(
    do: dict[str, Any], status: int, body: object, error: str | None, tmp_path: Path
) -> None:
    folder = handlers.laid_out(tmp_path, "odd", handlers.ODD)
    with worker.in_model_folder(folder):
        service = worker.load_service(folder, "model")
        part = worker.parameter("body", "application/json", json.dumps(do).encode())
        [reply] = worker.predict(service, [worker.request("1", [part])])
    text = reply.body.decode()
    assert (reply.status, reply.error) == (status, error)
    assert text == body or json.loads(text) == body
    if do == {"do": "headers"}:
        assert reply.headers == {"content-type": "text/csv; charset=utf-8", "X-Answer": "42"}


@pytest.mark.parametrize(
    ("content_type", "body", "value"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/json", b"{", bytearray(b"{")),
        ("application/json", b"\xff", bytearray(b"\xff")),
        ("application/json", b"[" * 100_000, bytearray(b"[" * 100_000)),
        ("text/plain", "é".encode(), "é"),
        ("text/plain", b"\xff", bytearray(b"\xff")),
        ("", b"1", bytearray(b"1")),
        ("image/png", b"\x89", bytearray(b"\x89")),
    ],
)
def test_parameters_are_decoded_by_their_content_type(content_type: str, body: bytes, value: object) -> None:
    part = worker.parameter("body", content_type, body)
    assert part == {"name": "body", "contentType": content_type, "value": value}
    assert type(part["value"]) is type(value)


def test_headers_are_found_however_they_are_spelled() -> None:
    headers = worker.Headers({"X-Kind": "a"})
    assert "x-KIND" in headers and headers["x-kind"] == headers.get("X-KIND") == "a"
    assert headers.get("other") is None and "other" not in headers
