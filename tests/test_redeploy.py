"""TorchServe.redeploy: an edit answers, a broken one is told, and no request is lost on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, eventually
from tutorial_lib import (
    ApiError,
    ArchiveError,
    InferenceClient,
    TorchServe,
    TutorialError,
    WorkerFailed,
    build_archive,
)

HANDLER = (ROOT / "handler.py").read_text()
SAMPLE = {"input": ["I love this!"]}

SLOW = """
import time

def handle(data, context):
    if data:
        time.sleep(0.3)
        return ["{answer}"] * len(data)
"""

GATED = """
import time
from pathlib import Path

def handle(data, context):
    if data:
        body = data[0]["body"].decode()
        while body and not Path(body).exists():
            time.sleep(0.05)
        return ["{answer}"]
"""


@pytest.fixture(scope="module")
def running(mar: Path) -> Iterator[TorchServe]:
    with TorchServe(models={"my_model": mar}, model_api=True) as server:
        yield server


def edited(folder: Path, old: str, new: str) -> Path:
    assert old in HANDLER
    file = folder / "handler.py"
    file.write_text(HANDLER.replace(old, new))
    return file


def versions(server: TorchServe) -> list[str]:
    return [description["modelVersion"] for description in server.management.describe_all("my_model")]


def weights(server: TorchServe) -> Path:
    worker = server.management.describe("my_model")["workers"][0]
    return Path(psutil.Process(worker["pid"]).cwd()) / "model.safetensors"


def test_an_edit_answers_and_the_weights_are_not_copied(running: TorchServe, tmp_path: Path) -> None:
    file = edited(tmp_path, 'else best["label"]', 'else best["label"].upper()')
    inode = weights(running).stat().st_ino
    running.management.scale("my_model", min_worker=2)
    assert running.redeploy("my_model", handler=file) == "1.1"
    assert running.inference.predict("my_model", SAMPLE) == ["POSITIVE"]
    assert weights(running).stat().st_ino == inode
    eventually(lambda: versions(running) == ["1.1"])
    described = running.management.describe("my_model")
    assert len(described["workers"]) == 2 and described["batchSize"] == 32


def test_settings_can_be_edited_and_the_files_of_the_version_before_go(
    running: TorchServe, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 3\nhandler: {max_texts: 1}\n"
    )
    before = weights(running)
    running.redeploy("my_model", handler=ROOT / "handler.py", config_file=tmp_path / "mine.yaml")
    assert running.inference.predict("my_model", SAMPLE) == ["Positive"]
    with pytest.raises(ApiError, match="Send 1 at most"):
        running.inference.predict("my_model", {"input": ["a", "b"]})
    described = running.management.describe("my_model")
    assert len(described["workers"]) == 1 and described["batchSize"] == 3
    eventually(lambda: not before.exists())
    assert weights(running).exists()


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("import json\n", "import json\nimport no_such_module\n", "No module named 'no_such_module'"),
        ("        self.initialized = True", "        raise ValueError('no luck')", "ValueError: no luck"),
    ],
)
def test_a_broken_edit_is_told_and_the_old_version_answers(
    running: TorchServe, tmp_path: Path, old: str, new: str, cause: str
) -> None:
    before = versions(running)
    with pytest.raises(WorkerFailed, match=cause) as failed:
        running.redeploy("my_model", handler=edited(tmp_path, old, new))
    assert "goes on answering" in str(failed.value) and failed.value.traceback.startswith("Traceback")
    assert running.inference.predict("my_model", SAMPLE) == ["Positive"] and versions(running) == before


def test_what_cannot_be_redeployed_gets_a_sentence(running: TorchServe, mar: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="There is no file nowhere"):
        running.redeploy("my_model", handler="nowhere.py")
    with pytest.raises(ApiError, match="list_models"):
        running.redeploy("no_model", handler=ROOT / "handler.py")
    with pytest.raises(TutorialError, match="not running"):
        TorchServe(models={"my_model": mar}).redeploy("my_model")


def test_requests_under_way_are_not_lost(tmp_path: Path) -> None:
    """A slow handler, eight clients: at each moment some requests are queued and one is being answered."""
    handler = tmp_path / "slow.py"
    handler.write_text(SLOW.format(answer="old"))
    mar = build_archive("slow", handler=handler, export_path=tmp_path / "store")
    done = threading.Event()

    def client(address: str) -> list[str]:
        answers: list[str] = []
        with_own_connections = InferenceClient(address)
        while answers[-1:] != ["newer"] and not done.is_set():
            answers.append(with_own_connections.predict("slow", b"a"))
        return answers

    with (
        TorchServe(models={"slow": mar}, model_api=True, token_auth=False) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        clients = [pool.submit(client, server.inference_address) for _ in range(8)]
        try:
            for answer in ("new", "newer"):
                handler.write_text(SLOW.format(answer=answer))
                server.redeploy("slow", handler=handler)
                assert server.inference.predict("slow", b"a") == answer
            answers = [one.result(60) for one in clients]  # raises an ApiError of any request
        finally:
            done.set()
    for own in answers:
        assert own[0] == "old" and own[-1] == "newer"
        assert own == sorted(own, key=["old", "new", "newer"].index)  # never back to an old one


def test_it_does_not_wait_for_a_long_request_which_is_answered(tmp_path: Path) -> None:
    handler, gate = tmp_path / "gated.py", tmp_path / "gate"
    handler.write_text(GATED.format(answer="old"))
    mar = build_archive("gated", handler=handler, export_path=tmp_path / "store")
    with (
        TorchServe(models={"gated": mar}, model_api=True) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(server.inference.predict, "gated", str(gate).encode())
        log = server.log_dir / "ts_log.log"
        eventually(lambda: "Flushing req.cmd PREDICT" in log.read_text())
        handler.write_text(GATED.format(answer="new"))
        try:
            server.redeploy("gated", handler=handler)
            assert server.inference.predict("gated", b"") == "new" and not asked.done()
            assert len(server.management.describe_all("gated")) == 2
        finally:
            gate.touch()
        assert asked.result() == "old"
        eventually(lambda: len(server.management.describe_all("gated")) == 1)


def test_without_the_model_api_it_says_what_to_set(tmp_path: Path) -> None:
    handler = tmp_path / "slow.py"
    handler.write_text(SLOW.format(answer="old"))
    mar = build_archive("slow", handler=handler, export_path=tmp_path / "store")
    with TorchServe(models={"slow": mar}) as server:
        with pytest.raises(TutorialError, match="model_api=True"):
            server.redeploy("slow", handler=handler)
        assert server.inference.predict("slow", b"a") == "old"
