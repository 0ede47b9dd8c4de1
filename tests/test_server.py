"""TorchServe the context manager: real servers, real faults."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SAMPLE, below, eventually, folders, gone
from tutorial_lib import (
    ApiError,
    ArchiveError,
    NoAnswer,
    PortInUse,
    StartTimeout,
    TorchServe,
    TutorialError,
    WorkerFailed,
    build_archive,
)

ECHO = """
import os

def handle(data, context):
    if not data:
        return None
    texts = [bytes(row["body"]).decode() for row in data]
    if "exit" in texts:
        os._exit(3)
    if "raise" in texts:
        raise ValueError("as asked")
    return texts
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive whose handler needs no model, and so starts sooner; "exit" and "raise" do that."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text(ECHO)
    return build_archive("echo", handler=folder / "echo.py", export_path=folder / "store")


def test_two_servers_side_by_side_and_stop_means_gone(
    echo: Path, server: TorchServe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, logs = folders(), tmp_path / "logs"
    second = TorchServe(models={"echo": echo}, log_dir=logs)
    with caplog.at_level(logging.INFO, "tutorial_lib"), second:
        assert not set(second.ports.values()) & set(server.ports.values())
        assert second.token("inference") != server.token("inference")
        assert [model["modelName"] for model in second.management.list_models()] == ["echo"]
        assert second.inference.predict("echo", b"hello") == "hello"
        assert "echo 1.0: 1 of 1 workers READY" in repr(second) and "<table>" in second._repr_html_()
        with pytest.raises(TutorialError, match="running already"):
            second.start()
        with pytest.raises(ApiError, match="model_api=True"):
            second.management.unregister("echo")
        running = below(second.pid)
        assert len(running) >= 3
    assert gone(running) and folders() == before
    for message in ("starting TorchServe", "TorchServe is ready after", "TorchServe has ended"):
        assert message in caplog.text
    assert server.inference.predict("my_model", SAMPLE) == ["Positive"]
    written = {file.name for file in logs.iterdir()}
    assert {"console.log", "ts_log.log", "model_log.log", "access_log.log"} <= written
    assert "echo" in (logs / "access_log.log").read_text() and second.log_tail(5)
    second.stop()  # a second time does nothing
    with pytest.raises(TutorialError, match="not running"):
        _ = second.pid


def test_it_serves_on_after_a_crash_and_tells_when_its_jvm_is_gone(echo: Path) -> None:
    running = []
    with pytest.raises(KeyboardInterrupt), TorchServe(models={"echo": echo}, token_auth=False) as server:
        with pytest.raises(ApiError, match="first traceback") as raised:
            server.inference.predict("echo", b"raise")
        assert raised.value.status == 503 and server.wait_for_log("as asked")
        with pytest.raises(ApiError, match="crashed, took longer") as crashed:
            server.inference.predict("echo", b"exit")
        assert crashed.value.status == 500

        def answers() -> bool:
            try:
                return bool(server.inference.predict("echo", b"again", timeout=5) == "again")
            except (ApiError, NoAnswer):
                return False

        eventually(answers, 180)
        running += below(server.pid)
        next(process for process in running if process.name().startswith("java")).kill()
        with pytest.raises(NoAnswer, match="Is the server running"):
            server.inference.ping()
        raise KeyboardInterrupt
    assert gone(running)
    with server:  # a start after a stop is a new server
        assert server.inference.predict("echo", b"new") == "new"


def test_waits_for_a_line_of_a_log(server: TorchServe) -> None:
    server.inference.predict("my_model", {"input": ["one"]})
    assert "Predictions successfully created" in server.wait_for_log("Predictions successfully created")
    with pytest.raises(TutorialError, match="did not hold 'never said'"):
        server.wait_for_log("never said", timeout=0.3)
    (server.log_dir / "own.log").write_text("a whole line\nand half of")
    assert server.wait_for_log("whole", log="own.log") == "a whole line\n"
    with pytest.raises(TutorialError, match="did not hold 'half'"):
        server.wait_for_log("half", log="own.log", timeout=0.3)


def test_bad_and_good_requests_really_share_a_batch(server: TorchServe) -> None:
    """The handler logs how many requests it was given at once; more than one, or nothing is proven."""

    def send(number: int) -> object:
        try:
            return server.inference.predict("my_model", SAMPLE if number % 2 else {"input": 1})
        except ApiError as error:
            return error.status

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(48)))
    assert answers == [400, ["Positive"]] * 24
    log = server.log_dir / "model_log.log"
    eventually(lambda: re.search(r" texts in ([2-9]|\d\d+) requests", log.read_text()))


def test_pythonpath_brings_packages_and_not_another_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A project's folder on PYTHONPATH has the package that the handler imports, and an older handler."""
    project = tmp_path / "project"
    (project / "shop").mkdir(parents=True)
    (project / "shop" / "__init__.py").write_text("price = 7")
    handler = tmp_path / "handler.py"
    handler.write_text(
        "import shop\ndef handle(data, context):\n    return data and [shop.price] * len(data)\n"
    )
    (project / "handler.py").write_text(
        "def handle(data, context):\n    return data and ['another'] * len(data)\n"
    )
    mar = build_archive("shop", handler=handler, export_path=tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["project", "", "nowhere"]))
    with TorchServe(models={"shop": mar}) as server:
        assert server.inference.predict("shop", b"") == 7
    assert f"handler.py of {project} is hidden" in caplog.text


def test_a_failing_handler_is_quoted(tmp_path: Path) -> None:
    code = "import no_such_module\n\ndef handle(data, context):\n    return data\n"
    (tmp_path / "broken.py").write_text(code)
    mar = build_archive("broken", handler=tmp_path / "broken.py", export_path=tmp_path / "store")
    before = folders()
    with pytest.raises(WorkerFailed, match="No module named 'no_such_module'") as failed:
        TorchServe(models={"m": mar}).start()
    assert failed.value.traceback.startswith("Traceback") and "package is missing" in str(failed.value)
    assert folders() == before


def test_a_worker_that_dies_in_its_imports_is_quoted(echo: Path, tmp_path: Path) -> None:
    """build_archive refuses such a name; other programs pack it."""
    mar = Path(shutil.copy(echo, tmp_path))
    with zipfile.ZipFile(mar, "a") as archive:
        archive.writestr("yaml.py", "raise ImportError('not the yaml that TorchServe needs')")
    with pytest.raises(WorkerFailed, match="ImportError: not the yaml that TorchServe needs"):
        TorchServe(models={"m": mar}, startup_timeout=60).start()


def test_the_one_deadline(echo: Path) -> None:
    before = folders()
    with pytest.raises(StartTimeout, match=r"not ready within 0.5 s: the server does not answer yet \(\w+: "):
        TorchServe(models={"m": echo}, startup_timeout=0.5).start()
    assert folders() == before


def test_a_taken_port_is_named(echo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"inference port {port} is taken"):
            TorchServe(models={"m": echo}, ports={"inference": port}).start()


def test_an_archive_of_another_archiver_version_serves_from_a_read_only_store(
    echo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "store" / "other.mar"
    other.parent.mkdir()
    with zipfile.ZipFile(echo) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("MANIFEST.json"):
                content = json.dumps({**json.loads(content), "archiverVersion": "0.1.0"}).encode()
            new.writestr(entry, content)
    other.parent.chmod(0o555)  # serving writes nothing into the store
    try:
        with TorchServe(models={"other": other}) as server:
            assert server.inference.predict("other", b"hi") == "hi"
        assert {file.name for file in other.parent.iterdir()} == {"other.mar"}
    finally:
        other.parent.chmod(0o755)


def test_an_archive_that_is_gone_or_broken_is_told_at_once(echo: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mar"
    cut.write_bytes(echo.read_bytes()[:100])
    for archive, sentence in (
        (tmp_path / "missing.mar", r"There is no archive .*missing\.mar"),
        (cut, r"cut\.mar is not a model archive"),
    ):
        with pytest.raises(ArchiveError, match=sentence):
            TorchServe(models={"m": archive})
    with pytest.raises(ArchiveError, match="There is no model store"):
        TorchServe(model_store=tmp_path / "nowhere")
    with pytest.raises(ArchiveError, match="from one folder"):
        TorchServe(models={"m": echo}, model_store=tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ports": {"http": 1}}, "no port 'http'"),
        ({"ports": {"worker": 0}}, "1 and 65535"),
        ({"startup_timeout": "soon"}, "startup_timeout is 'soon'. Give a number of seconds"),
    ],
)
def test_wrong_arguments_are_sentences(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        TorchServe(**options)


def test_before_a_start_everything_says_so() -> None:
    server = TorchServe()
    for ask in (lambda: server.pid, lambda: server.inference_address, lambda: server.token("inference")):
        with pytest.raises(TutorialError):
            ask()
    assert "not running" in server._repr_html_() and server.log_tail() == ""
    server.stop()
