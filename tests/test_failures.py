"""The true cause of a failure is where the reader looks: in the error that the caller gets."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually
from tutorial_lib import (
    ApiError,
    NoAnswer,
    StartTimeout,
    TimedOut,
    TorchServe,
    TutorialError,
    WorkerFailed,
    build_archive,
)
from tutorial_lib.cores import all_cores
from tutorial_lib.preload.python import VARIABLE

pytestmark = pytest.mark.faults

# Fails as its request says.
MOODY = """
import ctypes, logging, os, signal, sys, time
import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

def handle(data, context):
    if data is None:
        return None
    [row] = data
    text = bytes(row["body"]).decode()
    if text == "raise":
        raise ValueError("as asked")
    if text.startswith("raise "):
        time.sleep(0.2)
        raise ValueError(text)
    if text == "caught":
        try:
            import no_such_module
        except ImportError:
            logging.exception("no_such_module is missing")
        print("Permission denied: No space left on device")
        raise KeyError("the true one")
    if text == "no JSON":
        return [{1, 2}]
    if text == "cuda":
        raise RuntimeError("CUDA error: device-side assert")
    if text == "memory":
        raise MemoryError("a batch too big")
    if text == "chain":
        try:
            {}["price"]
        except KeyError as error:
            raise RuntimeError("no price") from error
    if text == "lines":
        raise ValueError("wrong:\\n\\tone\\n\\ttwo")
    if text == "exit":
        logging.warning("about to exit")
        sys.exit(3)
    if text == "segfault":
        ctypes.string_at(0)
    if text == "big":
        return ["x" * 200_000]
    if text == "sleep":
        time.sleep(60)
    if text == "own":
        raise PredictionException("the shop is closed", 404)
    if text == "stream":
        send_intermediate_predict_response(["part"], context.request_ids, "Intermediate", 200, context)
        raise ValueError("in the middle")
    return [f"{torch.get_num_threads()}"]
"""
CONFIG = "responseTimeout: 4\njobQueueSize: 7\n"
LIMITS = {"max_response_size": 100_000, "max_request_size": 150_000}


def packed(folder: Path, name: str, source: str, config: str = "", **options: Any) -> Path:
    files = folder / f"{name} files"
    files.mkdir()
    (files / f"{name}_handler.py").write_text(source)
    if config:
        (files / "config.yaml").write_text(config)
        options["config_file"] = files / "config.yaml"
    return build_archive(name, handler=files / f"{name}_handler.py", export_path=folder / "store", **options)


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    mar = packed(tmp_path_factory.mktemp("moody"), "moody", MOODY, CONFIG)
    with TorchServe(models={"m": mar}, config=LIMITS) as server:
        yield server


def error_of(server: TorchServe, text: str) -> ApiError:
    with pytest.raises(ApiError) as raised:
        server.inference.predict("m", text.encode())
    return raised.value


@pytest.mark.parametrize(
    ("text", "status", "cause"),
    [
        ("raise", 503, "ValueError: as asked"),
        ("caught", 503, "KeyError: 'the true one'"),
        ("no JSON", 503, "TypeError: Object of type set is not JSON serializable"),
        ("cuda", 507, "RuntimeError: CUDA error: device-side assert"),
        ("memory", 507, "MemoryError: a batch too big"),
        ("chain", 503, "RuntimeError: no price"),
        ("lines", 503, "\ttwo"),
    ],
)
def test_a_prediction_that_fails_has_its_traceback(
    text: str, status: int, cause: str, moody: TorchServe
) -> None:
    """Each after another failure, whose traceback is older."""
    error = error_of(moody, text)
    assert error.status == status and str(error).endswith(f"\n{cause}"), error
    assert str(error).count("Traceback (most") == (2 if text == "chain" else 1)
    assert "no_such_module" not in str(error)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("exit", ["500", "No exception ended the worker", "sys.exit"]),
        ("segfault", ["Fatal Python error: Segmentation fault", "_handler.py"]),
        ("big", ["max_response_size is 100000", "has 200", "A retry of this request ends the next worker"]),
        ("sleep", ["longer than responseTimeout, which is 4 s", "config_file"]),
    ],
)
def test_a_worker_that_is_lost_is_explained(text: str, parts: list[str], moody: TorchServe) -> None:

    def is_explained() -> str:
        answers(moody)
        error = str(error_of(moody, text))
        return error if all(part in error for part in parts) else ""

    # TorchServe may lose the last lines of a worker that dies.
    error = is_explained() or eventually(is_explained, 60)
    assert ("The worker crashed, took" in error) == (text in ("exit", "segfault"))


def answers(server: TorchServe) -> None:
    def answer() -> bool:
        try:
            return bool(server.inference.predict("m", b"", timeout=5))
        except (ApiError, NoAnswer):
            return False

    eventually(answer, 120)


def test_what_needs_no_log_is_told_at_once_and_names_its_limit(moody: TorchServe) -> None:
    answers(moody)
    began = time.monotonic()
    assert "404" in str(error_of(moody, "own"))
    with pytest.raises(ApiError, match="404 ModelNotFoundException"):
        moody.inference.predict("unknown", b"")
    assert "max_request_size is 150000" in str(error_of(moody, "x" * 200_000))
    assert time.monotonic() - began < 2
    with pytest.raises(TimedOut, match="responseTimeout is 4 here"):
        moody.inference.predict("m", b"raise a", timeout=0.05)


def test_a_stream_that_breaks_off_has_the_traceback(moody: TorchServe) -> None:
    answers(moody)
    parts = moody.inference.predict_stream("m", b"stream")
    assert next(parts) == b"part"
    with pytest.raises(NoAnswer, match="ValueError: in the middle"):
        list(parts)


# What ends a start


FAULTS = {
    "a missing package": "import xgboost_no\n",
    "a caught one before": """
import logging
try:
    import captum_no
except ImportError:
    logging.exception("captum is missing")
print("Permission denied")
open("/nowhere/weights.pt")
""",
    "a printed word": "print('No space left on device: Permission denied')\n{}['a']\n",
    "in its sleep": "import time\ntime.sleep(0.2)\nraise RuntimeError('wrong weights')\n",
    "killed": "import os\nprint('Permission denied')\nos.kill(os.getpid(), 9)\n",
    "exit": "import sys\nsys.exit('no licence')\n",
}


@pytest.mark.parametrize(
    ("what", "where", "parts"),
    [
        ("a missing package", "import", ["missing in the environment that runs TorchServe: xgboost_no"]),
        ("a missing package", "load", ["xgboost_no"]),
        ("a caught one before", "load", ["FileNotFoundError: [Errno 2]"]),
        ("a caught one before", "import", ["FileNotFoundError: [Errno 2]"]),
        ("a printed word", "load", ["KeyError: 'a'"]),
        ("in its sleep", "load", ["RuntimeError: wrong weights"]),
        ("killed", "load", ["a signal killed it (SIGKILL"]),
        ("exit", "load", ["sys.exit"]),
    ],
)
def test_a_start_that_fails_tells_the_true_cause(
    what: str, where: str, parts: list[str], tmp_path: Path
) -> None:
    fault = FAULTS[what]
    if where == "load":
        fault = "def fault():\n" + "".join(f"    {line}\n" for line in fault.splitlines())
    call = "fault()" if where == "load" else "pass"
    source = f"{fault}\ndef handle(data, context):\n    {call}\n"
    mar = packed(tmp_path, "price", source)
    with pytest.raises(WorkerFailed) as failed:
        TorchServe(models={"m": mar}).start()
    text = str(failed.value)
    assert all(part in text for part in parts), text
    assert "ts.torch_handler.price_handler" not in text
    no_exception = what in ("killed", "exit")
    assert no_exception == failed.value.traceback.startswith("(no traceback)")
    if not no_exception:
        assert "captum" not in text and text.count("Traceback (most") == 1 and "may not write" not in text


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        ("os.kill(os.getpid(), 9)", r"killed by signal 9 \(SIGKILL\)"),
        ("sys.exit(3)", r"called sys\.exit"),
        ("os._exit(3)", r"called os\._exit\(3\)"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone shows how a process ended")
def test_a_worker_that_no_exception_ended(
    call: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    source = f"import os, sys\ndef handle(data, context):\n    print('Permission denied')\n    {call}\n"
    with pytest.raises(WorkerFailed, match=cause) as failed:
        TorchServe(models={"m": packed(tmp_path, "m", source)}).start()
    assert failed.value.traceback.startswith("(no traceback)") and "may not" not in str(failed.value)


def test_a_segmentation_fault_has_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    source = "import ctypes\ndef handle(data, context):\n    ctypes.string_at(0)\n"
    with pytest.raises(WorkerFailed, match=r"Segmentation fault(?s:.*)crash_handler\.py"):
        TorchServe(models={"m": packed(tmp_path, "crash", source)}).start()


SLOW = "import time\ndef handle(data, context):\n    data or time.sleep(6)\n    return data and ['ok']\n"


def test_the_deadline_of_the_archive_is_named_at_its_first_kill(tmp_path: Path) -> None:
    mar = packed(tmp_path, "slow", SLOW, "startupTimeout: 2\n")
    with pytest.raises(StartTimeout, match=r"within 2 s: a worker of m did .* Raise startupTimeout") as late:
        TorchServe(models={"m": mar}, startup_timeout=280).start()
    assert "startup_timeout=" not in str(late.value)


def test_a_deadline_in_the_config_is_named_too(tmp_path: Path) -> None:
    mar = packed(tmp_path, "slow", SLOW)
    with pytest.raises(StartTimeout, match=r"within 3 s: .*default_startup_timeout in config="):
        TorchServe(models={"m": mar}, config={"default_startup_timeout": 3}).start()


def test_torchserve_gets_the_deadline_of_the_start(tmp_path: Path) -> None:
    models = {"m": packed(tmp_path, "m", MOODY), "n": packed(tmp_path, "n", MOODY, "responseTimeout: 9\n")}
    with TorchServe(models=models, startup_timeout=280) as server:
        assert server.management.describe("m")["startupTimeout"] == 280
        assert server.management.describe("n")["startupTimeout"] == 120  # TorchServe's, in any config file
        for name, setting in [("m", "startupTimeout"), ("n", "startupTimeout"), ("n", "responseTimeout")]:
            described: dict[str, Any] = {**server.management.describe(name)}
            assert server._limit(setting, name) == described[setting]


# The logs of a run are its own


def test_the_logs_of_an_earlier_run_are_kept_apart(tmp_path: Path) -> None:
    logs, mar = tmp_path / "logs", packed(tmp_path, "moody", MOODY)
    for run in ("first", "second"):
        with TorchServe(models={"m": mar}, log_dir=logs) as server:
            with pytest.raises(TutorialError, match="did not hold"):
                server.wait_for_log("raise ", timeout=0.3)
            assert f"raise {run}" in str(error_of(server, f"raise {run}"))
            server.wait_for_log(f"raise {run}")
            assert f"raise {run}" in server.log_tail(1000) and "ValueError" in server.log_tail(1000)
    assert "raise second" in (logs / "model_log.log").read_text()
    kept = logs / "earlier" / "1"
    assert "raise first" in (kept / "model_log.log").read_text() and (kept / "console.log").stat().st_size
    assert "raise first" not in (logs / "model_log.log").read_text()


# A server that does not run


def test_clients_of_a_server_that_does_not_run_are_a_sentence(tmp_path: Path) -> None:
    server = TorchServe(models={"m": packed(tmp_path, "moody", MOODY)})

    def ask() -> None:
        for name in (
            "inference",
            "management",
            "metrics",
            "inference_address",
            "metrics_address",
            "key_file",
        ):
            with pytest.raises(TutorialError, match="not running: it has no"):
                getattr(server, name)
        with pytest.raises(TutorialError, match="not running: it has no"):
            server.token("inference")

    ask()
    with server:
        assert server.inference.ping()["status"] == "Healthy"
    ask()


# Threads


@pytest.mark.parametrize(
    ("variables", "config", "workers", "threads"),
    [
        ({}, {}, {"a": 2}, lambda cores: cores // 2),
        ({}, {"default_workers_per_model": 2}, {"a": None}, lambda cores: cores // 2),
        ({}, {}, {"a": 1, "b": 1}, lambda cores: cores // 2),
        ({}, {"models": {"a": {"1.0": {"minWorkers": 2}}}}, {"a": None}, lambda cores: cores // 2),
        ({"OMP_NUM_THREADS": "7"}, {}, {"a": 2}, lambda cores: 7),
        ({"MKL_NUM_THREADS": "1"}, {}, {"a": 2}, lambda cores: None),
        ({}, {"cpu_launcher_enable": True}, {"a": 2}, lambda cores: None),
        ({}, {}, {"a": 1}, lambda cores: None),
        ({}, {}, {}, lambda cores: None),
    ],
)
def test_the_workers_share_the_cores(
    variables: dict[str, str],
    config: dict[str, Any],
    workers: dict[str, int | None],
    threads: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores = all_cores()
    if cores < 2:
        pytest.skip("this machine has one core")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    models = {
        name: packed(tmp_path, name, MOODY, f"minWorkers: {number}\n" if number else "")
        for name, number in workers.items()
    }
    expected = threads(cores)
    seen = {**TorchServe(models=models, config=config)._own_variables(os.environ), **os.environ}
    assert seen.get("OMP_NUM_THREADS") == (expected and str(expected))


def test_a_handler_computes_with_its_share_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    mar = packed(tmp_path, "moody", MOODY, "minWorkers: 2\nmaxWorkers: 2\n")
    with TorchServe(models={"m": mar}) as server, ThreadPoolExecutor(2) as pool:
        share = str(max(1, all_cores() // 2))
        assert set(pool.map(lambda _: str(server.inference.predict("m", b"")), range(8))) == {share}
