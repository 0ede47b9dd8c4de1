"""What breaks in production: the library's sentence for each, and that the server serves on.

The drills of chapter 13; those of test_server.py (an idle worker killed, a taken port) and
test_secure.py (an expired token) are not repeated here.
"""

from __future__ import annotations

import json
import socket
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from course.logs import batches_given

from tests.conftest import eventually
from tutorial_lib import (
    ApiError,
    NoAnswer,
    PortInUse,
    TorchServe,
    build_archive,
    first_traceback,
)

MOODY = """
import time

def handle(data, context):
    if not data:
        return None
    texts = [bytes(row["body"]).decode() for row in data]
    if "raise" in texts:
        raise ValueError("as asked")
    if "memory" in texts:
        raise MemoryError("as asked")
    if "more" in texts:
        return texts + ["one more"]
    if "dict" in texts:
        return {"label": "Positive"}
    if "nap" in texts or "sleep" in texts:
        time.sleep(1 if "nap" in texts else 60)
    return texts
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def archive(name: str, code: str, store: Path, version: str = "1.0") -> Path:
    settings, handler = store.parent / f"{name}.yaml", store.parent / f"{name}.py"
    settings.write_text("minWorkers: 1\nmaxWorkers: 1\nresponseTimeout: 2\n")
    handler.write_text(code)
    return build_archive(name, handler=handler, config_file=settings, export_path=store, version=version)


@pytest.fixture(scope="module")
def moody(store: Path) -> Iterator[TorchServe]:
    mar = archive("moody", MOODY, store)
    with TorchServe(models={"m": mar}, model_api=True, config={"job_queue_size": 1}) as server:
        yield server


def answers(server: TorchServe) -> bool:
    try:
        return bool(server.inference.predict("m", b"well", timeout=10) == "well")
    except (ApiError, NoAnswer):
        return False


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"raise", 503, "first traceback in the model log"),
        (b"memory", 507, "fewer workers, a smaller batch"),
        (b"more", 503, "exactly one plain item for each request"),
        (b"dict", 503, "exactly one plain item for each request"),
        (b"x" * 7_000_000, 413, r"raise max_request_size \(bytes\)"),
        (b"sleep", 500, "took longer than responseTimeout"),
    ],
    ids=["exception", "memory", "too many answers", "no list", "too large", "too slow"],
)
def test_a_bad_moment_is_said_and_passes(body: bytes, status: int, sentence: str, moody: TorchServe) -> None:
    with pytest.raises(ApiError, match=sentence) as raised:
        moody.inference.predict("m", body, timeout=90)
    assert raised.value.status == status
    eventually(lambda: answers(moody))


def test_a_worker_killed_in_the_middle_of_a_request_is_said_and_comes_back(moody: TorchServe) -> None:
    """Frozen first, so that it surely has the request in its hands when it is killed."""
    worker = psutil.Process(moody.management.describe("m")["workers"][0]["pid"])
    log, began = moody.log_dir / "ts_log.log", time.time()
    worker.suspend()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(moody.inference.predict, "m", b"well", timeout=90)
        eventually(lambda: batches_given(log, since=began), 10)
        worker.kill()
        error = asked.exception()
    assert isinstance(error, ApiError) and error.message == "Worker died."
    sentence = {507: "The worker was killed (SIGKILL)", 500: "The worker crashed"}[error.status]
    assert sentence in str(error) and "predict(…, retries=1)" in str(error)
    assert moody.inference.predict("m", b"well", timeout=90, retries=1) == "well"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import emojis\n\ndef handle(data, context):\n    return data\n", "No module named 'emojis'"),
        (
            "class H:\n    def initialize(self, context):\n"
            "        self.size = context.model_yaml_config['handler']['size']\n"
            "    def handle(self, data, context):\n        return data\n",
            "KeyError: 'handler'",
        ),
    ],
    ids=["import", "initialize"],
)
def test_a_version_that_can_not_load_is_said_and_the_default_answers_on(
    code: str, cause: str, moody: TorchServe, store: Path, request: pytest.FixtureRequest
) -> None:
    log = moody.log_dir / "model_log.log"
    before = len(log.read_text())
    broken = archive(request.node.callspec.id, code, store, version="2.0")
    with pytest.raises(ApiError, match=r"died while it loaded .* first traceback in the model log"):
        moody.management.register(broken, "m")
    eventually(lambda: cause in (first_traceback(log.read_text()[before:]) or ""), 20)
    assert answers(moody)
    unregister(moody, "2.0")


def unregister(server: TorchServe, version: str) -> None:
    """TorchServe sometimes drops a version that failed, and sometimes keeps it without workers."""
    try:
        server.management.unregister("m", version)
    except ApiError as error:
        assert error.status == 404


def test_a_label_too_few_that_got_past_the_check_names_the_file(
    mar: Path, moody: TorchServe, store: Path
) -> None:
    """build_archive refuses it; an archive made by hand may have it."""
    broken = store / "labels.mar"
    with zipfile.ZipFile(mar) as whole, zipfile.ZipFile(broken, "w") as made:
        for entry in whole.infolist():
            content = whole.read(entry)
            if entry.filename == "index_to_name.json":
                content = json.dumps({"0": "Negative", "1": "Positive"}).encode()
            made.writestr(entry, content)
    with pytest.raises(ApiError, match="died while it loaded"):
        moody.management.register(broken, "labels")
    assert moody.wait_for_log("index_to_name.json has labels for classes [0, 1], the model has [0, 1, 2]")
    assert answers(moody)


def test_an_archive_that_is_not_in_the_store_is_said(moody: TorchServe) -> None:
    with pytest.raises(ApiError, match="in the server's model store") as raised:
        moody.management.register("moddy.mar", "m")
    assert raised.value.status == 404


def test_a_full_queue_is_said(moody: TorchServe) -> None:
    """One worker, busy for a second, and one place in the queue: of six at once some are refused."""

    def ask(_: int) -> str:
        try:
            return str(moody.inference.predict("m", b"nap", timeout=90))
        except ApiError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        said = set(pool.map(ask, range(6)))
    refused = said - {"nap"}
    assert said != refused and len(refused) == 1 and "or the queue is full" in refused.pop(), said


def test_a_port_that_config_asks_for_and_another_has_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PortInUse, match=r"inference port .* is taken"):
            TorchServe(config={"inference_address": address}).start()
