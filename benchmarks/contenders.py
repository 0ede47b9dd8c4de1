"""The measured servers and handlers: each tells where it listens, and runs until its `with` block ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil
import requests

from tutorial_lib import TorchServe, build_archive
from tutorial_lib.load import as_input

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# They have their own environments, because their pinned versions differ from ours.
BENTOML = ROOT / ".venv-bentoml" / "bin" / "bentoml"
MLSERVER = ROOT / ".venv-mlserver" / "bin" / "mlserver"
CORES = psutil.cpu_count(logical=False) or 1


class Running(NamedTuple):
    """A contender's URL, the parent of its processes, and the form of its requests and answers."""

    url: str
    pid: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: Callable[[list[str]], object] = as_input
    answer: Callable[[bytes], object] = json.loads

    def is_there(self) -> bool:
        """Returns whether the contender answers a text."""
        try:
            body = self.body(["a text"])
            return requests.post(self.url, json=body, headers=dict(self.headers), timeout=60).ok
        except requests.RequestException:
            return False


class Ours(NamedTuple):
    """The course's handler with these options of model-config.yaml."""

    options: dict[str, Any]
    workers: int = CORES
    batch_size: int = 32
    delay_ms: int = 1

    def config(self, folder: Path) -> Path:
        file = folder / "settings.yaml"
        settings = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.delay_ms,
            "jobQueueSize": 400,
            "responseTimeout": 300,
            "handler": {"threads": 1, **self.options},
        }
        file.write_text(json.dumps(settings))  # JSON is YAML
        return file

    def archive(self, model_dir: Path, folder: Path) -> Path:
        """Builds an archive, which is a folder, of the course's handler with these settings."""
        return _archive(ROOT / "handler.py", model_dir, folder, self.config(folder))


def _archive(handler: Path, model_dir: Path, folder: Path, config_file: Path | None = None) -> Path:
    return build_archive(
        "served", handler=handler, model_dir=model_dir, config_file=config_file, export_path=folder,
        archive_format="no-archive",
    )  # fmt: skip


def ours(model_dir: Path, work: Path, setting: Ours) -> AbstractContextManager[Running]:
    """TorchServe with the course's handler."""
    return _torchserve(setting.archive(model_dir, work))


def shipped(model_dir: Path, work: Path) -> AbstractContextManager[Running]:
    """TorchServe with the course's handler and model-config.yaml, as they are."""
    return _torchserve(_archive(ROOT / "handler.py", model_dir, work, ROOT / "model-config.yaml"))


def article(
    model_dir: Path, work: Path, workers: int | None, threads: int | None
) -> AbstractContextManager[Running]:
    """TorchServe with a handler that works as the article's; None means that the article sets nothing.

    The handler gets one request at a time, because it fails on a larger batch.
    """
    os.environ.pop("ARTICLE_THREADS", None)
    if threads:
        os.environ["ARTICLE_THREADS"] = str(threads)
    config = {"default_workers_per_model": workers or CORES, "default_response_timeout": 300}
    return _torchserve(_archive(HERE / "article_handler.py", model_dir, work), config)


@contextlib.contextmanager
def _torchserve(archive: Path, config: Mapping[str, object] | None = None) -> Iterator[Running]:
    with TorchServe(models={"my_model": archive}, config=config, startup_timeout=300) as server:
        url = f"{server.inference_address}/predictions/my_model"
        yield Running(url, server.pid, {"Authorization": f"Bearer {server.token('inference')}"})


def litserve(model_dir: Path, work: Path, setting: Ours) -> AbstractContextManager[Running]:
    """LitServe with its own workers, which gathers batches of 32 for 10 ms."""
    port, archive = free_port(), setting.archive(model_dir, work)
    return _program([sys.executable, HERE / "lit_app.py", archive, port, setting.workers], port, work)


def ray_serve(model_dir: Path, work: Path, setting: Ours) -> AbstractContextManager[Running]:
    """Ray Serve with its HAProxy, by `build_app`: a replica for each worker."""
    variables = dict.fromkeys(("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"), "1")
    variables["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"  # stops at once, not after 30 s
    return _ray(model_dir, work, setting, **variables)


def plain_ray_serve(model_dir: Path, work: Path, setting: Ours) -> AbstractContextManager[Running]:
    """Ray Serve with its defaults: requests go through its Python proxy."""
    return _ray(model_dir, work, setting)


def _ray(model_dir: Path, work: Path, setting: Ours, **variables: str) -> AbstractContextManager[Running]:
    port, archive = free_port(), setting.archive(model_dir, work)
    command = [sys.executable, HERE / "ray_app.py", archive, port, setting.workers]
    return _program(command, port, work, path="/predictions/my_model", **variables)


def bentoml(model_dir: Path, work: Path, setting: Ours) -> AbstractContextManager[Running]:
    """BentoML with its own workers and adaptive batches of 32 at most."""
    port = free_port()
    command = [BENTOML, "serve", "bento_app:Served", "--host", "127.0.0.1", "--port", port]
    variables = {
        "ARCHIVE": str(setting.archive(model_dir, work)),
        "WORKERS": str(setting.workers),
        "BENTOML_HOME": str(work / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
    }

    def body(texts: list[str]) -> object:
        return {"texts": texts}

    return _program([*command, "--working-dir", HERE], port, work, body=body, **variables)


def mlserver(model_dir: Path, work: Path, setting: Ours) -> AbstractContextManager[Running]:
    """MLServer with its parallel workers, which gathers adaptive batches of 32 for 10 ms."""
    port = free_port()
    settings = {"host": "127.0.0.1", "http_port": port, "parallel_workers": setting.workers}
    settings |= {"grpc_port": free_port(), "metrics_port": free_port(), "debug": False}
    model = {"name": "my_model", "implementation": "ml_app.Served", "max_batch_size": 32}
    model |= {"max_batch_time": 0.01, "parameters": {"uri": str(setting.archive(model_dir, work))}}
    folder = work / "mlserver"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))

    def body(texts: list[str]) -> object:
        return {"inputs": [{"name": "texts", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}

    def answer(content: bytes) -> object:
        return json.loads(content)["outputs"][0]["data"]

    path, command = "/v2/models/my_model/infer", [MLSERVER, "start", folder]
    return _program(command, port, work, path, body, answer, PYTHONPATH=str(HERE))


@contextlib.contextmanager
def _program(
    command: list[object],
    port: int,
    work: Path,
    path: str = "/predict",
    body: Callable[[list[str]], object] = as_input,
    answer: Callable[[bytes], object] = json.loads,
    **variables: str,
) -> Iterator[Running]:
    """Runs a server program, which is ready when it answers a text."""
    log = work / "log"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **variables}
    with log.open("wb") as output:
        process = psutil.Popen(
            [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    one = Running(f"http://127.0.0.1:{port}{path}", process.pid, body=body, answer=answer)
    try:
        deadline = time.monotonic() + 300
        while not one.is_there():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[1]} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield one
    finally:
        everything = [*process.children(recursive=True), process] if process.is_running() else []
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        psutil.wait_procs(everything, timeout=20)
        for left in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class InProcess:
    """The archive's handler in one process for each core: the maximum that these cores can do."""

    def __init__(self, model_dir: Path, work: Path, setting: Ours) -> None:
        unpacked = setting.archive(model_dir, work)
        self.processes = [
            subprocess.Popen(
                [sys.executable, HERE / "in_process.py", unpacked],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for _ in range(CORES)
        ]  # fmt: skip
        for process in self.processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"in_process.py did not start; run it by hand on {unpacked}.")

    def measure(self, seconds: float, batch_size: int, processes: int = CORES) -> dict[str, float]:
        """Returns the texts per second of all processes together, and the median time of a batch."""
        asked = self.processes[:processes]
        for process in asked:
            assert process.stdin is not None
            process.stdin.write(json.dumps([seconds, batch_size]) + "\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.readline()) for process in asked if process.stdout]
        return {
            "texts_per_s": sum(one["texts_per_s"] for one in found),
            "p50_ms": sum(one["p50_ms"] for one in found) / len(found),
        }

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
