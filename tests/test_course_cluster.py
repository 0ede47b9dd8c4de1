"""What chapter 15 measures and compares with: notebooks/course/cluster.py, without Ray."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import requests
from course import cluster

from tests.conftest import gone
from tutorial_lib import ApiError


class Answering(BaseHTTPRequestHandler):
    """Answers ["good"], but a model named "broken" with a 400."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(["good"]).encode()
        self.send_response(400 if "broken" in self.path else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_clients_ask_until_the_block_ends(address: str) -> None:
    with cluster.Clients(2, address, "my_model") as clients:
        threading.Event().wait(0.3)
    answers = [answer for answer, _ in clients.answers]
    assert answers and all(answer == ["good"] for answer in answers)
    when = [at for _, at in clients.answers]
    assert max(when) - min(when) < 5


def test_an_error_of_a_client_is_raised_at_the_end_of_the_block(address: str) -> None:
    with pytest.raises(ApiError), cluster.Clients(2, address, "broken"):
        threading.Event().wait(0.3)


def test_an_error_of_the_block_is_not_hidden(address: str) -> None:
    with pytest.raises(ZeroDivisionError), cluster.Clients(1, address, "broken"):
        threading.Event().wait(0.3)
        raise ZeroDivisionError


def test_a_cost_is_of_the_processes_with_that_name(address: str) -> None:
    """The server runs in this process, which is therefore the whole and no part of it."""
    url = f"{address}/predictions/my_model"
    found = cluster.cost(url, ["a", "b"], clients=2, seconds=0.4, ingress="no such process")
    assert found.rate > 0 and found.ingress == found.replica == 0
    assert found.total > 0 and 0 <= found.cores <= (os.cpu_count() or 1)


def test_a_program_ends_with_its_block(tmp_path: Path) -> None:
    with cluster.program(["-m", "http.server", "--bind", "127.0.0.1"], tmp_path / "log") as (
        address,
        process,
    ):
        assert requests.get(address, timeout=30).ok
        assert psutil.Process(process.pid).is_running() and cluster.memory(process) > 1
    assert gone([process])


def test_a_program_that_fails_shows_its_log(tmp_path: Path) -> None:
    command = ["-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(TimeoutError, match="no such model"),
        cluster.program(command, tmp_path / "log"),
    ):
        pass


def test_an_environment_is_the_same_within_a_process() -> None:
    """Ray keeps the first access token that it reads: a chapter that runs again needs that one."""
    assert cluster.environment() == cluster.environment()
    assert cluster.environment()["RAY_AUTH_MODE"] == "token"
