"""Who ends a server's processes, however its owner ends: real servers, real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

from tests.conftest import below, eventually, folders, gone
from tutorial_lib import TorchServe, TutorialError, archive_sha256, preloaded
from tutorial_lib.processes import end_processes, processes_of, reap_orphans
from tutorial_lib.servers.console_log import older_part

pytestmark = pytest.mark.faults

# A script in the background of a shell ignores SIGINT, and so would the child: it sets what a terminal sets.
CHILD = (
    "import os, resource, signal, sys, time; from tutorial_lib import TorchServe, preloaded\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "server = TorchServe(models={'m': sys.argv[1]}).start(); print(server.pid, flush=True); input()\n"
)
KILLED = "os.kill(os.getpid(), signal.%s)"


@pytest.fixture(scope="module")
def _quick() -> Iterator[None]:
    """Owners that are started meanwhile get workers in tenths of a second."""
    with preloaded():
        yield


def start_owner(archive: Path, end: str = "", code: str = CHILD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code + end, str(archive)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def first_line(owner: subprocess.Popen[str]) -> str:
    assert owner.stdout is not None
    return owner.stdout.readline()


@pytest.mark.parametrize("end", ["sys.exit(3)", "signal.raise_signal(signal.SIGINT)"])
def test_an_owner_that_ends_without_stop_leaves_nothing(end: str, echo: Path, _quick: None) -> None:
    before = folders()
    owner = start_owner(echo, end)
    running = below(int(first_line(owner)))
    owner.communicate("\n", timeout=180)
    assert owner.returncode != 0
    assert gone(running) and folders() == before


@pytest.mark.parametrize(
    "end", ["os.execvp('true', ['true'])", *(KILLED % name for name in ("SIGTERM", "SIGHUP", "SIGKILL"))]
)
def test_the_server_of_an_owner_that_could_not_stop_it_ends(end: str, echo: Path, _quick: None) -> None:
    before = folders()
    owner = start_owner(echo, end)
    running = below(int(first_line(owner)))
    owner.communicate("\n", timeout=180)
    eventually(lambda: gone(running) and folders() == before)


def test_a_server_outlives_an_interrupt_of_its_kernel_and_not_a_restart(echo: Path, _quick: None) -> None:
    before = folders()
    kernel, client = start_new_kernel(kernel_name="python3")

    def printed(code: str) -> str:
        client.execute(code, stop_on_error=False)  # else what comes after the interrupt is dropped
        while "text" not in (content := client.get_iopub_msg(timeout=90)["content"]):
            assert "ename" not in content or content["ename"] == "KeyboardInterrupt", content
        return str(content["text"])

    try:
        start = (
            f"from tutorial_lib import TorchServe; server = TorchServe(models={{'m': {str(echo)!r}}}).start()"
        )
        running = below(int(printed(f"{start}; print(server.pid)")))
        assert printed("import time; print('begun', flush=True); time.sleep(600)") == "begun\n"
        kernel.interrupt_kernel()
        assert printed("print(server.inference.predict('m', {}))") == "ok\n"
        kernel.restart_kernel(now=True)
        eventually(lambda: gone(running) and folders() == before)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def test_an_interrupted_start_leaves_nothing(echo: Path) -> None:
    before = folders()
    owner = start_owner(echo)
    eventually(lambda: folders() - before and len(below(owner.pid)) > 2, 180)
    started = below(owner.pid)
    owner.send_signal(signal.SIGINT)
    owner.communicate(timeout=180)
    assert gone(started) and folders() == before


@pytest.mark.parametrize("started", ["launcher.py", "org.pytorch.serve", "model_service_worker"])
def test_an_owner_that_is_killed_during_a_start_leaves_nothing(started: str, echo: Path) -> None:
    before = folders()
    owner = start_owner(echo)

    def has_started() -> bool:
        with contextlib.suppress(psutil.Error):
            return any(started in " ".join(process.cmdline()) for process in below(owner.pid))
        return False

    eventually(has_started, 180)
    [folder] = folders() - before
    owner.kill()
    owner.communicate()
    eventually(lambda: not processes_of(folder) and folders() == before)


def test_a_fork_neither_ends_the_server_nor_keeps_it(echo: Path, _quick: None) -> None:
    """One fork ends at once, and one outlives the owner with all that it inherited."""
    before = folders()
    owner = start_owner(
        echo,
        "if not os.fork(): sys.exit()\n"
        "os.wait(); staying = os.fork()\n"
        "if not staying: os.closerange(0, 3); time.sleep(600); os._exit(0)\n"
        "print(server.inference.predict('m', {}), staying, flush=True)\n" + KILLED % "SIGKILL",
    )
    running = below(int(first_line(owner)))
    answer = owner.communicate("\n", timeout=180)[0].split()
    staying = psutil.Process(int(answer[1]))
    assert answer[0] == "ok"
    eventually(lambda: gone(running) and folders() == before)
    assert staying.is_running()
    staying.kill()


def test_a_fork_that_leaves_the_preloaded_block_does_not_end_it(echo: Path) -> None:
    owner = start_owner(
        echo,
        code="import os, sys; from tutorial_lib import TorchServe, preloaded\n"
        "with preloaded():\n"
        "    fork = os.fork()\n"
        "    if fork:\n"
        "        os.waitpid(fork, 0)\n"
        "        with TorchServe(models={'m': sys.argv[1]}) as server:\n"
        "            print('not preloaded' in server.log_tail(1000))\n"
        "            assert server.inference.predict('m', {}) == 'ok'\n",
    )
    assert owner.communicate(timeout=180)[0] == "False\n" and owner.returncode == 0


def test_a_signal_to_the_launcher_ends_the_server(echo: Path, _quick: None) -> None:
    before = folders()
    with TorchServe(models={"m": echo}) as server:
        running = below(server.pid)
        os.kill(server.pid, signal.SIGTERM)
        eventually(lambda: gone(running))
        assert server.log_tail()
    assert folders() == before


def test_what_no_launcher_ended_is_reaped_and_what_others_have_is_not(
    server: TorchServe, echo: Path, _quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folders()
    owner = start_owner(echo)
    launcher = psutil.Process(int(first_line(owner)))
    orphans = below(launcher.pid)
    owner_process = psutil.Process(owner.pid)
    for process in (launcher, owner_process):
        process.suspend()  # else one of them would see the other's end
    for process in (launcher, owner_process):
        process.kill()
    owner.communicate()
    assert not gone(orphans) and len(folders() - before) == 1
    # As if the clock had been set since all of these started.
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 0.0)
    reap_orphans()
    monkeypatch.undo()
    assert gone(orphans) and folders() == before
    assert server.inference.ping() == {"status": "Healthy"}


def test_a_launcher_that_does_nothing_is_killed(
    echo: Path, _quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutorial_lib.servers.launcher.GRACE", 0.5)
    with TorchServe(models={"m": echo}) as server:
        running = below(server.pid)
        psutil.Process(server.pid).suspend()
    assert gone(running)


def test_processes_are_known_by_their_temporary_folder(tmp_path: Path) -> None:
    environment = os.environ | {"TEMP": str(tmp_path)}
    with subprocess.Popen(["sleep", "600"], env=environment) as sleeping:
        eventually(lambda: processes_of(tmp_path) == [psutil.Process(sleeping.pid)])
        end_processes(tmp_path, grace=5)  # no JVM, so nothing to wait for
        assert not psutil.pid_exists(sleeping.pid)
    assert processes_of(tmp_path) == []


# Machines with little room


FEW_FILES = (
    "import resource, sys; from tutorial_lib import TorchServe, TutorialError\n"
    "server = TorchServe(models={'m': sys.argv[1]})\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))\n"
    "try:\n"
    "    server.start().stop()\n"
    "except TutorialError as error:\n"
    "    print(type(error).__name__, error)\n"
)


@pytest.mark.parametrize("files", [3, 7, 20])
def test_too_few_files_that_may_be_open_are_named(files: int, echo: Path) -> None:
    """The start fails in its own process, or in the JVM."""
    before = folders()
    command = [sys.executable, "-c", FEW_FILES, str(echo), str(files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "open files" in run.stdout and "ulimit -n" in run.stdout, run.stdout + run.stderr
    eventually(lambda: folders() == before)


def test_a_server_is_stopped_when_no_file_can_be_opened(echo: Path, _quick: None) -> None:
    before = folders()
    owner = start_owner(
        echo,
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); held = []\n"
        "try:\n"
        "    while True: held.append(open(os.devnull))\n"
        "except OSError:\n"
        "    server.stop(); print('stopped', flush=True)\n",
    )
    running = below(int(first_line(owner)))
    assert owner.communicate("\n", timeout=180)[0] == "stopped\n"
    assert gone(running)
    reap_orphans()  # removing a folder takes some open files too
    assert folders() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("nr_inodes=1", "No folder can be made in"),
        ("nr_inodes=2", "No folder can be made in"),
        ("nr_inodes=4", "can't be copied"),
        ("size=4k", "can't be copied"),
    ],
)
def test_a_full_disk_is_named(
    size: str, said: str, echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(TutorialError, match=rf"{said}.* No space left on device.*df -i"):
            TorchServe(models={"m": echo}, sha256={"m": archive_sha256(echo)}).start()
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# The console log


def test_a_console_log_is_cut_and_read_from_its_end(echo: Path, tmp_path: Path, _quick: None) -> None:
    """A log of 300 GB, which no memory holds, and which takes no room since it is a hole."""
    with TorchServe(models={"m": echo}, log_dir=tmp_path) as server:
        log = tmp_path / "console.log"
        os.truncate(log, 300_000_000_000)
        assert len(server.log_tail(100)) < 10_000_000
        eventually(lambda: log.stat().st_size < 1_000_000)
        assert older_part(log).stat().st_size < 300_000_000
        assert server.inference.predict("m", {}) == "ok"
        eventually(lambda: "Backend response time" in server.log_tail(20))
        os.truncate(log, 300_000_000_000)
    assert len(server.log_tail(200)) < 10_000_000
