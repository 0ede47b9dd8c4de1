"""A model asks another one of its own TorchServe server, with access tokens on that expire."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.certificates import write_certificate
from tests.conftest import eventually
from tutorial_lib import NoAnswer, TorchServe, TutorialError, build_archive, client_of_this_server
from tutorial_lib.servers.config import ServerConfig, to_properties

DOUBLE = """
def handle(data, context):
    return data and [2 * int(bytes(row["body"])) for row in data]
"""
ASK = """
from tutorial_lib import client_of_this_server


class Ask:
    def initialize(self, context):
        self.server = client_of_this_server(timeout=30)

    def handle(self, data, context):
        return [1 + self.server.predict("double", bytes(row["body"]), retries=3) for row in data]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("chain")
    for name, code in (("double", DOUBLE), ("ask", ASK)):
        (folder / f"{name}_it.py").write_text(code)
    return {
        name: build_archive(name, handler=folder / f"{name}_it.py", export_path=folder / "store")
        for name in ("double", "ask")
    }


@pytest.fixture(scope="module")
def chain(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """Tokens that expire after 6 s, and https with a certificate in a folder whose name Java escapes."""
    folder = tmp_path_factory.mktemp("für") / "😀"
    folder.mkdir()
    config = {**write_certificate(folder, "127.0.0.1"), "token_expiration_min": 0.1}
    with TorchServe(models=models, config=config) as server:
        yield server


def test_a_model_asks_another(chain: TorchServe) -> None:
    with ThreadPoolExecutor(4) as pool:
        ask = lambda number: chain.inference.predict("ask", b"%d" % number)  # noqa: E731
        assert list(pool.map(ask, range(12))) == [2 * number + 1 for number in range(12)]


def test_it_asks_after_its_token_has_expired(chain: TorchServe) -> None:
    for _ in range(2):
        key = chain.key_file.read_text()
        token = chain.token("inference")

        def has_renewed(token: str = token) -> bool:
            assert chain.inference.predict("ask", b"3") == 7
            return chain.token("inference") != token

        eventually(has_renewed, 30)
        assert chain.key_file.read_text() != key


def test_a_model_asks_another_without_tokens(models: dict[str, Path]) -> None:
    with TorchServe(models=models, token_auth=False) as server:
        assert server.inference.predict("ask", b"3") == 7


def test_elsewhere_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setenv("TEMP", str(folder))
        with pytest.raises(TutorialError, match="no worker of a server that TorchServe"):
            client_of_this_server()


def test_it_follows_the_servers_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ServerConfig.of({"inference_address": "http://0.0.0.0:81", "management_address": "http://h:82"})
    (tmp_path / "config.properties").write_text(to_properties(given.settings))
    monkeypatch.setenv("TEMP", str(tmp_path))
    client = client_of_this_server(timeout=3)
    assert client.address == "http://127.0.0.1:81"
    with pytest.raises(NoAnswer):
        client.ping()
