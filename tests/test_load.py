"""load_test against servers whose speed and faults are known, and against TorchServe."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tutorial_lib import ApiError, TorchServe, load_test
from tutorial_lib.clients import encode
from tutorial_lib.load import _url

Answer = Callable[[Any], tuple[int, object]]
Serve = Callable[[Answer], str]


class Raw(bytes):
    """A body that is not JSON, with the headers that came with it."""

    headers: dict[str, str]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts an HTTP server that answers each body with what a function says; gives its URL."""
    started: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = Raw(self.rfile.read(int(self.headers["Content-Length"])))
                body.headers = {name.lower(): value for name, value in self.headers.items()}
                is_json = self.headers["Content-Type"] == "application/json"
                status, value = answer(json.loads(body) if is_json else body)
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def echo(body: Any) -> tuple[int, object]:
    return 200, [text.upper() for text in body["input"]]


def one_at_a_time(seconds: float) -> Answer:
    """A server with one worker that takes that long for each request."""
    worker = threading.Lock()

    def answer(body: Any) -> tuple[int, object]:
        with worker:
            time.sleep(seconds)
        return echo(body)

    return answer


def test_the_figures_are_those_of_a_known_server(serve: Callable[[Answer], str]) -> None:
    url = serve(one_at_a_time(0.02))
    frame = load_test(url, ["a", "b"], labels=["A", "B"], concurrency=[1, 8], duration=1, warmup=0.3)
    assert list(frame["clients"]) == [1, 8] and set(frame["mode"]) == {"closed"}
    assert frame["errors"].sum() == frame["wrong"].sum() == 0
    assert all(25 < rate < 51 for rate in frame["requests_per_s"])
    one, eight = frame["p50_ms"]
    assert 20 <= one < 60 and 6 * 20 <= eight < 400  # seven others are always before one
    assert (frame["p50_ms"] <= frame["p99_9_ms"]).all() and (frame["client_cpu"] < 0.5).all()


def test_wrong_answers_are_counted_and_are_no_throughput(serve: Callable[[Answer], str]) -> None:
    url = serve(lambda body: (200, ["A"]))
    row = load_test(url, ["a", "b"], labels=["A", "B"], concurrency=2, duration=0.5, warmup=0).iloc[0]
    right = row["outcomes"]["right"]
    assert abs(row["wrong"] - right) <= 2 and row["requests"] == right + row["wrong"]
    assert row["requests_per_s"] <= right / 0.5 and row["errors"] == 0


@pytest.mark.parametrize("labels", [["A", "B"], None])
def test_labels_are_taken_out_of_an_answer_that_wraps_them(
    serve: Callable[[Answer], str], labels: list[str] | None
) -> None:
    number = itertools.count()

    def answer(body: Any) -> tuple[int, object]:
        return 200, {"id": next(number), "outputs": [body["input"][0].upper()]}

    def outputs(content: bytes) -> object:
        return json.loads(content)["outputs"]

    url = serve(answer)
    how: dict[str, Any] = {"concurrency": 2, "duration": 0.3, "warmup": 0}
    row = load_test(url, ["a", "b"], labels=labels, answer=outputs, **how).iloc[0]
    assert set(row["outcomes"]) == {"right"}
    row = load_test(url, ["a"], labels=["A"], answer=lambda content: content[99], **how).iloc[0]
    assert set(row["outcomes"]) == {"wrong"}


def test_answers_swapped_by_load_are_found_without_labels(serve: Callable[[Answer], str]) -> None:
    asked = 0

    def answer(body: Any) -> tuple[int, object]:
        nonlocal asked
        asked += 1
        return echo(body) if asked <= 2 else (200, ["A"])

    row = load_test(serve(answer), ["a", "b"], concurrency=1, duration=0.3, warmup=0).iloc[0]
    assert row["wrong"] > 0 and row["outcomes"]["right"] > 0


def test_errors_are_counted_by_kind(serve: Callable[[Answer], str]) -> None:
    def answer(body: Any) -> tuple[int, object]:
        if body["input"] == ["slow"]:
            time.sleep(2)
        return (503, {"message": "no"}) if body["input"] == ["bad"] else echo(body)

    texts = ["good", "bad", "slow"]
    labels = [text.upper() for text in texts]
    row = load_test(
        serve(answer), texts, labels=labels, concurrency=3, duration=1, warmup=0, timeout=0.5
    ).iloc[0]
    assert {"right", "503", "TimeoutError"} == set(row["outcomes"])
    assert row["errors"] == row["outcomes"]["503"] + row["outcomes"]["TimeoutError"]
    assert row["p99_9_ms"] < 500  # of right answers


def test_an_open_loop_shows_the_queue_that_a_closed_one_hides(serve: Callable[[Answer], str]) -> None:
    url = serve(one_at_a_time(0.02))  # 50 a second at most
    closed = load_test(url, ["a"], concurrency=1, duration=1, warmup=0).iloc[0]
    open_ = load_test(url, ["a"], rate=[20, 100], duration=1, warmup=0)
    calm, flooded = (open_.iloc[i] for i in range(2))
    assert list(open_["rate"]) == [20, 100] and open_["clients"].isna().all()
    assert calm["requests"] == 20 and flooded["requests"] == 100  # it sends on, whatever the server does
    assert flooded["requests_per_s"] < 51 and flooded["p50_ms"] > 4 * calm["p50_ms"]
    assert flooded["p99_ms"] > 10 * closed["p99_ms"]


def test_several_texts_in_a_request(serve: Callable[[Answer], str]) -> None:
    sizes = set()

    def answer(body: Any) -> tuple[int, object]:
        sizes.add(len(body["texts"]))
        return echo({"input": body["texts"]})

    row = load_test(
        *(serve(answer), ["a", "b", "c"]),
        labels=["A", "B", "C"],
        texts_per_request=2,
        body=lambda texts: {"texts": texts},
        concurrency=1,
        duration=0.3,
    ).iloc[0]
    assert sizes == {2} and row["wrong"] == row["errors"] == 0
    assert row["texts_per_s"] == 2 * row["requests_per_s"]


@pytest.mark.parametrize(
    ("body", "headers", "content_type", "content"),
    [
        (lambda items: items[0], {}, None, b"\x89PNG"),
        (lambda items: items[0], {"content-type": "image/png"}, "image/png", b"\x89PNG"),
        (lambda items: "Straße", {}, "text/plain; charset=utf-8", "Straße".encode()),
        (lambda items: encode(files={"data": items[0]}), {}, "multipart/form-data; boundary=", b"\x89PNG"),
    ],
)
def test_any_body_is_sent(
    body: Callable[[list[bytes]], object],
    headers: dict[str, str],
    content_type: str | None,
    content: bytes,
    serve: Callable[[Answer], str],
) -> None:
    seen: list[Raw] = []

    def answer(body: Any) -> tuple[int, object]:
        seen.append(body)
        return 200, "cat"

    options: dict[str, Any] = {"headers": headers, "concurrency": 1, "duration": 0.2, "warmup": 0}
    row = load_test(serve(answer), [b"\x89PNG"], body=body, **options).iloc[0]
    assert set(row["outcomes"]) == {"right"}
    assert content in bytes(seen[0]) and seen[0].headers.get("content-type", "None").startswith(
        str(content_type)
    )


@pytest.mark.parametrize(
    ("token_auth", "authorization"), [(True, "Bearer secret of inference"), (False, None)]
)
def test_anything_that_serves_is_asked_with_its_token(
    token_auth: bool, authorization: str | None, serve: Callable[[Answer], str]
) -> None:
    """A container's key is never in TorchServe's key file: only `token` knows it."""
    seen: list[Raw] = []

    def answer(body: Any) -> tuple[int, object]:
        seen.append(body)
        return 200, ["A"]

    server: Any = SimpleNamespace(
        inference_address=serve(answer).rstrip("/"),
        token_auth=token_auth,
        token=lambda kind: f"secret of {kind}",
    )
    load_test(server, [b"a"], body=lambda items: items[0], concurrency=1, duration=0.2, warmup=0)
    assert seen[0].headers.get("authorization") == authorization


@pytest.mark.parametrize(
    ("samples", "labels", "answers", "options"),
    [
        ([{"x": [1, 2, 3, 4]}], [12.5], [12.5], {}),
        ([{"x": [1, 2, 3, 4]}], [12.5], [[12.5]], {}),  # the only item of a list
        ([[1, 2], [3, 4]], [3, 7], [3, 7], {}),
        ([b"\x89PNG", b"GIF"], ["cat", "dog"], ["cat", "dog"], {}),
        ([3, 2.5, [True]], [1, 2, 3], [1, 2, 3], {}),
        ([{"x": 1}], [{"label": "a", "score": 0.25}], [{"score": 0.25000001, "label": "a"}], {}),
        ([{"x": 1}], [[0.1, 0.2]], [[0.1, 0.2]], {}),
        ([{"x": 1}], [(0.1, 0.2)], [[0.1, 0.2]], {}),
        ([{"x": 1}], [[["a", 1]]], [[["a", 1]]], {}),
        ([{"x": 1}], [12], [12.000001], {}),
        ([{"x": 1}], [0.0], [1e-9], {}),
        ([{"x": 1}], [10.0], [10.4], {"tolerance": 0.05}),
        ([{"x": 1}, {"x": 2}], np.array([0.5, 1.5]), [0.5, 1.5], {}),
        ([{"x": 1}, {"x": 2}], np.array([[0.5, 1], [1.5, 2]], "float32"), [[0.5, 1.0], [1.5, 2.0]], {}),
        ([{"x": 1}], None, [{"label": "a", "score": 0.25}], {}),
        (["a", "b"], ["A", "B"], [["A"], ["B"]], {}),
        (["a", "b"], ["A", "B"], ["A", "B"], {}),
        (["a", "b"], ["A", "B"], [["A", "B"]], {"texts_per_request": 2}),
        (["a", {"x": 1}], ["A", 1.0], [["A"], 1.0], {}),
        ([{"x": 1}, {"x": 2}], [1, 2], [[1, 2]], {"texts_per_request": 2, "body": lambda some: some}),
    ],
)
def test_any_sample_has_its_right_answer(
    samples: list[Any], labels: Any, answers: list[object], options: dict[str, Any], serve: Serve
) -> None:
    """Without model=, body= or answer=."""
    bodies: list[Any] = []

    def answer(body: Any) -> tuple[int, object]:
        if body not in bodies:
            bodies.append(body)
        return 200, answers[bodies.index(body)]

    how: dict[str, Any] = {"concurrency": 1, "duration": 0.2, "warmup": 0, **options}
    assert set(load_test(serve(answer), samples, labels=labels, **how).iloc[0]["outcomes"]) == {"right"}
    if options:
        return
    texts = [{"input": [one]} if isinstance(one, str) else one for one in samples]
    assert bodies == texts[: len(bodies)]


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        *((12.5, 12.6), (12.5, "12.5"), (12.5, [12.5, 12.5]), (12.5, []), (12.5, None), (12.5, float("nan"))),
        *((1000, 1001), (1, True), (True, 1), (1.0, True), (True, False), ("a", "b"), ("a", ["b"]), ("1", 1)),
        *(({"a": 1}, {"a": 2}), ({"a": 1}, {"a": 1, "b": 1}), ({"a": 0.5}, {"b": 0.5}), ({"a": 1}, [1, 1])),
        *(([1, 2], [2, 1]), ([0.1, 0.2], [0.1]), ([0.1], [0.1, 0.2]), (0.0, 0.01), (-0.5, 0.5)),
    ],
)
def test_another_answer_is_wrong(label: object, answer: object, serve: Serve) -> None:
    url = serve(lambda _: (200, answer))
    row = load_test(url, [{"x": 1}], labels=[label], concurrency=1, duration=0.1, warmup=0).iloc[0]
    assert set(row["outcomes"]) == {"wrong"}


def test_several_samples_that_are_no_texts_need_a_body() -> None:
    with pytest.raises(ValueError, match="Leave texts_per_request= out, or give body="):
        load_test("http://127.0.0.1:1/", [{"x": 1}, {"x": 2}], texts_per_request=2)


@pytest.mark.parametrize(
    ("names", "given", "asked"),
    [
        (["price"], None, "price"),
        (["price", "my_model"], None, "my_model"),
        (["a", "b"], None, None),
        (["a", "b"], "b", "b"),
        ([], None, "my_model"),
    ],
)
def test_the_only_model_needs_no_name(
    names: list[str], given: str | None, asked: str | None, serve: Serve
) -> None:
    server: Any = SimpleNamespace(
        inference_address=serve(lambda body: (200, 1)).rstrip("/"),
        token_auth=False,
        management=SimpleNamespace(list_models=lambda: [{"modelName": name} for name in names]),
    )
    if asked is None:
        with pytest.raises(ValueError, match=r"models a, b\. Give one of them as model="):
            load_test(server, [{}])
        return
    assert _url(server, given).endswith(f"/predictions/{asked}")


class Tokens:
    """A server whose access token expires after so many requests; `token` renews it, if it can."""

    def __init__(self, serve: Serve, life: int, renews: bool = True) -> None:
        self.inference_address = serve(self._answer).rstrip("/")
        self.token_auth = True
        self._life, self._renews, self._left, self.number = life, renews, 0, 0

    def token(self, kind: str) -> str:
        if self._left <= 0 and (self._renews or not self.number):
            self._left, self.number = self._life, self.number + 1
        return f"{kind} {self.number}"

    def _answer(self, body: Any) -> tuple[int, object]:
        self._left -= 1
        if self._left < 0 or body.headers["authorization"] != f"Bearer inference {self.number}":
            return 400, {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed"}
        return 200, "A"


@pytest.mark.parametrize("rate", [None, 100])
def test_a_token_that_expires_in_a_row_is_renewed(rate: int | None, serve: Serve) -> None:
    server: Any = Tokens(serve, life=5)
    how: dict[str, Any] = {"concurrency": 1, "rate": rate, "duration": 1, "warmup": 0}
    row = load_test(server, [b"a"], labels=["A"], **how).iloc[0]
    assert row["outcomes"]["right"] > 10 and server.number > 2
    assert row["outcomes"]["right"] >= 0.9 * row["requests"]  # at a rate, several requests may be too late


def test_a_token_that_can_not_be_renewed_is_an_error_of_its_row(serve: Serve) -> None:
    server: Any = Tokens(serve, life=5, renews=False)
    row = load_test(server, [b"a"], labels=["A"], concurrency=1, duration=0.3, warmup=0).iloc[0]
    assert row["outcomes"]["right"] == 4 and row["outcomes"]["400"] == row["errors"] > 0


def test_torchserve_with_its_tokens_and_by_its_url(server: TorchServe) -> None:
    texts = ["I love this!", "The meeting is at 10 tomorrow.", "This is awful."]
    labels = ["Positive", "Neutral", "Negative"]
    options: dict[str, Any] = {"labels": labels, "concurrency": 8, "duration": 5}
    by_url = f"{server.inference_address}/predictions/my_model"
    with pytest.raises(ApiError, match="token is missing"):
        load_test(by_url, texts, **options)
    headers = {"Authorization": f"Bearer {server.token('inference')}"}
    for frame in (load_test(server, texts, **options), load_test(by_url, texts, headers=headers, **options)):
        row = frame.iloc[0]
        assert set(row["outcomes"]) == {"right"} and row["requests_per_s"] > 5, row
        assert row["client_cpu"] < 0.5


# From "listener" on, whoever asks waits for an answer.
TRIVIAL_SERVER = """
import socket
from aiohttp import web

async def answer(request):
    await request.read()
    return web.json_response(["Positive"])

listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
app = web.Application()
app.router.add_post("/", answer)
web.run_app(app, sock=listener, print=None, access_log=None)
"""


def test_its_own_cost_is_a_fraction_of_torchserves() -> None:
    """TorchServe spends 0.8 ms of CPU on a request, with a handler that does nothing."""
    server = subprocess.Popen([sys.executable, "-c", TRIVIAL_SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        row = load_test(url, ["a text"], concurrency=16, duration=1).iloc[0]
    finally:
        server.terminate()
        server.wait()
    assert row["client_cpu"] / row["requests_per_s"] < 0.0005


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"texts": []}, "nothing to send"),
        ({"texts": "one text"}, "list of texts"),
        ({"labels": ["A", "B"]}, "1 texts have 2 labels"),
        ({"concurrency": [0]}, "above 0"),
        ({"rate": -1}, "above 0"),
        ({"duration": 0}, "duration is 0"),
    ],
)
def test_bad_options_get_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_test("http://127.0.0.1:1/", **{"texts": ["a"], **options})


def test_a_body_that_can_not_be_sent_is_told() -> None:
    with pytest.raises(ValueError, match=r"data is .* Give bytes, a text"):
        load_test("http://127.0.0.1:1/", ["a"], body=set)


def test_without_aiohttp_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["aiohttp"] = None
from tutorial_lib import PackageMissing
try:
    from tutorial_lib import load_test
except PackageMissing as error:
    print(error)
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "load_test needs the package aiohttp" in output and "[load]" in output
