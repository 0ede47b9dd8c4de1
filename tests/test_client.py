"""The clients against a stand-in that answers as told, so that each error and header can be seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import pytest

from tutorial_lib import ApiError, InferenceClient, KeyFile, ManagementClient, MetricsClient


class Seen(NamedTuple):
    method: str
    path: str
    content_type: str | None
    authorization: str | None
    body: bytes


class StandIn(ThreadingHTTPServer):
    """Answers each call with the next of `answers`, the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.answers: list[tuple[int, bytes]] = [(200, b"{}")]
        self.seen: list[Seen] = []
        self.hold: Event | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, status: int, kind: str, message: str) -> None:
        self.answers = [(status, json.dumps({"code": status, "type": kind, "message": message}).encode())]


class _Answering(BaseHTTPRequestHandler):
    server: StandIn

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(
            Seen(self.command, self.path, self.headers["Content-Type"], self.headers["Authorization"], body)
        )
        if self.server.hold:
            self.server.hold.wait(20)
        answers = self.server.answers
        status, content = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("data", "content_type", "body"),
    [
        (b"\xff", None, b"\xff"),
        ("Straße", "text/plain; charset=utf-8", "Straße".encode()),
        ({"input": ["a"]}, "application/json", b'{"input": ["a"]}'),
        (["a"], "application/json", b'["a"]'),
    ],
)
def test_how_data_is_sent(data: Any, content_type: str | None, body: bytes, stand_in: StandIn) -> None:
    InferenceClient(stand_in.address).predict("m", data)
    seen = stand_in.seen[0]
    assert (seen.content_type, seen.body, seen.authorization) == (content_type, body, None)


def test_names_and_versions_are_quoted(stand_in: StandIn) -> None:
    InferenceClient(stand_in.address + "/").predict("a b/c", b"", version="1/2")
    assert stand_in.seen[0].path == "/predictions/a%20b%2Fc/1%2F2"


def test_an_answer_that_is_not_json_is_text(stand_in: StandIn) -> None:
    stand_in.answers = [(200, b"Positive!")]
    assert InferenceClient(stand_in.address).predict("m", b"") == "Positive!"


@pytest.mark.parametrize(
    ("status", "kind", "message", "advice"),
    [
        (400, "InvalidKeyException", "Token Authorization failed", "missing, wrong or expired"),
        (404, "ModelNotFoundException", "Model not found: m", "list_models"),
        (405, "MethodNotAllowedException", "not allowed", "model_api=True"),
        (409, "ConflictStatusException", "already registered", "unregister it first"),
        (413, "RequestEntityTooLargeException", "too large", "max_request_size"),
        (500, "InternalServerException", "Worker died.", "responseTimeout"),
        (503, "ServiceUnavailableException", "No worker is available to serve request", "scale the model"),
        (503, "InternalServerException", "Prediction failed", "first traceback"),
        (507, "InternalServerException", "Out of resources", "out of memory"),
    ],
)
def test_an_error_says_what_to_do(
    status: int, kind: str, message: str, advice: str, stand_in: StandIn
) -> None:
    stand_in.fail(status, kind, message)
    with pytest.raises(ApiError, match=advice) as raised:
        InferenceClient(stand_in.address, token="t").predict("m", b"")
    assert (raised.value.status, raised.value.kind, raised.value.message) == (status, kind, message)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'"text"', b'{"type": "only"}', b"\xff"])
def test_an_error_of_another_form_is_an_api_error_too(content: bytes, stand_in: StandIn) -> None:
    stand_in.answers = [(502, content)]
    with pytest.raises(ApiError) as raised:
        InferenceClient(stand_in.address).ping()
    assert raised.value.status == 502


@pytest.mark.parametrize("content", [b"", b"<html>an error page</html>"])
def test_a_200_that_is_not_torchserves_is_an_api_error(content: bytes, stand_in: StandIn) -> None:
    """Another program on that port, as a proxy, answers everything with a page."""
    stand_in.answers = [(200, content)]
    for ask in (
        InferenceClient(stand_in.address).ping,
        ManagementClient(stand_in.address).list_models,
        lambda: ManagementClient(stand_in.address).describe("m"),
    ):
        with pytest.raises(ApiError):
            ask()


def test_silence_is_a_timeout(stand_in: StandIn) -> None:
    stand_in.hold = Event()
    try:
        with pytest.raises(ApiError, match=r"Timeout: No answer from .* within 0.3 s"):
            InferenceClient(stand_in.address).predict("m", b"", timeout=0.3)
    finally:
        stand_in.hold.set()


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "127.0.0.1:8080", "http://", "no url"])
def test_wrong_addresses_are_api_errors(address: str) -> None:
    with pytest.raises(ApiError) as raised:
        InferenceClient(address).ping()
    assert raised.value.status == 0


def test_list_models_puts_pages_together(stand_in: StandIn) -> None:
    pages: list[dict[str, Any]] = [
        {"nextPageToken": "100", "models": [{"modelName": "a", "modelUrl": "a.mar"}]},
        {"models": [{"modelName": "b", "modelUrl": "b.mar"}]},
    ]
    stand_in.answers = [(200, json.dumps(page).encode()) for page in pages]
    assert [m["modelName"] for m in ManagementClient(stand_in.address).list_models()] == ["a", "b"]
    assert "next_page_token=100" in stand_in.seen[1].path


def test_scale_waits_no_longer_than_its_timeout(stand_in: StandIn) -> None:
    loading = [{"workers": [{"status": "READY"}, {"status": "LOADING"}]}]
    stand_in.answers = [(202, b"{}"), (200, json.dumps(loading).encode())]
    with pytest.raises(ApiError, match=r"1 of 2 workers were READY after 0.3 s"):
        ManagementClient(stand_in.address).scale("m", min_worker=2, timeout=0.3)
    assert stand_in.seen[0][:2] == ("PUT", "/models/m?min_worker=2&max_worker=2")


def test_samples_become_rows(stand_in: StandIn) -> None:
    stand_in.answers = [(200, b'# TYPE a counter\na_total{model="m"} 3\n# TYPE b gauge\nb 1.5\n')]
    metrics = MetricsClient(stand_in.address)
    assert metrics.scrape("a").to_dict("records") == [
        {"name": "a_total", "labels": {"model": "m"}, "value": 3}
    ]
    assert len(metrics.scrape()) == 2
    assert list(metrics.scrape("none").columns) == ["name", "labels", "value"]


def keys(path: Path, token: str = "old") -> Path:
    kinds = {"management": "m-" + token, "inference": "i-" + token, "API": "api"}
    path.write_text(json.dumps({kind: {"key": key} for kind, key in kinds.items()}))
    return path


def test_an_expired_token_is_renewed_once_with_the_api_key(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.fail(400, "InvalidKeyException", "expired")
    refused = stand_in.answers[0]
    stand_in.answers = [refused, (200, b""), (200, b'{"status": "Healthy"}')]
    key_file = KeyFile(keys(tmp_path / "key_file.json"), stand_in.address)
    assert InferenceClient(stand_in.address, token=key_file).ping() == {"status": "Healthy"}
    assert [call.authorization for call in stand_in.seen] == ["Bearer i-old", "Bearer api", "Bearer i-old"]
    assert stand_in.seen[1].path == "/token?type=inference"


def test_a_token_that_stays_refused_is_said_and_not_asked_for_ever(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.fail(400, "InvalidKeyException", "expired")
    key_file = KeyFile(keys(tmp_path / "key_file.json"), stand_in.address)
    with pytest.raises(ApiError, match="missing, wrong or expired"):
        ManagementClient(stand_in.address, token=key_file).list_models()
    assert len(stand_in.seen) <= 3


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"inference": {}}', '{"inference": "x"}'])
def test_a_key_file_that_is_missing_or_corrupt_is_an_api_error(
    content: str | None, tmp_path: Path, stand_in: StandIn
) -> None:
    path = tmp_path / "key_file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ApiError, match=r"key_file\.json can't be read"):
        InferenceClient(stand_in.address, token=KeyFile(path, stand_in.address)).ping()
    assert stand_in.seen == []
