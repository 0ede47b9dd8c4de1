"""config.properties: what is written there arrives, and clients follow it; all else is a sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from course.servers import free_port
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates import write_certificate
from tests.conftest import ROOT
from tutorial_lib import ApiError, PortInUse, TorchServe, TutorialError
from tutorial_lib.servers.config import ServerConfig, to_properties


def read_properties(text: str) -> dict[str, str]:
    """As java.util.Properties reads a file: Latin-1, natural lines, then escapes."""
    units = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}

    def unescape(part: str) -> str:
        found = re.sub(
            r"\\(?:u([0-9a-fA-F]{4})|(.))",
            lambda m: chr(int(m[1], 16)) if m[1] else units.get(m[2], m[2]),
            part,
        )
        return found.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")

    settings = {}
    for line in re.split(r"\r\n|\r|\n", text.encode("ascii").decode("latin-1")):
        line = line.lstrip(" \t\f")
        if line and line[0] not in "#!":
            assert not line.endswith("\\"), "it goes on in the next line"
            key, _, value = re.fullmatch(r"((?:\\.|[^\\=: \t\f])*)([ \t\f]*[=:]?[ \t\f]*)(.*)", line).groups()  # type: ignore[union-attr]
            settings[unescape(key)] = unescape(value)
    return settings


@given(st.lists(st.text(st.characters(exclude_categories=[])), max_size=3))
def test_any_text_arrives_as_it_was_given(values: list[str]) -> None:
    settings = {f"key_{number}": value for number, value in enumerate(values)}
    assert read_properties(to_properties(settings)) == settings


@given(st.text(st.characters(exclude_categories=[])))
def test_any_value_is_taken_or_refused_in_a_sentence(value: str) -> None:
    for key in ("system_metrics_cmd", "vmargs"):
        try:
            config = ServerConfig.of({key: value})
        except ValueError as error:
            assert "config has" in str(error)
        else:
            text = to_properties(config.settings)
            assert read_properties(text) == {key: value}
            if key == "vmargs":  # TorchServe's launcher reads this one, and no escapes
                assert text == f"vmargs={value}\n" or value.startswith(" ")


def test_odd_paths_arrive_at_a_real_server(echo: Path, tmp_path: Path) -> None:
    """TorchServe ends where its metrics_config is not to be found."""
    folder = tmp_path / " größe 漢😀 a=b:#!\\u00e9\\"
    folder.mkdir()
    metrics = Path(shutil.copy(ROOT / "metrics.yaml", folder / "metrics.yaml"))
    store = tmp_path / "Modelle ü"
    store.mkdir()
    mar = Path(shutil.copy(echo, store / "echo.mar"))
    config = {"metrics_config": metrics, "models": {"m": {"1.0": {"minWorkers": 2, "maxWorkers": 2}}}}
    with TorchServe(models={"m": mar}, config=config, log_dir=tmp_path / "Protokolle ü") as server:
        assert server.inference.predict("m", b"") == "ok"
        assert server.management.describe("m")["minWorkers"] == 2
        assert str(metrics) in (server.log_dir / "ts_log.log").read_text(encoding="utf-8")


def test_clients_follow_what_config_says(echo: Path) -> None:
    inference, grpc = free_port(), free_port()
    config = {
        "disable_token_authorization": "TRUE",
        "enable_model_api": True,
        "inference_address": f"http://0.0.0.0:{inference}",
        "grpc_inference_port": grpc,
    }
    with TorchServe(models={"m": echo}, config=config) as server:
        assert not server.token_auth and "--disable-token-auth" in server.command
        assert server.inference_address == f"http://127.0.0.1:{inference}"
        assert (server.ports["inference"], server.ports["grpc_inference"]) == (inference, grpc)
        assert server.inference.predict("m", b"") == "ok"
        server.management.unregister("m")
        with pytest.raises(PortInUse, match=f"inference port {inference} is taken"):
            TorchServe(config={"inference_address": f"http://127.0.0.1:{inference}"}).start()


def test_config_wins_over_arguments(echo: Path) -> None:
    closed = {"disable_token_authorization": False, "enable_model_api": False}
    with TorchServe(models={"m": echo}, token_auth=False, model_api=True, config=closed) as server:
        assert server.token_auth and server.inference.predict("m", b"") == "ok"
        with pytest.raises(ApiError, match="405"):
            server.management.unregister("m")


def test_a_certificate_for_another_host_is_told_at_once(echo: Path, tmp_path: Path) -> None:
    files = write_certificate(tmp_path, "another.example")
    with pytest.raises(TutorialError, match=r"don't trust its certificate: .* made for the host of"):
        TorchServe(models={"m": echo}, config=files, startup_timeout=100).start()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ([], r"config is \[\]. Give a dict"),
        ({1: 2}, "the key 1. Give the name"),
        ({"a b": 1}, "the key 'a b'"),
        ({"job_queue_sise": 1}, "no such key. Did you mean job_queue_size?"),
        ({"batchSize": 8}, "no such key. .* go into its archive's config_file"),
        ({"load_models": "all"}, "can't use. Give models="),
        ({"model_snapshot": "x"}, "Give models="),
        ({"model_store": "/store"}, "Give model_store="),
        ({"python": "/usr/bin/python"}, "another environment"),
        ({"enable_envvars_config": True}, "Give the keys themselves"),
        ({"job_queue_size": None}, "job_queue_size=None. Give a text, a number"),
        ({"job_queue_size": "many"}, "job_queue_size='many'. Give a whole number"),
        ({"job_queue_size": 1.0}, "job_queue_size=1.0. Give a whole number"),
        ({"job_queue_size": 2**31}, "Give a whole number"),
        ({"grpc_inference_port": 70000}, "Give a whole number from 1 to 65535"),
        ({"async_logging": "yes"}, "async_logging='yes'. Give True or False"),
        ({"disable_token_authorization": 1}, "Give True or False"),
        ({"metrics_mode": "prometeus"}, "Give one of log, prometheus, legacy"),
        ({"allowed_urls": ["file://.*"]}, "allowed_urls=.*Give a text"),
        ({"allowed_urls": "$$HOME$$/.*"}, r"replaces \$\$…\$\$ by an environment variable"),
        ({"models": "{"}, "which is not JSON"),
        ({"vmargs": "-Dname=ü"}, "JAVA_TOOL_OPTIONS"),
        ({"plugins_path": "C:\\plugins"}, "move the plugins"),
        ({"metrics_config": "nowhere.yaml"}, "metrics_config='nowhere.yaml', and there is no such file"),
        ({"token_expiration_min": "soon"}, "Give a number of minutes above 0"),
        ({"plugins_path": "nowhere/*"}, "plugins_path='nowhere/', and there is no such folder"),
        ({"workflow_store": "nowhere"}, "there is no such folder"),
        ({"certificate_file": "README.md"}, "certificate_file alone. For https"),
        ({"keystore": "README.md"}, "keystore alone. For https"),
        ({"inference_address": "127.0.0.1:8080"}, "Give it as 'http://127.0.0.1:8080'"),
        ({"inference_address": 8080}, "For a port alone, ports= is enough"),
        ({"metrics_address": "http://[::1]:8082"}, "an IPv4 address"),
        ({"metrics_address": "http://localhost:0"}, "and a port"),
        ({"management_address": "unix:/tmp/socket"}, "Give it as"),
        ({"management_address": "https://127.0.0.1:8081"}, "and no certificate"),
    ],
)
def test_what_can_not_be_honoured_is_a_sentence_at_once(config: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        TorchServe(config=config)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"ports": {"inference": 1}, "config": {"inference_address": "http://127.0.0.1:2"}},
            "Both ports and",
        ),
        ({"ports": {"inference": 9000, "management": 9000}}, "inference and management are both 9000"),
        ({"config": {"inference_address": "http://192.0.2.1:8080"}}, "address 192.0.2.1 can't be opened"),
        (
            {"config": {"inference_address": "http://no-such-host.invalid:80"}},
            "Give an address of this machine",
        ),
    ],
)
def test_addresses_that_can_not_be_opened(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TutorialError), match=sentence):
        TorchServe(**options).start()
