"""One exported model, one archive and one running server for all tests, and what servers leave behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from course.measuring import spare_the_machine
from course.servers import free_ports

from tutorial_lib import EngineNotFound, TorchServe, build_archive, export_model, find_engine

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = {"input": ["I love this!"]}


def folders() -> set[Path]:
    """The temporary folders that servers of this run have now."""
    return set(Path(tempfile.gettempdir()).glob("ts-*"))


def orphan(temp: Path) -> Path:
    """Makes the folder of an owner that is dead, with a model in it."""
    code = (
        "import os; from tutorial_lib.processes import new_folder\n"
        "folder = new_folder(); (folder / 'models').mkdir(); print(folder, flush=True); os._exit(0)"
    )
    environment = os.environ | {"TMPDIR": str(temp)}
    return Path(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip())


def below(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(_runs(process) for process in processes)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between the two questions
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def eventually(true: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits until it is true, and gives what it then is; fails where it has not become so in time."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="session", autouse=True)
def own_temp() -> Iterator[None]:
    """A temporary folder of this run's own: what is left in it was left by these tests."""
    with (
        tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


spare_the_machine()

# Ray reads these when it is imported: a token of this run's own (else it keeps one in the home folder), and
# no reports of its use to its makers.
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",  # else 5, and a proxy that is later is killed
    RAY_SERVE_ENABLE_HA_PROXY="1",
    RAY_SERVE_THROUGHPUT_OPTIMIZED="1",
    RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="1",  # else a stopped replica stays for 30 s
)
# Else all HAProxies of a machine want the same ones.
for name, port in zip(
    ("FALLBACK_PROXY_HTTP", "HAPROXY_METRICS", "HAPROXY_STATS"), free_ports(3), strict=True
):
    os.environ[f"RAY_SERVE_{name}_PORT"] = str(port)


# A worker gets one file after the other. With the longest at the end, the others would have nothing to do.
LONGEST_FIRST = ("soak", "preload", "book_browser", "handler_models", "export", "packaging", "archive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first; what needs minutes and more than this machine alone has a command of its own."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if config.getoption("-m"):
        return
    reasons: dict[str, Callable[[], str]] = {
        "resolve": lambda: "`make resolve` runs these: they ask the package index",
        "container": _no_containers,
        "links": lambda: "`make links` runs these: they ask other sites",
        "browser": lambda: "`make browser` runs these: the book and JupyterLab in Chromium",
        "faults": lambda: "`make faults` runs these: planted faults, and owners that are killed, for minutes",
        "rerun": lambda: "`make rerun` runs these: whole chapters, each cell twice, for minutes",
        "models": lambda: "`make models` runs these: other models than the course's own",
        "cluster": lambda: "`make cluster` runs these: Ray beside TorchServe, over several hosts, under load",
    }
    for mark, reason in reasons.items():
        if marked := [item for item in items if item.get_closest_marker(mark)]:
            skip = pytest.mark.skip(reason=reason())
            for item in marked:
                item.add_marker(skip)


def _no_containers() -> str:
    try:
        return f"{find_engine().name} is here: `make container` builds the image and runs these"
    except EngineNotFound as error:
        return f"`make container` runs these. {error}"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model("embedded", tmp_path_factory.mktemp("model") / "my_model")


@pytest.fixture(scope="session")
def mar(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive(
        "BERTweetSentimentAnalysis",
        handler=ROOT / "handler.py",
        model_dir=model_dir,
        extra_files=[ROOT / "index_to_name.json"],
        config_file=ROOT / "model-config.yaml",
        export_path=tmp_path_factory.mktemp("store"),
    )


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive whose handler needs no model, and so starts sooner; it answers "ok" to each request."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text("def handle(data, context):\n    return data and ['ok'] * len(data)\n")
    return build_archive("echo", handler=folder / "echo.py", export_path=folder / "store")


@pytest.fixture(scope="session")
def server(mar: Path) -> Iterator[TorchServe]:
    with TorchServe(models={"my_model": mar}, model_api=True) as running:
        yield running
