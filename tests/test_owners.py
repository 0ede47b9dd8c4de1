"""Whose a folder in the folder for temporary files is: only an orphan of this user is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import eventually, gone, orphan
from tutorial_lib import processes
from tutorial_lib.preload.python import VARIABLE
from tutorial_lib.processes import mark_fork, new_folder, orphans, reap_orphans, remove_folder, set_engine

pytestmark = pytest.mark.faults

OWNER_FILE = "tutorial_lib.owner"
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
def _own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)


@contextlib.contextmanager
def running_in(folder: Path, user: int | None = None) -> Iterator[psutil.Process]:
    environment = {"TEMP": str(folder), "PATH": os.defpath}
    with subprocess.Popen(["sleep", "600"], env=environment, user=user) as started:
        process = psutil.Process(started.pid)
        try:
            eventually(lambda: process.name() == "sleep")
            yield process
        finally:
            started.kill()


def test_an_orphan_is_removed_with_its_processes_and_nothing_else(tmp_path: Path) -> None:
    folder, mine = orphan(tmp_path), new_folder()
    with running_in(folder) as its, running_in(tmp_path / "other") as other:
        (folder / "link").symlink_to(mine)
        reap_orphans()
        assert gone([its]) and not gone([other])
    assert list(tmp_path.iterdir()) == [mine] and list(mine.iterdir()) == [mine / OWNER_FILE]
    remove_folder(mine)
    assert not mine.exists()


def test_a_fork_is_known_by_its_file_if_its_start_is_the_files(tmp_path: Path) -> None:
    """The system shows the variables of the process that it is a fork of."""
    folder = orphan(tmp_path)
    with running_in(tmp_path / "other") as fork, running_in(tmp_path / "other") as other:
        mark_fork(folder, fork.pid)
        [file] = folder.glob("*.fork.*")
        earlier = file.name.replace(str(fork.pid), str(other.pid)) + "0"  # of a process with other's id
        (folder / earlier).touch()
        assert processes.processes_of(folder) == [fork]
        reap_orphans()
        assert gone([fork]) and not gone([other]) and not folder.exists()
    mark_fork(folder, fork.pid)  # too late


# Makes a stranger's folder of an orphan's; the orphan itself is left too, or is gone.
def _copy(folder: Path) -> Path:
    return shutil.copytree(folder, folder.with_name("ts-backup"))


def _link(folder: Path) -> Path:
    folder.rename(real := folder.with_name("real"))
    folder.symlink_to(real)
    return folder


def _linked_mark(folder: Path) -> Path:
    (folder / OWNER_FILE).rename(real := folder / "real")
    (folder / OWNER_FILE).symlink_to(real)
    return folder


def _other_text(text: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = folder / OWNER_FILE
        file.write_bytes(text(file.read_bytes()))
        return folder

    return write


def _instead(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    def replace(folder: Path) -> Path:
        (folder / OWNER_FILE).unlink()
        make(folder / OWNER_FILE)
        return folder

    return replace


def _of_another_user(*names: str) -> Callable[[Path], Path]:
    def give(folder: Path) -> Path:
        for name in names:
            os.chown(folder / name, NOBODY, NOBODY)
        return folder

    return give


STRANGERS = {
    "a copy": _copy,
    "renamed": lambda folder: folder.rename(folder.with_name("ts-2024-01-15-backup")),
    "a link": _link,
    "no mark": _instead(lambda _: None),
    "a linked mark": _linked_mark,
    "a named pipe": _instead(os.mkfifo),
    "a folder as mark": _instead(Path.mkdir),
    "an empty mark": _other_text(lambda _: b""),
    "a mark of another program": _other_text(lambda _: b"12345\n"),
    "half a mark": _other_text(lambda text: text[: len(text) // 2]),
    "bytes": _other_text(lambda _: bytes(range(256)) * 1000),
    "the mark of another host": _other_text(lambda text: b"\n".join([*text.split(b"\n")[:2], b"there"])),
}


@pytest.mark.parametrize(
    "kind",
    [
        *STRANGERS.values(),
        pytest.param(_of_another_user("."), marks=as_root),
        pytest.param(_of_another_user(OWNER_FILE), marks=as_root),
        pytest.param(_of_another_user(".", OWNER_FILE), marks=as_root),
    ],
    ids=[*STRANGERS, "a folder of another user", "a mark of another user", "both of another user"],
)
def test_a_folder_that_only_looks_like_an_orphan_is_left(
    kind: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = kind(orphan(tmp_path))
    with running_in(folder) as process:
        reap_orphans()
        assert not gone([process])
    assert (folder / "models").is_dir()


@pytest.mark.parametrize(
    "name", ["ts-123-456-x", "ts-999999999-1-left", "ts-node-modules", "ts-", "ts-2024-01-15", "TS-1-1-1"]
)
@pytest.mark.parametrize("is_file", [False, True])
def test_a_name_says_nothing(name: str, is_file: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch() if is_file else (path / "thesis").mkdir(parents=True)
    reap_orphans()
    assert path.exists() and (is_file or (path / "thesis").is_dir())


OTHER_NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]
REAP = "from tutorial_lib.processes import reap_orphans; reap_orphans()"


def python(code: str, *before: str) -> list[str]:
    return [*before, sys.executable, "-c", code]


def can_unshare() -> bool:
    return (
        os.geteuid() == 0 and subprocess.run([*OTHER_NAMESPACE, "true"], capture_output=True).returncode == 0
    )


@pytest.mark.parametrize("owner_in", [[], OTHER_NAMESPACE], ids=["here", "owner in another namespace"])
@pytest.mark.parametrize("reaper_in", [[], OTHER_NAMESPACE], ids=["here", "reaper in another namespace"])
def test_the_folder_of_a_living_owner_is_left(
    owner_in: list[str], reaper_in: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container has a namespace of process ids: there the owner's id means another process, or none."""
    if (owner_in or reaper_in) and not can_unshare():
        pytest.skip("this machine allows no namespaces")
    code = (
        "import subprocess, sys; from tutorial_lib.processes import new_folder\n"
        "folder = new_folder(); child = subprocess.Popen(['sleep', '600'], env={'TEMP': str(folder)})\n"
        "print(folder, flush=True); input(); child.kill()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        python(code, *owner_in), env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None and owner.stdin is not None
        folder = Path(owner.stdout.readline().strip())
        os.utime(folder, (0, 0))  # as if the clock had been set
        os.utime(folder / OWNER_FILE, (0, 0))
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "create_time", lambda _: 0.0)
            reap_orphans()
        subprocess.run(python(REAP, *reaper_in), env=environment, check=True)
        assert folder.is_dir() and processes.processes_of(folder)
        owner.communicate("\n")
    reap_orphans()
    assert not folder.exists()


def test_a_folder_is_left_to_its_owner_by_forks_and_by_itself(tmp_path: Path) -> None:
    folder = new_folder()
    fork = os.fork()
    if not fork:
        reap_orphans()
        os._exit(0 if folder.is_dir() else 1)
    assert os.waitpid(fork, 0)[1] == 0
    reap_orphans()
    assert folder.is_dir()
    remove_folder(folder)


def test_two_that_reap_at_once_do_so_once_each(tmp_path: Path) -> None:
    folders = {orphan(tmp_path) for _ in range(3)}
    first, second = orphans(), orphans()
    found = {next(first), next(second)}
    assert len(found) == 2  # what one of them has, the other one leaves
    found |= {*first, *second}
    assert found == folders


def test_a_container_of_a_dead_owner_is_left_to_its_engine(tmp_path: Path) -> None:
    folder = orphan(tmp_path)
    set_engine(folder, "podman")
    reap_orphans()
    assert folder.is_dir() and not list(orphans("docker")) and list(orphans("podman")) == [folder]


def test_without_locks_nothing_is_taken_for_an_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems."""
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        folder = new_folder()
    other = new_folder()
    reap_orphans()
    assert folder.is_dir() and other.is_dir()
    remove_folder(other)
    remove_folder(folder)
    assert not list(tmp_path.iterdir())


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@as_root
def test_a_process_of_another_user_is_not_killed(tmp_path: Path) -> None:
    folder = orphan(tmp_path)
    with running_in(folder, user=NOBODY) as process:
        reap_orphans()
        assert not gone([process]) and not folder.exists()
