"""Shows what TorchServe does by default, and what another user may do (chapter 12)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from course.servers import raw_server, write_config
from tutorial_lib import find_java

NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}  # as subprocess.run takes it


def cat_as_nobody(name: str, mode: int) -> str:
    """Returns what `cat` prints to the user nobody, for a file of yours with "some words" in it.

    Only root can become another user.

    Args:
        name: the file's name.
        mode: the file's access rights, such as 0o600.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / name).write_text("some words")
        (Path(folder) / name).chmod(mode)
        run = subprocess.run(["cat", name], cwd=folder, capture_output=True, text=True, **NOBODY)
    return str(run.stdout or run.stderr).strip()


class PlainServer(NamedTuple):
    """A running TorchServe with only its ports set."""

    folder: Path
    process: psutil.Process
    is_nobodys: bool

    @property
    def users(self) -> set[int]:
        """The user ids of launcher, Java and workers."""
        return {each.uids().real for each in [self.process, *self.process.children(recursive=True)]}

    @property
    def listens_on(self) -> set[str]:
        """The IP addresses that Java listens on."""
        below = self.process.children(recursive=True)
        java = next(process for process in below if process.name().startswith("java"))
        found = [c.laddr.ip for c in java.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        return {ip.removeprefix("::ffff:") for ip in found}


@contextmanager
def plain_server(archive: Path, word: str) -> Iterator[PlainServer]:
    """Serves an archive in a folder of its own; as the user nobody, where possible.

    It is possible for root, if other users may read Python, its packages, Java and the temporary folder.

    Args:
        archive: served under its own name.
        word: this word in the console's log means that the server is ready.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # as most folders are
        (folder / "store").mkdir()
        shutil.copy(archive, folder / "store")
        write_config(folder)  # free ports, and nothing else
        user = NOBODY if os.geteuid() == 0 and _can_serve(folder) else {}
        models, console = f"{archive.stem}={archive.name}", folder / "console.log"
        with raw_server(
            folder, "--models", models, ready=lambda: word in console.read_text(), temp=folder, **user
        ) as process:
            yield PlainServer(folder, process, bool(user))


def _can_serve(folder: Path) -> bool:
    java = find_java().home / "bin" / "java"
    try:
        for command in (
            ["ls", str(folder)],
            [sys.executable, "-c", "import ts, torch"],
            [str(java), "-version"],
        ):
            subprocess.run(command, cwd=folder, check=True, capture_output=True, **NOBODY)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def printed_settings(console: str) -> dict[str, str]:
    """Returns the settings that TorchServe prints when it starts, by name.

    >>> printed_settings("Model API enabled: false")
    {'Model API enabled': 'false'}
    """
    lines = (line.partition(": ") for line in console.splitlines())
    return {key: value for key, _, value in lines if value}


def key_file_facts(path: Path) -> dict[str, str]:
    """Returns the access rights of a key file and its folder, and how long its access tokens live."""
    keys = json.loads(path.read_text())
    expires = datetime.fromisoformat(keys["management"]["expiration time"])
    minutes = (expires.timestamp() - path.stat().st_mtime) / 60
    return {
        "key file": oct(path.stat().st_mode)[-3:],
        "its folder": oct(path.parent.stat().st_mode)[-3:],
        "token life": f"{minutes:.0f} min",
    }
