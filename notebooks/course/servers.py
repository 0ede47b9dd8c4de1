"""Runs TorchServe by its own command, without the library, and finds free ports."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from course.waiting import wait_until
from tutorial_lib import find_java


def free_ports(count: int) -> list[int]:
    """Finds different ports that nothing listens on.

    They lie below the ports that Linux gives to outgoing connections (32768 and more), so that no connection
    takes one before its server does.

    >>> len(set(free_ports(5)))
    5
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 30_000), 1_000):
        with suppress(OSError), socket.create_server(("", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"There are no {count} free ports from 20000 to 30000.")


def free_port() -> int:
    """Finds one port that nothing listens on."""
    return free_ports(1)[0]


def is_answered(port: int) -> bool:
    """Returns whether something listens on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def write_config(folder: Path) -> dict[str, str]:
    """Writes config.properties with five free ports into a folder, as chapter 05 does by hand.

    Returns:
        The addresses by name: inference, management and metrics.
    """
    ports = free_ports(5)
    addresses = {
        name: f"http://127.0.0.1:{port}"
        for name, port in zip(("inference", "management", "metrics"), ports, strict=False)
    }
    lines = [f"{name}_address={address}" for name, address in addresses.items()]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    return addresses


def set_up_shell(folder: Path) -> dict[str, str]:
    """Prepares a TorchServe that shell cells start and stop by hand in a folder.

    It writes config.properties, and sets the variables that the cells use: INFERENCE and MANAGEMENT (the
    addresses), JAVA_HOME, and SHORT_TMP, a temporary folder for this server. Its path is short, since a
    socket's path has 107 characters at most. SHORT_TMP stays the same in a notebook, so that a cell that runs
    again finds the server that it started before.

    Returns:
        The addresses by name: inference, management and metrics.
    """
    addresses = write_config(folder)
    os.environ["INFERENCE"], os.environ["MANAGEMENT"] = addresses["inference"], addresses["management"]
    os.environ["JAVA_HOME"] = str(find_java().home)
    if "SHORT_TMP" not in os.environ:
        os.environ["SHORT_TMP"] = tempfile.mkdtemp()
    return addresses


def wait_until_healthy(folder: Path, address: str) -> dict[str, str]:
    """Asks a server's health check, with the access token in its folder, until it answers.

    Returns:
        The answer.

    Raises:
        TimeoutError: the server did not answer within a minute; the message has the folder's start.log.
    """

    def ping() -> dict[str, str] | None:
        try:
            token = json.loads((folder / "key_file.json").read_text())["inference"]["key"]
            bearer = {"Authorization": f"Bearer {token}"}
            answer: dict[str, str] = requests.get(f"{address}/ping", headers=bearer, timeout=5).json()
        except (OSError, ValueError):
            return None  # not yet
        return answer

    return wait_until(ping, 60, (folder / "start.log").read_text) or {}


@contextmanager
def taken_port() -> Iterator[int]:
    """Yields a port of loopback, on which this process listens until the `with` block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def holder(port: int) -> int | None:
    """Returns the id of the process that listens on a port, as `ss -ltnp` shows it."""
    listening = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    return next((c.pid for c in listening if c.laddr and c.laddr.port == port), None)


def _environment(temp: Path) -> dict[str, str]:
    """Returns the environment of a raw server: with a Java, and its folder for temporary files."""
    java = {"JAVA_HOME": str(find_java().home)}
    return {**os.environ, **java, **dict.fromkeys(("TMPDIR", "TEMP"), str(temp))}


def run_raw(folder: Path, store: Path, inference: int) -> subprocess.CompletedProcess[str]:
    """Runs `torchserve --start --foreground` on this inference port until it ends by itself.

    Args:
        folder: where it runs; config.properties is written there.
        store: the model store.
        inference: the port of the inference address. The other ports are free ones.
    """
    address = write_config(folder)["inference"]
    config = folder / "config.properties"
    config.write_text(config.read_text().replace(address, f"http://127.0.0.1:{inference}"))
    command = ["torchserve", "--start", "--foreground", "--ncs", "--model-store", str(store.absolute())]
    return subprocess.run(
        [*command, "--ts-config", "config.properties"],
        cwd=folder,
        env=_environment(folder.absolute()),
        capture_output=True,
        text=True,
    )


@contextmanager
def raw_server(
    folder: Path,
    *arguments: str,
    ready: Callable[[], object],
    config: str = "config.properties",
    temp: Path | None = None,
    **user: Any,
) -> Iterator[psutil.Process]:
    """Runs `torchserve --start --foreground` in a folder, and stops it at the end of the `with` block.

    Args:
        folder: where it runs: it has `store`, the model store, and gets key_file.json, logs and console.log.
        arguments: more arguments of the command line.
        ready: called until it returns something true.
        config: the config.properties, relative to the folder.
        temp: where it unpacks models and has its sockets; by default a folder that is removed at the end.
        user: `user=`, `group=` and `extra_groups=` of subprocess.Popen. Only root may run as another user.

    Yields:
        The launcher's process.

    Raises:
        TimeoutError: TorchServe was not ready within 120 seconds, or ended; the message has the log's end.
    """
    own_temp = temp or Path(tempfile.mkdtemp())  # short: a socket's path has 107 characters at most
    environment = _environment(own_temp)
    if user:  # the folders become this user's
        environment["HOME"] = str(own_temp)
        for path in (folder, own_temp):
            os.chown(path, user["user"], user["group"])
    command = ["torchserve", "--start", "--foreground", "--model-store", "store", "--ts-config", config]
    console = folder / "console.log"
    with console.open("ab") as output:
        launcher = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
            **user,
        )

    def is_ready() -> object:
        if launcher.poll() is not None:
            raise TimeoutError(f"TorchServe ended. {console.read_text()[-2000:]}")
        return ready()

    try:
        wait_until(is_ready, 120, lambda: console.read_text()[-2000:])
        yield psutil.Process(launcher.pid)
    finally:
        if launcher.poll() is None:
            below = psutil.Process(launcher.pid).children(recursive=True)
            for child in below:
                if child.name().startswith("java"):  # Java ends the workers; the launcher waits for it
                    child.terminate()
            launcher.wait(60)
            psutil.wait_procs(below, 10)
        if temp is None:
            shutil.rmtree(own_temp, ignore_errors=True)
