"""The clients against a stand-in that answers as told, so that each error and header can be seen.

At the end, against a real server: the whole management API, and anything that a caller may get wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial_lib import (
    ApiError,
    InferenceClient,
    KeyFile,
    ManagementClient,
    MetricsClient,
    TorchServe,
    build_archive,
)
from tutorial_lib.client import ModelDescription, Worker


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
    InferenceClient(stand_in.address + "/").predict("a b?c", b"", version="1#2")
    assert stand_in.seen[0].path == "/predictions/a%20b%3Fc/1%232"


def test_an_answer_that_is_not_json_is_text(stand_in: StandIn) -> None:
    stand_in.answers = [(200, b"Positive!")]
    assert InferenceClient(stand_in.address).predict("m", b"") == "Positive!"


@pytest.mark.parametrize("status", [500, 507])  # it crashed; it was killed
def test_a_retry_asks_again_where_a_worker_died_and_nowhere_else(status: int, stand_in: StandIn) -> None:
    client = InferenceClient(stand_in.address)
    stand_in.fail(status, "InternalServerException", "Worker died.")
    with pytest.raises(ApiError, match=r"try again|Try again"):
        client.predict("m", b"")
    assert len(stand_in.seen) == 1
    stand_in.answers.append((200, b"[1]"))
    assert client.predict("m", b"", retries=1) == [1] and len(stand_in.seen) == 3
    stand_in.fail(503, "InternalServerException", "Prediction failed")
    with pytest.raises(ApiError, match="Prediction failed"):
        client.predict("m", b"", retries=1)
    assert len(stand_in.seen) == 4


@pytest.mark.parametrize(
    ("status", "kind", "message", "advice"),
    [
        (400, "InvalidKeyException", "Token Authorization failed", "missing, wrong or expired"),
        (404, "ModelNotFoundException", "Model not found: m", "list_models"),
        (405, "MethodNotAllowedException", "not allowed", "model_api=True"),
        (409, "ConflictStatusException", "already registered", "unregister it first"),
        (413, "RequestEntityTooLargeException", "too large", "max_request_size"),
        (500, "InternalServerException", "Worker died.", "responseTimeout"),
        (
            503,
            "ServiceUnavailableException",
            "No worker is available to serve request",
            "or the queue is full",
        ),
        (503, "InternalServerException", "Prediction failed", "first traceback"),
        (507, "InternalServerException", "Out of resources", "out of memory"),
        (507, "InternalServerException", "Worker died.", "was killed"),
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
        with pytest.raises(ApiError, match="is not TorchServe"):
            ask()


def test_a_page_that_is_no_metrics_is_an_api_error(stand_in: StandIn) -> None:
    stand_in.answers = [(200, b"<html>a page</html>")]
    with pytest.raises(ApiError, match="is not TorchServe"):
        MetricsClient(stand_in.address).scrape()


def test_silence_is_a_timeout(stand_in: StandIn) -> None:
    stand_in.hold = Event()
    try:
        with pytest.raises(ApiError, match=r"Timeout: No answer from .* within 0.3 s"):
            InferenceClient(stand_in.address).predict("m", b"", timeout=0.3)
    finally:
        stand_in.hold.set()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"address": "http://127.0.0.1:1"}, "Nothing answers"),
        ({"address": "127.0.0.1:8080"}, "can't be asked"),
        ({"address": "http://"}, "can't be asked"),
        ({"address": "no url"}, "can't be asked"),
        ({"address": None}, "address is None. Give a text"),
        ({"timeout": None}, "timeout is None. Give two numbers"),
        ({"timeout": (5, -1)}, "timeout is -1. Give a number of seconds"),
        ({"token": 3}, "can't be a token"),
        ({"address": "https://127.0.0.1:1", "verify": "none.pem"}, r"none\.pem"),
    ],
)
def test_what_no_client_can_be_made_of_is_an_api_error(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as raised:
        InferenceClient(**{"address": "http://127.0.0.1:1", **options}).ping()
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
    stand_in.answers = [(202, b'{"status": "Processing"}'), (200, json.dumps(loading).encode())]
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
    stand_in.answers = [(200, b"# TYPE Requests2XX counter\nRequests2XX 3\n")]
    assert list(metrics.scrape()["name"]) == ["Requests2XX"]  # as Prometheus has it


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


# Against a real server

HANDLER = """
class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [{"labels": ["a", "b"]}]
        return ["echo"] * len(data)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with two versions of a handler that needs no model, and a file that is no archive."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text(HANDLER)
    for version in ("1.0", "2.0"):
        build_archive(
            f"echo-{version}", handler=folder / "echo.py", export_path=folder / "store", version=version
        )
    (folder / "store" / "text.mar").write_text("no archive")
    return folder / "store"


@pytest.fixture(scope="module")
def live(store: Path) -> Iterator[TorchServe]:
    with TorchServe(models={"echo": store / "echo-1.0.mar"}, model_api=True) as running:
        yield running


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
    assert second == {"models": [{"modelName": "echo", "modelUrl": "echo-1.0.mar"}]}
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
        (lambda m: m.register(None), "archive is None. Give the file name"),
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
        (lambda m: m.list_page(next_page_token="x"), "next_page_token is 'x'"),
        (lambda m: m.unregister("none"), "404 .*list_models"),
    ],
)
def test_a_wrong_management_call_is_told_what_to_do(
    call: Callable[[ManagementClient], object], sentence: str, live: TorchServe
) -> None:
    with pytest.raises(ApiError, match=sentence):
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
    **dict.fromkeys(("wait", "s3_sse_kms"), st.booleans()),
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
        said = f"{error.status or ''} {error.kind}: {error.message}".strip().rstrip(".")
        assert error.kind == "InvalidArgument" or str(error).removeprefix(said).strip(". "), str(error)
        assert "Traceback" not in str(error) and error.kind != "Timeout"


def test_the_server_is_up_after_all_that(live: TorchServe) -> None:
    live.management.set_default("echo", "1.0")
    live.management.scale("echo", min_worker=1)
    assert live.inference.ping() == {"status": "Healthy"}
    assert live.inference.predict("echo", b"") == "echo"
