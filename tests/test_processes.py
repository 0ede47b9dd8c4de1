"""Who ends a server's processes, however its owner ends: real servers, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.conftest import below, eventually, folders, gone
from tutorial_lib import TorchServe
from tutorial_lib.processes import end_processes, new_folder, owner_lives, processes_of, reap_orphans

# A script in the background of a shell ignores SIGINT, and so would the child: it sets what a terminal sets.
CHILD = (
    "import signal, sys; from tutorial_lib import TorchServe\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "server = TorchServe(models={'m': sys.argv[1]}).start(); print(server.pid, flush=True); input()\n"
)


def start_owner(archive: Path, end: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + end, str(archive)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("end", ["sys.exit(3)", "signal.raise_signal(signal.SIGINT)"])
def test_an_owner_that_ends_without_stop_leaves_nothing(end: str, echo: Path) -> None:
    before = folders()
    owner = start_owner(echo, end)
    assert owner.stdout is not None
    running = below(int(owner.stdout.readline()))
    owner.communicate("\n", timeout=180)
    assert owner.returncode != 0
    assert gone(running) and folders() == before


def test_an_interrupted_start_leaves_nothing(echo: Path) -> None:
    before = folders()
    owner = start_owner(echo)
    eventually(lambda: folders() - before and len(below(owner.pid)) > 2, 180)
    started = below(owner.pid)
    owner.send_signal(signal.SIGINT)
    owner.communicate(timeout=180)
    assert gone(started) and folders() == before


def test_what_killed_owners_left_is_reaped_and_what_others_have_is_not(
    server: TorchServe, echo: Path
) -> None:
    """One owner is killed during its start, the other when its server is ready."""
    before = folders()
    early, late = start_owner(echo), start_owner(echo)
    assert late.stdout is not None
    orphans = below(int(late.stdout.readline()))
    eventually(lambda: len(below(early.pid)) > 2, 180)
    orphans += below(early.pid)[1:]
    for owner in (early, late):
        owner.kill()
        owner.communicate()
    assert not gone(orphans) and len(folders() - before) == 2
    reap_orphans()
    assert gone(orphans) and folders() == before
    assert server.inference.ping() == {"status": "Healthy"}


def test_only_folders_of_dead_owners_are_removed() -> None:
    foreign = Path(tempfile.mkdtemp(prefix="ts-not-mine-"))
    mine = new_folder()
    reused = Path(tempfile.mkdtemp(prefix=f"ts-{os.getpid()}-1000000-"))  # another process has the id now
    reap_orphans()
    assert foreign.is_dir() and mine.is_dir() and not reused.exists()
    assert owner_lives(mine.name) and not owner_lives(reused.name)
    foreign.rmdir()
    mine.rmdir()


def test_processes_are_known_by_their_temporary_folder(tmp_path: Path) -> None:
    environment = os.environ | {"TEMP": str(tmp_path)}
    with subprocess.Popen(["sleep", "600"], env=environment) as sleeping:
        eventually(lambda: processes_of(tmp_path) == [psutil.Process(sleeping.pid)])
        end_processes(tmp_path, grace=5)  # no JVM, so nothing to wait for
        assert not psutil.pid_exists(sleeping.pid)
    assert processes_of(tmp_path) == []
