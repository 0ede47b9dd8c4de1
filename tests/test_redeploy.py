"""TorchServe.redeploy: an edit answers, a broken one is told, and no request is lost on the way."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, eventually
from tutorial_lib import (
    ApiError,
    ArchiveError,
    InferenceClient,
    ManagementClient,
    TorchServe,
    TutorialError,
    WorkerFailed,
    build_archive,
)
from tutorial_lib.servers.redeploy import redeploy

HANDLER = (ROOT / "handler.py").read_text()
SAMPLE = {"input": ["I love this!"]}

SLOW = """
import time

def handle(data, context):
    if data:
        time.sleep(0.3)
        return ["{answer}"] * len(data)
"""

# Loads its weights by a fixed name, as from_pretrained does. Writes into its own folder, as some handlers do.
OWN_WEIGHTS = """
from pathlib import Path

def handle(data, context):
    folder = Path(context.system_properties["model_dir"])
    if data is None:
        weights = (folder / "model.safetensors").read_bytes()
        handle.answer = answer = weights[-4:].decode()
        (folder / "model.safetensors").write_bytes(weights[:-4] + b"used")
        for file in folder.glob("*.bin"):
            file.write_bytes(b"converted")
        assert answer != "bad!"
        return None
    return [handle.answer] * len(data)
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


def test_an_edit_answers_and_the_weights_are_a_copy(running: TorchServe, tmp_path: Path) -> None:
    file = edited(tmp_path, 'else best["label"]', 'else best["label"].upper()')
    inode, content = weights(running).stat().st_ino, weights(running).read_bytes()
    running.management.scale("my_model", min_worker=2)
    assert running.redeploy("my_model", handler=file) == "1.1"
    assert running.inference.predict("my_model", SAMPLE) == ["POSITIVE"]
    assert weights(running).stat().st_ino != inode and weights(running).read_bytes() == content
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


def safetensors(path: Path, data: str) -> Path:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + data.encode())
    return path


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and beside it a handler that overwrites the weights in its own folder."""
    folder = tmp_path_factory.mktemp("own") / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    safetensors(folder / "model.safetensors", "old!")
    (folder.parent / "own_handler.py").write_text(OWN_WEIGHTS)
    return folder


@pytest.fixture
def own(running: TorchServe, own_model: Path) -> Iterator[TorchServe]:
    """The running server with the model "own", registered from a folder archive."""
    archive = build_archive(
        "own",
        handler=own_model.parent / "own_handler.py",
        model_dir=own_model,
        export_path=own_model.parent / "store",
        archive_format="no-archive",
    )
    running.management.register(archive.absolute(), "own")
    yield running
    for described in running.management.describe_all("own"):
        with contextlib.suppress(ApiError):  # the default version goes last
            running.management.unregister("own", described["modelVersion"])
    with contextlib.suppress(ApiError):
        running.management.unregister("own")
    for folder in folder_of_versions(running).glob("own-*"):
        shutil.rmtree(folder)


def own_versions(server: TorchServe) -> list[str]:
    return [description["modelVersion"] for description in server.management.describe_all("own")]


def folders(server: TorchServe) -> list[str]:
    """The versions that the server keeps files of."""
    return sorted(folder.name.split("-")[1] for folder in folder_of_versions(server).glob("own-*"))


def folder_of_versions(server: TorchServe) -> Path:
    assert server._folder is not None
    return server._folder / "versions"


def test_new_weights_answer_under_another_name_and_the_authors_files_stay(
    own: TorchServe, own_model: Path, tmp_path: Path
) -> None:
    tuned = safetensors(tmp_path / "tuned.safetensors", "new!")
    (tmp_path / "large.bin").write_bytes(b"x" * 2_000_000)
    assert own.inference.predict("own", b"a") == "old!"
    own.redeploy("own", serialized_file=tuned, extra_files=[tmp_path / "large.bin"])
    assert own.inference.predict("own", b"a") == "new!"
    safetensors(tuned, "bad!")
    with pytest.raises(WorkerFailed, match="AssertionError"):
        own.redeploy("own", serialized_file=tuned)
    assert own.inference.predict("own", b"a") == "new!"
    assert tuned.read_bytes().endswith(b"bad!") and (tmp_path / "large.bin").read_bytes() == b"x" * 2_000_000
    assert (own_model / "model.safetensors").read_bytes().endswith(b"old!")
    eventually(lambda: folders(own) == ["1.1"] and own_versions(own) == ["1.1"])


def test_redeploys_at_once_wait_for_each_other(own: TorchServe, own_model: Path, tmp_path: Path) -> None:
    """Four threads, and two processes: each gets a version of its own, and the last one is left."""
    files = [safetensors(tmp_path / f"{number}.safetensors", f"nr {number}") for number in range(6)]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def in_process(file: Path) -> None:
        client = ManagementClient(own.management_address, token=own.token("management"))
        log, folder = own.log_dir / "console.log", folder_of_versions(own)
        answers.put(redeploy(client, log, folder, "own", {"serialized_file": file}))

    processes = [context.Process(target=in_process, args=(file,)) for file in files[:2]]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        versions = [*pool.map(lambda file: own.redeploy("own", serialized_file=file), files[2:])]
    for process in processes:
        process.join(120)
        versions.append(answers.get(timeout=60))
    assert sorted(versions) == [f"1.{number}" for number in range(1, 7)]
    eventually(lambda: own_versions(own) == ["1.6"])
    assert own.inference.predict("own", b"a").startswith("nr ")
    eventually(lambda: folders(own) == ["1.6"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"handler": ("h.py", "def handle(:")}, "is not Python"),
        (
            {"handler": ("h.py", "import beside\ndef handle(data, context):\n    return data")},
            "beside.py is not",
        ),
        ({"handler": ("h.py", "a = 1")}, "defines no class and no function handle"),
        ({"config_file": ("a.yaml", "batch_size: 8")}, "Write batchSize"),
        ({"model_file": ("m.py", "a = 1")}, "must define exactly one class"),
        ({"serialized_file": ("w.safetensors", "cut off")}, "cut off or not safetensors"),
        ({"extra_files": ("index_to_name.json", "{")}, "is not JSON"),
        ({"extra_files": ("json.py", "")}, "in place of the module json"),
    ],
)
def test_it_checks_what_build_archive_checks(
    change: dict[str, tuple[str, str]], sentence: str, own: TorchServe, tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text("")
    arguments: dict[str, Any] = {}
    for key, (name, text) in change.items():
        (tmp_path / name).write_text(text)
        arguments[key] = [tmp_path / name] if key == "extra_files" else tmp_path / name
    with pytest.raises(ArchiveError, match=sentence):
        own.redeploy("own", **arguments)
    assert own_versions(own) == ["1.0"] and folders(own) == []


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
