"""Faults of files, processes and owners that a server meets; each start here is a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, SAMPLE, below, eventually, folders, gone
from tutorial_lib import ApiError, ArchiveError, TorchServe, TutorialError, build_archive


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """An archive whose handler needs no model, and so starts sooner; "exit" and "raise" do that."""
    (tmp_path / "echo.py").write_text(
        "import os\n\ndef handle(data, context):\n"
        "    if not data:\n        return None\n"
        "    texts = [bytes(row['body']).decode() for row in data]\n"
        "    if 'exit' in texts:\n        os._exit(3)\n"
        "    if 'raise' in texts:\n        raise ValueError('as asked')\n"
        "    return texts\n"
    )
    return build_archive("echo", handler=tmp_path / "echo.py", export_path=tmp_path / "store")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that its owner can't write to; root can write anywhere, so the test needs another user."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_two_servers_side_by_side_with_logs_kept(echo: Path, server: TorchServe, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    second = TorchServe(models={"echo": echo}, log_dir=logs)
    with second:
        assert not set(second.ports.values()) & set(server.ports.values())
        assert second.token("inference") != server.token("inference")
        assert [m["modelName"] for m in second.management.list_models()] == ["echo"]
        assert second.inference.predict("echo", b"hello") == "hello"
        assert server.inference.predict("my_model", SAMPLE) == ["Positive"]
    assert server.inference.predict("my_model", SAMPLE) == ["Positive"]
    assert {"console.log", "ts_log.log", "model_log.log", "access_log.log"} <= {
        f.name for f in logs.iterdir()
    }
    assert "echo" in (logs / "access_log.log").read_text()
    with pytest.raises(TutorialError, match="not running"):
        _ = second.pid
    second.stop()  # a second time does nothing


@pytest.fixture
def ended() -> Iterator[list[psutil.Process]]:
    """Requested before another fixture, it looks after that one has cleaned up."""
    processes: list[psutil.Process] = []
    yield processes
    assert processes and gone(processes)


def test_the_fixture_starts_servers_and_stops_them_all(
    ended: list[psutil.Process], torchserve: Callable[..., TorchServe], echo: Path
) -> None:
    for name in ("one", "other"):
        server = torchserve(models={name: echo})
        ended += below(server.pid)
        assert server.inference.predict(name, b"hello") == "hello"


def test_a_handler_on_pythonpath_is_not_served_in_place_of_the_archives(
    echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "echo.py").write_text("def handle(data, context):\n    return data and ['another handler']\n")
    monkeypatch.setenv("PYTHONPATH", f"{other}{os.pathsep}{ROOT}")
    with TorchServe(models={"echo": echo}) as server:
        assert server.inference.predict("echo", b"mine") == "mine"


def test_a_crash_and_an_exception_in_a_prediction_are_said_and_it_serves_on(echo: Path) -> None:
    with TorchServe(models={"echo": echo}, token_auth=False) as server:
        with pytest.raises(ApiError, match="first traceback") as raised:
            server.inference.predict("echo", b"raise")
        assert raised.value.status == 503 and "as asked" in server.log_tail(50)
        with pytest.raises(ApiError, match="crashed or took longer") as crashed:
            server.inference.predict("echo", b"exit")
        assert crashed.value.status == 500

        def answers() -> bool:
            try:
                return bool(server.inference.predict("echo", b"again", timeout=5) == "again")
            except ApiError:
                return False

        eventually(answers)
        # a start after a stop is a new server
        running = below(server.pid)
        server.stop()
        assert gone(running)
        server.start()
        assert server.inference.predict("echo", b"new") == "new"


def test_an_exception_in_the_with_block_leaves_nothing(echo: Path) -> None:
    before, running = folders(), []
    with pytest.raises(KeyboardInterrupt), TorchServe(models={"echo": echo}) as server:
        running += below(server.pid)
        raise KeyboardInterrupt
    assert len(running) >= 3 and gone(running) and folders() == before


@pytest.mark.parametrize("end", ["sys.exit(3)", "signal.raise_signal(signal.SIGINT)"])
def test_a_program_that_ends_without_stop_leaves_nothing(end: str, echo: Path) -> None:
    before = folders()
    code = (
        "import signal, sys; from tutorial_lib import TorchServe\n"
        f"s = TorchServe(models={{'m': sys.argv[1]}}).start(); print(s.pid, flush=True); input()\n{end}"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(echo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdin is not None and owner.stdout is not None
    running = below(int(owner.stdout.readline()))
    owner.communicate("\n", timeout=60)
    assert owner.returncode != 0
    assert gone(running) and folders() == before


def test_an_owner_killed_during_its_start_is_swept_by_the_next(echo: Path) -> None:
    before = folders()
    code = "import sys; from tutorial_lib import TorchServe; TorchServe(models={'m': sys.argv[1]}).start()"
    owner = subprocess.Popen([sys.executable, "-c", code, str(echo)])
    eventually(lambda: len(below(owner.pid)) > 2)
    orphans = below(owner.pid)[1:]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with TorchServe():
        assert gone(orphans)
    assert folders() == before


def test_folders_of_others_are_not_swept() -> None:
    mine = Path(tempfile.mkdtemp(prefix="ts-not-mine-"))
    living = Path(tempfile.mkdtemp(prefix=f"ts-{os.getpid()}-{int(psutil.Process().create_time())}-"))
    reused = Path(tempfile.mkdtemp(prefix=f"ts-{os.getpid()}-1000000-"))  # the id went to another process
    try:
        with TorchServe():
            assert mine.is_dir() and living.is_dir()
            assert not reused.exists()
    finally:
        mine.rmdir()
        living.rmdir()


def test_an_archive_that_is_gone_or_broken_is_said_at_once(mar: Path, server: TorchServe) -> None:
    with pytest.raises(ArchiveError, match=r"There is no archive .*missing.mar"):
        TorchServe(models={"m": mar.parent / "missing.mar"})
    cut = mar.parent / "cut.mar"
    cut.write_bytes(mar.read_bytes()[:100_000])
    try:
        with pytest.raises(ArchiveError, match=r"cut.mar is not a model archive"):
            TorchServe(models={"m": cut})
        for name, status in (("missing.mar", 404), ("cut.mar", 400)):
            with pytest.raises(ApiError) as raised:
                server.management.register(name, "other")
            assert raised.value.status in (status, 500), str(raised.value)
        assert [entry["modelName"] for entry in server.management.list_models()] == ["my_model"]
    finally:
        cut.unlink()


def test_an_archive_of_another_archiver_version_serves_from_a_read_only_store(echo: Path) -> None:
    other = echo.with_name("other.mar")
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
        assert {file.name for file in other.parent.iterdir()} == {"echo.mar", "other.mar"}
    finally:
        other.parent.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_is_said_when_written(read_only: Path, model_dir: Path) -> None:
    with pytest.raises(ArchiveError, match="can't be written"):
        build_archive("m", handler=ROOT / "handler.py", model_dir=model_dir, export_path=read_only)
    assert list(read_only.iterdir()) == []


def test_a_store_that_is_a_file_is_said(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ArchiveError, match="can't be written"):
        build_archive("m", handler=ROOT / "handler.py", model_dir=model_dir, export_path=tmp_path / "store")


@pytest.mark.parametrize(
    ("ports", "sentence"), [({"http": 1}, "no port 'http'"), ({"worker": 0}, "1 and 65535")]
)
def test_wrong_ports_are_said(ports: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TorchServe(ports=ports)


def test_before_a_start_everything_says_so() -> None:
    server = TorchServe()
    for ask in (lambda: server.pid, lambda: server.inference_address, lambda: server.token("inference")):
        with pytest.raises(TutorialError):
            ask()
    assert "not running" in server._repr_html_() and server.log_tail() == ""
    server.stop()


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
    log = (server.log_dir / "model_log.log").read_text()
    sizes = [int(line.split()[-2]) for line in log.splitlines() if "texts in" in line]
    assert max(sizes) > 1
