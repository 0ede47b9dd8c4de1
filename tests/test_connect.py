"""A server that somebody else started: the shared one, fake ones, one that starts late, and none."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import pytest

from tests.fake_server import FakeServer, Reply, fake_server
from tutorial_lib import (
    ApiError,
    KeyFile,
    TimedOut,
    TlsError,
    TorchServe,
    TutorialError,
    connect,
    load_test,
)

SAMPLE = {"input": ["I love this!"]}
HEALTHY = Reply(200, b'{"status": "Healthy"}')


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as server:
        yield server


def listed(*names: str) -> Reply:
    return Reply(
        200, json.dumps({"models": [{"modelName": name, "modelUrl": ""} for name in names]}).encode()
    )


def described(*states: str, workers: int = 1) -> Reply:
    found = [{"minWorkers": workers, "workers": [{"status": state} for state in states]}]
    return Reply(200, json.dumps(found).encode())


def test_it_has_the_face_of_a_server(server: TorchServe) -> None:
    tokens: Any = {kind: server.token(kind) for kind in ("inference", "management")}
    addresses = {"management": server.management_address, "metrics": server.metrics_address}
    with connect(server.inference_address, token=tokens, **addresses) as other:
        assert other.wait_until_ready(timeout=60) is other
        assert other.inference.predict("my_model", SAMPLE) == ["Positive"]
        assert other.management.describe("my_model")["modelName"] == "my_model"
        assert other.metrics.samples("ts_") and other.token("inference") == tokens["inference"]
        for name in ("inference", "management", "metrics"):
            assert getattr(other, f"{name}_address") == getattr(server, f"{name}_address")
    assert server.inference.predict("my_model", SAMPLE) == ["Positive"]  # it runs on


def test_its_key_file_renews_the_tokens_of_a_load_test(server: TorchServe) -> None:
    key_file = KeyFile(server.key_file, server.management_address)
    other = connect(server.inference_address, token=key_file)
    assert other.wait_until_ready(timeout=60).token("inference") == server.token("inference")
    row = load_test(other, ["I love this!"], labels=["Positive"], concurrency=1, duration=0.5).iloc[0]
    assert set(row["outcomes"]) == {"right"}


def test_without_an_address_it_names_the_argument(fake: FakeServer) -> None:
    other = connect(fake.address)
    for name in ("management", "metrics", "management_address", "metrics_address"):
        with pytest.raises(TutorialError, match=rf"without {name.removesuffix('_address')}="):
            getattr(other, name)
    with pytest.raises(TutorialError, match=r"without token={'inference'"):
        other.token("inference")
    with pytest.raises(ValueError, match=r"token has 'inferense'"):
        connect(fake.address, token={"inferense": "t"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"address is"):
        connect(fake.address, management="127.0.0.1:8081")


def test_nothing_that_listens_is_not_ready() -> None:
    with pytest.raises(TimedOut, match=r"not ready within 0.3 s: the server does not .* Nothing answers at"):
        connect("http://127.0.0.1:1").wait_until_ready(timeout=0.3)


def test_silence_is_not_ready(fake: FakeServer) -> None:
    fake.hold = Event()
    try:
        with pytest.raises(TimedOut, match=r"not ready within 0.3 s: .*TimedOut: No answer from"):
            connect(fake.address).wait_until_ready(timeout=0.3)
    finally:
        fake.hold.set()


def test_a_wrong_token_is_told_at_once(server: TorchServe) -> None:
    with pytest.raises(ApiError, match=r"400 InvalidKeyException: .*missing, wrong or expired"):
        connect(server.inference_address, token="wrong").wait_until_ready(timeout=60)
    tokens: Any = {"inference": server.token("inference"), "management": "wrong"}
    other = connect(server.inference_address, token=tokens, management=server.management_address)
    with pytest.raises(ApiError, match=r"400 InvalidKeyException"):
        other.wait_until_ready(timeout=60)


def test_what_waiting_can_not_change_is_told_at_once(fake: FakeServer) -> None:
    fake.answers = [Reply(200, b"<html>")]
    with pytest.raises(ApiError, match=r"is not TorchServe"):
        connect(fake.address).wait_until_ready(timeout=60)
    with pytest.raises(TlsError):
        connect(fake.address.replace("http:", "https:")).wait_until_ready(timeout=60)


def test_a_server_that_listens_late() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(connect(f"http://127.0.0.1:{port}").wait_until_ready, timeout=20)
        assert not wait([ready], timeout=0.4).done
        with fake_server(port):
            ready.result()


def test_a_server_that_is_ready_late(fake: FakeServer) -> None:
    starting = [Reply(503), Reply(404), HEALTHY, Reply(503), HEALTHY, listed("a", "b"), described("LOADING")]
    ready = [HEALTHY, listed("a", "b"), described("READY"), described("LOADING", "READY")]
    fake.answers = starting + ready
    connect(fake.address, management=fake.address).wait_until_ready(timeout=20)
    assert len(fake.seen) == len(starting + ready)


def test_a_model_without_workers_is_waited_for_only_if_it_is_named(fake: FakeServer) -> None:
    other = connect(fake.address, management=fake.address)
    fake.answers = [HEALTHY, listed("idle"), described(workers=0)]
    other.wait_until_ready(timeout=20)
    fake.answers = [HEALTHY, described(workers=0)] * 100
    with pytest.raises(TimedOut, match=r"the model idle has no READY worker \(its workers: none\)"):
        other.wait_until_ready(timeout=0.3, models=["idle"])


def test_without_a_management_address_a_ping_is_enough(fake: FakeServer) -> None:
    fake.answers = [Reply(500), HEALTHY]
    connect(fake.address).wait_until_ready(timeout=20)
    assert [seen.path for seen in fake.seen] == ["/ping", "/ping"]
