"""The clients against a fake server that answers as told, so that each header and fault can be seen.

At the end, against TorchServe: streams, the whole management API, and what a caller may get wrong.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_server import FakeServer, Reply, fake_server, keys
from tutorial_lib import (
    Answer,
    AnswerBrokeOff,
    ApiError,
    ConnectionFailed,
    InferenceClient,
    KeyFile,
    ManagementClient,
    MetricsClient,
    ModelDescription,
    NoAnswer,
    NoKeyFile,
    Sample,
    TimedOut,
    TorchServe,
    Worker,
    build_archive,
)
from tutorial_lib.clients.client import pauses

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as server:
        yield server


# What is sent


@pytest.mark.parametrize(
    ("data", "content_type", "body"),
    [
        (b"\xff", None, b"\xff"),
        (bytearray(b"\xff"), None, b"\xff"),
        (io.BytesIO(b"\xff"), None, b"\xff"),
        ("Straße", "text/plain; charset=utf-8", "Straße".encode()),
        ({"input": ["a"]}, "application/json", b'{"input": ["a"]}'),
        (["a"], "application/json", b'["a"]'),
    ],
)
def test_how_data_is_sent(data: Any, content_type: str | None, body: bytes, fake: FakeServer) -> None:
    InferenceClient(fake.address).predict("m", data)
    seen = fake.seen[0]
    assert (seen.headers.get("content-type"), seen.body, seen.authorization) == (content_type, body, None)


def test_files_are_sent_as_multipart_and_again_where_sent_again(fake: FakeServer) -> None:
    fake.answers = [Reply(502), Reply(200, b"1")]
    client = InferenceClient(fake.address)
    files = {"data": ("cat.png", io.BytesIO(PNG), "image/png"), "empty": b""}
    assert client.predict("m", {"top": "3"}, files=files, retries=1) == 1
    first, second = fake.seen
    assert first.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert PNG in first.body and b'filename="cat.png"' in first.body and b'name="top"\r\n\r\n3' in first.body
    assert second.body == first.body


def test_headers_are_sent_and_a_content_type_wins(fake: FakeServer) -> None:
    headers = {"X-Request-Id": "7", "content-type": "image/png"}
    InferenceClient(fake.address, token="t").predict("m", {"a": 1}, headers=headers)
    seen = fake.seen[0].headers
    assert (seen["x-request-id"], seen["content-type"], seen["authorization"]) == (
        "7",
        "image/png",
        "Bearer t",
    )


def test_names_and_versions_are_quoted(fake: FakeServer) -> None:
    InferenceClient(fake.address + "/").predict("a b?c", b"", version="1#2")
    assert fake.seen[0].path == "/predictions/a%20b%3Fc/1%232"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "data is None. Give bytes"),
        ({"data": {1, 2}}, r"data is \{1, 2\}. Give bytes, a text"),
        ({"data": "\ud800"}, "data is .* Give bytes, a text"),
        ({"files": {}}, "files is {}. Give at least one part"),
        ({"files": {"data": None}}, "Give at least one part"),
        ({"files": {"data": Path("cat.png")}}, r'files is .* as {"data": open'),
        ({"files": {"data": b""}, "data": "text"}, "data is 'text'. Beside files"),
        ({"data": b"", "headers": {"authorization": "Bearer x"}}, "headers has an Authorization. .* token="),
        ({"data": b"", "headers": {"X-Id": 7}}, "headers has .*Give names and values as texts"),
        ({"data": b"", "headers": {"X-Id": "a\nb"}}, "can't be asked"),
        ({"data": b"", "retries": -1}, "retries is -1"),
        ({"data": b"", "timeout": 0}, "timeout is 0"),
    ],
)
def test_what_can_not_be_sent_is_told(options: dict[str, Any], sentence: str, fake: FakeServer) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        InferenceClient(fake.address).predict("m", **options)
    assert fake.seen == []


# What is answered


@pytest.mark.parametrize(
    ("content_type", "content", "value"),
    [
        (None, b'["Positive"]', ["Positive"]),
        (None, b"7", 7),
        (None, b"Positive!", "Positive!"),
        (None, "שלום 😍".encode(), "שלום 😍"),
        (None, b'{"half": ', '{"half": '),
        (None, b"", ""),
        (None, PNG, PNG),
        (None, b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVE"),
        (None, b"[" * 100_000, "[" * 100_000),
        ("application/octet-stream", b"[1]", [1]),
        ("application/json", b"\xef\xbb\xbf[1]", [1]),
        ("application/json", b'{"half": ', '{"half": '),
        ("application/json", PNG, PNG),
        ("application/problem+json; charset=utf-8", b"{}", {}),
        ("text/csv; charset=latin-1", b"Stra\xdfe,7", "Straße,7"),
        ("text/plain", b"7", "7"),
        ("text/plain", PNG, PNG),
        ("text/plain; charset=no-such", b"a", b"a"),
        ("image/svg+xml", b"<svg/>", "<svg/>"),
        ("image/png", PNG, PNG),
        ("image/png", b"", b""),
        ("application/pdf", b"%PDF-1.4", b"%PDF-1.4"),
        ("nonsense", b"[1]", [1]),
    ],
)
def test_an_answer_is_json_else_text_else_bytes(
    content_type: str | None, content: bytes, value: Any, fake: FakeServer
) -> None:
    fake.answers = [Reply(200, content, {"Content-Type": content_type} if content_type else {})]
    answer = InferenceClient(fake.address).predict("m", b"")
    assert answer == value and type(answer) is type(value)


def test_the_raw_answer(fake: FakeServer) -> None:
    fake.answers = [Reply(201, b"[1]", {"X-Answer": "42"})]
    answer = InferenceClient(fake.address).predict_raw("m", b"")
    assert isinstance(answer, Answer)
    assert (answer.status, answer.headers["x-answer"], answer.content, answer.value) == (
        201,
        "42",
        b"[1]",
        [1],
    )


def test_parts_come_as_they_are_sent(fake: FakeServer) -> None:
    reply = Reply(200, parts=[b"a", "ß\n".encode(), b"c"])
    fake.answers = [reply]
    with InferenceClient(fake.address) as client:
        parts = client.predict_stream("m", b"")
        assert next(parts) == b"a"  # the server has not sent the others yet
        reply.go.set()
        assert list(parts) == ["ß\n".encode(), b"c"]
        assert list(client.predict_stream("m", b"", lines=True)) == ["aß".encode(), b"c"]


def test_a_stream_left_early_closes_its_connection(fake: FakeServer) -> None:
    reply = Reply(200, parts=[b"a", b"b" * 10_000_000, b"c"])
    fake.answers = [reply]
    for part in InferenceClient(fake.address).predict_stream("m", b""):
        assert part == b"a"
        break
    reply.go.set()
    assert fake.left.wait(20)


@pytest.mark.parametrize(
    ("reply", "options", "kind", "sentence"),
    [
        (Reply(200, parts=[b"a"], breaks_off=True), {}, AnswerBrokeOff, "^The answer from .* broke off"),
        (Reply(200, parts=[b"a"]), {"timeout": 0.3}, TimedOut, r"^No answer from .* within 0\.3 s"),
    ],
)
def test_a_stream_that_fails_in_the_middle_is_told(
    reply: Reply, options: dict[str, Any], kind: type[NoAnswer], sentence: str, fake: FakeServer
) -> None:
    if reply.breaks_off:
        reply.go.set()
    fake.answers = [reply]
    parts = InferenceClient(fake.address).predict_stream("m", b"", **options)
    try:
        assert next(parts) == b"a"
        with pytest.raises(kind, match=sentence):
            next(parts)
    finally:
        reply.go.set()


def test_a_stream_that_is_refused_is_an_api_error_at_the_call(fake: FakeServer) -> None:
    fake.fail(404, "ModelNotFoundException", "Model not found: m")
    with pytest.raises(ApiError, match="404 ModelNotFoundException"):
        InferenceClient(fake.address).predict_stream("m", b"")


def test_an_answer_that_breaks_off_may_be_asked_for_again(fake: FakeServer) -> None:
    broken = Reply(200, parts=[b"[1"], breaks_off=True)
    broken.go.set()
    fake.answers = [broken, Reply(200, b"[1]")]
    assert InferenceClient(fake.address).predict("m", b"", retries=1) == [1]


# Retries and errors


@pytest.mark.parametrize("status", [500, 507])  # it crashed; it was killed
def test_a_retry_asks_again_where_a_worker_died_and_nowhere_else(status: int, fake: FakeServer) -> None:
    client = InferenceClient(fake.address)
    fake.fail(status, "InternalServerException", "Worker died.")
    with pytest.raises(ApiError, match=r"try again|Try again"):
        client.predict("m", b"")
    assert len(fake.seen) == 1
    fake.answers.append(Reply(200, b"[1]"))
    assert client.predict("m", b"", retries=1) == [1] and len(fake.seen) == 3
    fake.fail(503, "InternalServerException", "Prediction failed")
    with pytest.raises(ApiError, match="Prediction failed"):
        client.predict("m", b"", retries=1)
    assert len(fake.seen) == 4


def test_a_full_queue_is_asked_again_after_growing_pauses(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who were refused would else come back together, and be refused together."""
    slept: list[float] = []
    monkeypatch.setattr("tutorial_lib.clients.client.time.sleep", slept.append)
    fake.fail(503, "ServiceUnavailableException", "No worker is available to serve request for model: m")
    fake.answers = fake.answers * 9 + [Reply(200, b"1")]
    assert InferenceClient(fake.address).predict("m", b"", retries=9) == 1
    assert len(slept) == 9
    for attempt, pause in enumerate(slept):
        whole = min(0.1 * 2**attempt, 10)
        assert whole / 2 <= pause <= whole
    others = [list(pauses(9)) for _ in range(20)]
    assert len({tuple(other) for other in others}) == 20


def test_retries_and_renewals_are_logged_without_a_token(
    tmp_path: Path, fake: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail(400, "InvalidKeyException", "expired")
    fake.answers = [*fake.answers, Reply(200), Reply(502), Reply(200, b"1")]
    key_file = KeyFile(keys(tmp_path / "key_file.json", "secret"), fake.address)
    with caplog.at_level(logging.DEBUG):
        InferenceClient(fake.address, token=key_file).predict("m", b"", retries=1)
    lines = [one.getMessage() for one in caplog.records if one.name.startswith("tutorial_lib.clients.")]
    assert ["inference token" in lines[0], "retry 1 of 1" in lines[1]] == [True, True]
    assert "secret" not in caplog.text and "Bearer" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'"text"', b'{"type": "only"}', b"\xff"])
def test_an_error_of_another_form_is_an_api_error_too(content: bytes, fake: FakeServer) -> None:
    fake.answers = [Reply(502, content)]
    with pytest.raises(ApiError) as raised:
        InferenceClient(fake.address).ping()
    assert raised.value.status == 502


@pytest.mark.parametrize("content", [b"", b"<html>an error page</html>"])
def test_a_200_that_is_not_torchserves_is_an_api_error(content: bytes, fake: FakeServer) -> None:
    """Another program on that port, as a proxy, answers everything with a page."""
    fake.answers = [Reply(200, content)]
    for ask in (
        InferenceClient(fake.address).ping,
        ManagementClient(fake.address).list_models,
        lambda: ManagementClient(fake.address).describe("m"),
    ):
        with pytest.raises(ApiError, match="is not TorchServe"):
            ask()


def test_a_page_that_is_no_metrics_is_an_api_error(fake: FakeServer) -> None:
    fake.answers = [Reply(200, b"<html>a page</html>")]
    with pytest.raises(ApiError, match="is not TorchServe"):
        MetricsClient(fake.address).scrape()


def test_silence_is_a_timeout(fake: FakeServer) -> None:
    fake.hold = Event()
    try:
        with pytest.raises(TimedOut, match=r"^No answer from .* within 0.3 s"):
            InferenceClient(fake.address).predict("m", b"", timeout=0.3)
    finally:
        fake.hold.set()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"address": "127.0.0.1:8080"}, "address is '127.0.0.1:8080'. Give http:// or https://"),
        ({"address": "http://"}, "address is 'http://'. Give"),
        ({"address": "no url"}, "address is 'no url'. Give"),
        ({"address": None}, "address is None. Give"),
        ({"timeout": (5, -1)}, "timeout is -1. Give a number of seconds"),
        ({"token": 3}, "can't be a token"),
    ],
)
def test_what_no_client_can_be_made_of_is_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        InferenceClient(**{"address": "http://127.0.0.1:1", **options})


def test_a_server_that_can_not_be_asked() -> None:
    with pytest.raises(ConnectionFailed, match=r"Nothing answers .* Is the server running"):
        InferenceClient("http://127.0.0.1:1").ping()
    with pytest.raises(NoAnswer, match=r"can't be asked: .*none\.pem"):
        InferenceClient("https://127.0.0.1:1", verify="none.pem").ping()


def test_list_models_puts_pages_together(fake: FakeServer) -> None:
    pages: list[dict[str, Any]] = [
        {"nextPageToken": "100", "models": [{"modelName": "a", "modelUrl": "a.mar"}]},
        {"models": [{"modelName": "b", "modelUrl": "b.mar"}]},
    ]
    fake.answers = [Reply(200, json.dumps(page).encode()) for page in pages]
    assert [m["modelName"] for m in ManagementClient(fake.address).list_models()] == ["a", "b"]
    assert "next_page_token=100" in fake.seen[1].path


def test_scale_waits_no_longer_than_its_timeout(fake: FakeServer) -> None:
    loading = [{"workers": [{"status": "READY"}, {"status": "LOADING"}]}]
    fake.answers = [Reply(202, b'{"status": "Processing"}'), Reply(200, json.dumps(loading).encode())]
    with pytest.raises(TimedOut, match=r"1 of 2 workers were READY after 0.3 s"):
        ManagementClient(fake.address).scale("m", min_worker=2, timeout=0.3)
    assert fake.seen[0][:2] == ("PUT", "/models/m?min_worker=2&max_worker=2")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ConcurrentModificationException", ""),
        ("NullPointerException", 'Cannot invoke "org.pytorch.serve.job.Job.isControlCmd()" on "job"'),
    ],
)
def test_scale_asks_again_where_torchserve_stumbles(kind: str, message: str, fake: FakeServer) -> None:
    """A batch ended while its worker was being stopped: each call ends one worker, so the next one helps."""
    fake.fail(500, kind, message)
    stumbled, done = *fake.answers, Reply(202, b'{"status": "Processing worker updates..."}')
    fake.answers = [stumbled, stumbled, done]
    assert ManagementClient(fake.address).scale("m", min_worker=1, wait=False) == json.loads(done.content)
    assert [seen.method for seen in fake.seen] == ["PUT"] * 3
    fake.answers = [stumbled]
    with pytest.raises(ApiError, match=kind):
        ManagementClient(fake.address).scale("m", min_worker=1, timeout=0.2)
    fake.fail(500, "NullPointerException", "another one")
    fake.seen.clear()
    with pytest.raises(ApiError, match="another one"):
        ManagementClient(fake.address).scale("m", min_worker=1)
    assert len(fake.seen) == 1


def test_samples_become_rows(fake: FakeServer) -> None:
    fake.answers = [Reply(200, b'# TYPE a counter\na_total{model="m"} 3\n# TYPE b gauge\nb 1.5\n')]
    metrics = MetricsClient(fake.address)
    assert metrics.samples() == [Sample("a_total", {"model": "m"}, 3.0), Sample("b", {}, 1.5)]
    assert metrics.samples("none") == []
    assert metrics.scrape("a").to_dict("records") == [
        {"name": "a_total", "labels": {"model": "m"}, "value": 3}
    ]
    assert len(metrics.scrape()) == 2
    assert list(metrics.scrape("none").columns) == ["name", "labels", "value"]
    fake.answers = [Reply(200, b"# TYPE Requests2XX counter\nRequests2XX 3\n")]
    assert list(metrics.scrape()["name"]) == ["Requests2XX"]  # as Prometheus has it


def test_an_expired_token_is_renewed_once_with_the_api_key(tmp_path: Path, fake: FakeServer) -> None:
    fake.fail(400, "InvalidKeyException", "expired")
    refused = fake.answers[0]
    fake.answers = [refused, Reply(200, b""), Reply(200, b'{"status": "Healthy"}')]
    key_file = KeyFile(keys(tmp_path / "key_file.json"), fake.address)
    assert InferenceClient(fake.address, token=key_file).ping() == {"status": "Healthy"}
    assert [call.authorization for call in fake.seen] == ["Bearer i-old", "Bearer api", "Bearer i-old"]
    assert fake.seen[1].path == "/token?type=inference"


def test_a_token_that_another_process_renewed_is_taken_from_the_file(
    tmp_path: Path, fake: FakeServer
) -> None:
    """One more renewal would make the other process's token invalid."""
    path = keys(tmp_path / "key_file.json")
    key_file = KeyFile(path, fake.address)
    keys(path, "new")
    assert key_file.renew("inference", expired="i-old") == "i-new"
    assert fake.seen == []


def test_a_key_file_that_is_being_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    path.write_text("")
    writer = Timer(0.2, keys, [path])
    writer.start()
    assert KeyFile(path, "http://127.0.0.1:9").token("inference") == "i-old"
    writer.join()


def test_a_token_that_stays_refused_is_said_and_not_asked_for_ever(tmp_path: Path, fake: FakeServer) -> None:
    fake.fail(400, "InvalidKeyException", "expired")
    key_file = KeyFile(keys(tmp_path / "key_file.json"), fake.address)
    with pytest.raises(ApiError, match="missing, wrong or expired"):
        ManagementClient(fake.address, token=key_file).list_models()
    assert len(fake.seen) <= 3


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"inference": {}}', '{"inference": "x"}'])
def test_a_key_file_that_is_missing_or_corrupt_is_told(
    content: str | None, tmp_path: Path, fake: FakeServer
) -> None:
    path = tmp_path / "key_file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NoKeyFile, match=r"key_file\.json can't be read"):
        InferenceClient(fake.address, token=KeyFile(path, fake.address)).ping()
    assert fake.seen == []


def test_without_pandas_there_are_samples_and_a_sentence(fake: FakeServer) -> None:
    fake.answers = [Reply(200, b"a 1\n")]
    code = f"""
import sys
sys.modules["pandas"] = None
from tutorial_lib import MetricsClient, PackageMissing
client = MetricsClient({fake.address!r})
print(client.samples())
try:
    client.scrape()
except PackageMissing as error:
    print(error)
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "Sample(name='a'" in output and "scrape needs the package pandas" in output


# Against a real server

HANDLER = """
from ts.handler_utils.utils import send_intermediate_predict_response


class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [{"labels": ["a", "b"]}]
        body = data[0].get("body") or data[0].get("data") or b""
        match bytes(body):
            case b"stream":
                for part in ("one ", "שתיים "):
                    send_intermediate_predict_response([part], context.request_ids, "part", 200, context)
                return ["three"]
            case b"stream and fail":
                send_intermediate_predict_response(["one"], context.request_ids, "part", 200, context)
                raise ValueError("a bug")
            case b"png":
                return [bytes.fromhex("89504e47ff00")]
            case b"header":
                context.set_response_header(0, "X-Answer", context.get_request_header(0, "X-Ask"))
        return ["echo"] * len(data)
"""


@pytest.fixture(scope="module")
def live(server: TorchServe, mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """The shared server with a handler that needs no model; in its store, a second version and no archive."""
    handler = tmp_path_factory.mktemp("echo") / "echo.py"
    handler.write_text(HANDLER)
    for version in ("1.0", "2.0"):
        build_archive(f"echo-{version}", handler=handler, export_path=mar.parent, version=version)
    (mar.parent / "text.mar").write_text("no archive")
    server.management.register("echo-1.0.mar", "echo")
    yield server
    for entry in server.management.list_models():
        if entry["modelName"] != "my_model":
            for one in server.management.describe_all(entry["modelName"])[1:]:
                server.management.unregister(entry["modelName"], one["modelVersion"])
            server.management.unregister(entry["modelName"])


def test_streams_headers_files_and_bytes(live: TorchServe) -> None:
    with InferenceClient(live.inference_address, token=live.token("inference")) as client:
        assert list(client.predict_stream("echo", b"stream")) == [b"one ", "שתיים ".encode(), b"three"]
        assert client.predict("echo", b"stream") == "one שתיים three"
        parts = client.predict_stream("echo", b"stream and fail")
        assert next(parts) == b"one"
        with pytest.raises(AnswerBrokeOff, match=r"broke off\. The handler failed"):
            next(parts)
        assert client.predict("echo", files={"data": b"png"}) == bytes.fromhex("89504e47ff00")
        assert client.predict_raw("echo", b"header", headers={"X-Ask": "7"}).headers["x-answer"] == "7"


def test_the_life_of_a_version(live: TorchServe) -> None:
    """Every management call with its options, each answer of the form that its type says."""
    management = live.management
    said = management.register(
        "echo-2.0.mar",
        "echo",
        initial_workers=0,
        batch_size=4,
        max_batch_delay=7,
        response_timeout=11,
        startup_timeout=12,
        runtime="python",
        handler="echo.py",
    )
    assert said["status"].startswith('Model "echo" Version: 2.0 registered with 0')
    second = management.describe("echo", "2.0")
    options = ("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "workers")
    assert [second[option] for option in options] == [4, 7, 11, 12, []]  # type: ignore[literal-required]
    assert second["jobQueueStatus"] == {"remainingCapacity": 100, "pendingRequests": 0}
    assert set(second) <= set(ModelDescription.__annotations__)

    assert management.scale("echo", version="2.0", min_worker=1, wait=False)["status"].startswith(
        "Processing"
    )
    assert management.scale("echo", version="2.0", min_worker=1) == {"status": "1 workers are READY"}
    customized = management.describe("echo", "2.0", customized=True)
    assert customized["customizedMetadata"] == {"labels": ["a", "b"]}
    assert set(customized["workers"][0]) <= set(Worker.__annotations__)
    assert "customizedMetadata" not in management.describe("echo", "2.0")

    assert "2.0" in management.set_default("echo", "2.0")["status"]
    assert management.describe("echo")["modelVersion"] == "2.0"
    assert {d["modelVersion"] for d in management.describe_all("echo")} == {"1.0", "2.0"}
    with pytest.raises(ApiError, match="set_default") as refused:
        management.unregister("echo")
    assert refused.value.status == 403
    management.set_default("echo", "1.0")
    assert management.unregister("echo", "2.0") == {"status": 'Model "echo" unregistered'}


def test_the_list_has_pages(live: TorchServe) -> None:
    management = live.management
    for name in ("b", "a"):
        management.register("echo-2.0.mar", name, initial_workers=0)
    first = management.list_page(limit=2)
    assert [entry["modelName"] for entry in first["models"]] == ["a", "b"]
    second = management.list_page(limit=2, next_page_token=first["nextPageToken"])
    assert second["models"][0] == {"modelName": "echo", "modelUrl": "echo-1.0.mar"}
    assert management.list_models() == first["models"] + second["models"]
    for name in ("a", "b"):
        management.unregister(name)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.describe("none"), "404 .*list_models"),
        (lambda m: m.describe(""), "not empty"),
        (lambda m: m.describe("echo", "9"), "404 .*describe_all"),
        (lambda m: m.describe("echo", "9", customized=True), "404 .*describe_all"),
        (lambda m: m.register("missing.mar"), "404 .* is in the server's model store"),
        (lambda m: m.register("text.mar"), "400 .* whole archive"),
        (lambda m: m.describe("echo", "all"), "Ask describe_all"),
        (lambda m: m.register(""), "file name of an archive"),
        (lambda m: m.register("file:///nowhere/x.mar"), "archive"),
        (lambda m: m.register("http://127.0.0.1:1/x.mar"), "archive"),
        (lambda m: m.register("echo-2.0.mar", "a/b"), 'has no "/"'),
        (
            lambda m: m.register("echo-2.0.mar", "m", runtime="cobol"),
            "runtime is 'cobol'. Give one of python",
        ),
        (lambda m: m.register("echo-2.0.mar", "m", batch_size=-5), "batch_size is -5"),
        (lambda m: m.register("echo-2.0.mar", "m", initial_workers=2**31), "from 0 to 2147483647"),
        (lambda m: m.register("echo-1.0.mar", "echo"), "409 .* unregister it first"),
        (lambda m: m.scale("echo", min_worker=-1), "min_worker is -1"),
        (lambda m: m.scale("echo", min_worker=2, max_worker=1), "max_worker is 1. Give at least"),
        (lambda m: m.scale("echo", min_worker=1, timeout=float("nan")), "timeout is nan"),
        (lambda m: m.set_default("echo", "9"), "404 .*describe_all"),
        (lambda m: m.list_page(limit=0), "from 1 to 100"),
        (lambda m: m.unregister("none"), "404 .*list_models"),
    ],
)
def test_a_wrong_management_call_is_told_what_to_do(
    call: Callable[[ManagementClient], object], sentence: str, live: TorchServe
) -> None:
    with pytest.raises((ApiError, ValueError), match=sentence):
        call(live.management)


def test_an_address_that_is_not_the_management_one_is_told(live: TorchServe) -> None:
    with pytest.raises(ApiError, match="have one each"):
        ManagementClient(live.metrics_address, token=live.token("management")).list_models()
    with pytest.raises(ApiError, match="token"):
        ManagementClient(live.inference_address, token=live.token("management")).list_models()


TEXTS = ["", "echo", "1.0", "2.0", "all", "..", "a/b", "two\nlines", "%2F", "é", "😀", "\ud800", "x" * 5000]
NO_TEXTS: st.SearchStrategy[Any] = st.sampled_from([None, 3, b"x", ["a"]])
NAMES = st.sampled_from(TEXTS) | st.text(max_size=20) | NO_TEXTS
# Numbers that are right and large are left out: the server would really start a thousand workers.
NUMBERS: st.SearchStrategy[Any] = st.sampled_from([-1, 0, 1, 2**31, -(2**31), 10**30, 0.5, True, "1", "x"])
URLS = NAMES | st.sampled_from(
    ["echo-2.0.mar", "text.mar", "../text.mar", "/", "http://", "http://[::", "ftp://a/b"]
)
TIMEOUTS: st.SearchStrategy[Any] = st.sampled_from([20, 20.0, 0, -1, float("nan"), 1e9, None, "20"])
URLS |= st.sampled_from(["http://127.0.0.1:1/a.mar", "file://", "file:///nowhere.mar", "://"])
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def call(method: str, *arguments: Any, **options: Any) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(method), st.tuples(*arguments), st.fixed_dictionaries({}, optional=options))


REGISTER = {
    **dict.fromkeys(("batch_size", "max_batch_delay", "response_timeout", "startup_timeout"), NUMBERS),
    **dict.fromkeys(("handler", "runtime"), NAMES),
    "timeout": TIMEOUTS,
    "wait": st.booleans(),
    "initial_workers": NUMBERS.filter(lambda number: number != 1),
}
CALLS = st.one_of(
    call("list_models"),
    call("list_page", NUMBERS, NUMBERS),
    call("describe", NAMES, st.none() | NAMES, customized=st.booleans()),
    call("describe_all", NAMES),
    call("register", URLS, st.none() | NAMES, **REGISTER),
    call("scale", NAMES, max_worker=NUMBERS, version=NAMES, wait=st.booleans(), timeout=TIMEOUTS),
    call("set_default", NAMES, NAMES),
    call("unregister", NAMES.filter(lambda name: name != "echo"), st.none() | NAMES),
    call("scrape", st.none() | NAMES),
)


TOKENS = st.sampled_from(["right"] * 4 + [None, "", "wrong", 3, b"x"]) | st.text(max_size=20)
ADDRESSES = st.sampled_from([None, 3, b"http://127.0.0.1", "", "http://", "http://[::", "ftp://a", "no url"])
CONNECTIONS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),  # half of the calls go where they should
    st.just({}),
    st.fixed_dictionaries({"address": ADDRESSES}),
    st.fixed_dictionaries({"timeout": st.sampled_from([None, 5, (5,), (0, 20), (5, "x"), (5, 20, 5)])}),
)


@given(call=CALLS, min_worker=NUMBERS, token=TOKENS, connection=CONNECTIONS)
@settings(max_examples=600, deadline=30_000)  # ms for one example: none may hang
def test_any_call_is_answered_or_told_what_to_do(
    call: Call, min_worker: Any, token: Any, connection: dict[str, Any], live: TorchServe
) -> None:
    method, arguments, options = call
    token = live.token("management") if token == "right" else token
    if method == "scale":
        options = {**options, "min_worker": min_worker}
    if method == "register":
        options = {"initial_workers": 0, **options}
    address, client = (
        (live.metrics_address, MetricsClient)
        if method == "scrape"
        else (live.management_address, ManagementClient)
    )
    connection = {"address": address, "timeout": (5, 20), **connection}
    try:
        getattr(client(token=token, **connection), method)(*arguments, **options)
    except ApiError as error:
        said = f"{error.status} {error.kind}: {error.message}".rstrip(".")
        assert str(error).removeprefix(said).strip(". ") and "Traceback" not in str(error), str(error)
    except ValueError as error:
        assert "Traceback" not in str(error)
    except (TypeError, AttributeError):
        pass  # Python's own, of an argument of another type


def test_the_server_is_up_after_all_that(live: TorchServe) -> None:
    live.management.set_default("echo", "1.0")
    live.management.scale("echo", min_worker=1)
    assert live.inference.ping() == {"status": "Healthy"}
    assert live.inference.predict("echo", b"") == "echo"
