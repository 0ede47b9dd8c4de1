"""A client that a fork inherits: each process gets the answers to its own requests."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tutorial_lib import (
    ConnectionFailed,
    InferenceClient,
    KeyFile,
    ManagementClient,
    MetricsClient,
    TorchServe,
)
from tutorial_lib.load import load_test

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="This system has no fork"),
]
PROCESSES, REQUESTS = 4, 30


class _Echo(BaseHTTPRequestHandler):
    """Answers with the question, so that an answer shows whose it is."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        described = json.dumps([{"modelName": self.path.rpartition("/")[2]}]).encode()
        self._send(b"m 1\n" if self.path == "/metrics" else described)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if body != "stream":
            return self._send(json.dumps(body).encode())
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (b"1\r\na\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"):
            self.wfile.write(part)
            time.sleep(0.1)
        return None

    def _send(self, content: bytes) -> None:
        time.sleep(0.002)  # else one process often ends before the next begins
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def echo_address() -> Iterator[str]:
    with serving(_Echo) as address:
        yield address


def in_forks(ask: Callable[[str], object], processes: int = PROCESSES) -> list[Any]:
    """Calls `ask` with the name of a fork, in each of several forks at once; returns what they returned."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def run(name: str) -> None:
        try:
            answers.put(ask(name))
        except BaseException as error:
            answers.put(f"{type(error).__name__}: {error}")

    forks = [context.Process(target=run, args=(f"fork{number}",)) for number in range(processes)]
    for fork in forks:
        fork.start()
    found = [answers.get() for _ in forks]
    for fork in forks:
        fork.join()
    return found


def predict(address: str) -> Callable[[str], bool]:
    client = InferenceClient(address)
    return lambda text: bool(client.predict("m", text.encode()) == text)


def describe(address: str) -> Callable[[str], bool]:
    client = ManagementClient(address)
    return lambda text: client.describe(text)["modelName"] == text


def scrape(address: str) -> Callable[[str], bool]:
    client = MetricsClient(address)
    return lambda _: [sample.name for sample in client.samples()] == ["m"]


@pytest.mark.parametrize("make", [predict, describe, scrape])
@pytest.mark.parametrize("threads", [1, 4])
def test_each_fork_gets_its_own_answers(
    make: Callable[[str], Callable[[str], bool]], threads: int, echo_address: str
) -> None:
    """So does the parent, whose connections the forks hold."""
    is_right = make(echo_address)
    with ThreadPoolExecutor(threads) as pool:  # fills the pool of connections
        assert all(pool.map(is_right, map(str, range(2 * threads))))

    def ask(name: str) -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(is_right, (f"{name}-{number}" for number in range(REQUESTS))))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, "parent")
        assert in_forks(ask) == [REQUESTS] * PROCESSES
        assert asking.result() == REQUESTS


def test_forks_of_forks_and_a_client_that_a_fork_closes(echo_address: str) -> None:
    is_right = predict(echo_address)
    client = InferenceClient(echo_address)
    assert is_right("a") and client.predict("m", b"a") == "a"

    def ask(name: str) -> object:
        client.close()
        return [is_right(name), client.predict("m", name.encode()) == name, *in_forks(is_right, 2)]

    assert in_forks(ask, 2) == [[True] * 4] * 2
    assert client.predict("m", b"b") == "b"


def test_a_stream_is_read_only_where_it_was_asked_for(echo_address: str) -> None:
    """A fork that reads on would take parts from its parent."""
    client = InferenceClient(echo_address)
    new, begun = (client.predict_stream("m", b"stream") for _ in range(2))
    assert next(begun) == b"a"
    for stream in (new, begun):
        [said] = in_forks(lambda _, stream=stream: next(stream), 1)  # type: ignore[misc]
        assert "This stream belongs to the process that was forked" in said
    assert (list(new), list(begun)) == ([b"a", b"b"], [b"b"])


def test_a_fork_made_during_a_renewal_renews_for_itself(tmp_path: Path) -> None:
    """The parent's thread holds the lock of renewals when the fork copies it."""
    asked, go = threading.Event(), threading.Event()
    path = tmp_path / "key_file.json"

    def write(key: str) -> None:
        path.write_text(json.dumps({kind: {"key": key} for kind in ("inference", "API")}))

    class Renewal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            go.wait(30)
            write("new")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    write("old")
    with serving(Renewal) as address, ThreadPoolExecutor(1) as pool:
        key_file = KeyFile(path, address)
        renewed = pool.submit(key_file.renew, "inference", expired="old")
        assert asked.wait(30)
        threading.Timer(0.5, go.set).start()
        assert in_forks(lambda _: key_file.renew("inference", expired="old"), 2) == ["new", "new"]
        assert renewed.result() == "new"


def test_a_load_test_in_forks(echo_address: str) -> None:
    def ask(_: object) -> list[str]:
        url = f"{echo_address}/predictions/m"
        how: dict[str, Any] = {"concurrency": 2, "duration": 0.3, "warmup": 0}
        return sorted(load_test(url, [b"a", b"b"], labels=["a", "b"], **how)["outcomes"].iloc[0])

    assert [ask(None), *in_forks(ask, 2)] == [["right"]] * 3


def test_an_error_in_a_fork_is_the_same() -> None:
    client = InferenceClient("http://127.0.0.1:1")
    with pytest.raises(ConnectionFailed, match="Nothing answers"):
        client.ping()
    [said] = in_forks(lambda _: client.ping(), 1)
    assert "Nothing answers" in said


def test_the_clients_of_a_server_in_forks(server: TorchServe) -> None:
    right = {"I love this!": "Positive", "This is awful.": "Negative"}
    for text, label in right.items():
        assert server.inference.predict("my_model", {"input": [text]}) == [label]
    assert server.management.list_models() and server.metrics.samples("ts_")

    def ask(name: str) -> object:
        text = list(right)[name.endswith("1")]
        answers = {server.inference.predict("my_model", {"input": [text]})[0] for _ in range(5)}
        names = [entry["modelName"] for entry in server.management.list_models()]
        return answers == {right[text]} and "my_model" in names and bool(server.metrics.samples("ts_"))

    assert in_forks(ask, 2) == [True, True]
    assert server.inference.ping() == {"status": "Healthy"}
