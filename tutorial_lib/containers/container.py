"""Runs an image as a container, with podman or docker, and removes the container at the end."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tutorial_lib.clients.tokens import TokenType
from tutorial_lib.containers.engine import ANSWER_TIMEOUT
from tutorial_lib.containers.image import Image
from tutorial_lib.errors import (
    ContainerExited,
    EngineError,
    ImageError,
    OutOfMemory,
    PortInUse,
    TutorialError,
    hint_for_log,
)
from tutorial_lib.processes import orphans, reap_orphans, remove_folder, set_engine
from tutorial_lib.servers.base import ADDRESSES, ModelServer
from tutorial_lib.servers.failures import Read

_PORTS = dict(zip(ADDRESSES, (8080, 8081, 8082), strict=True))  # inside the container
_OWNER = "torchserve-course.owner"  # label: the folder of the container's start
# No rights, and only /tmp to write to.
_CLOSED = (
    *("--read-only", "--tmpfs=/tmp:rw,mode=1777"),
    *("--cap-drop=all", "--security-opt=no-new-privileges"),
)


class Health(NamedTuple):
    """Whether a container has a READY worker, and the line that the image's health check printed.

    >>> Health(True, "1 of 1 workers of my_model are READY.").ok
    True
    """

    ok: bool
    message: str


class Container(ModelServer):
    """A running container of an image, ready inside a `with` block and removed after it.

    Its ports are published on loopback only, its root file system is read-only, and a prediction needs an
    access token, which is generated here and mounted into the container. "Ready" means that the model has a
    READY worker. If the owner process is killed, the container serves on until this user's next `Container`
    with the same engine and the same TMPDIR starts, which removes it.

    Args:
        image: the image to run, or its name (a str).
        name: the container's name; None for a new name.
        ports: host ports by name ("inference", "management", "metrics"); the others are free ports.
        token_auth: ask for access tokens; False is for a container behind your own gateway.
        memory: the memory limit, as the engine takes it: "2g".
        options: more options for the engine's `run`.
        startup_timeout: the one deadline for the whole start, in seconds.

    Raises:
        EngineNotFound: no engine is installed, or none works.
        ImageError: there is no such image.
        PortInUse: a port that was asked for is taken.
        ContainerExited: the container ended while it started.
        OutOfMemory: the memory limit is too small.
        WorkerFailed: a worker died while it loaded the model.
        StartTimeout: the container was not ready in time.

    >>> from tutorial_lib import Engine
    >>> image = Image("localhost/my_model:1.0", Engine("/usr/bin/podman", "podman"))
    >>> Container(image, name="mine", memory="2g").command()[:5]
    ['podman', 'run', '--detach', '--name', 'mine']
    """

    def __init__(
        self,
        image: Image | str,
        *,
        name: str | None = None,
        ports: Mapping[str, int] | None = None,
        token_auth: bool = True,
        memory: str | None = None,
        options: Sequence[str] = (),
        startup_timeout: float = 120,
    ) -> None:
        super().__init__(token_auth=token_auth, startup_timeout=startup_timeout)
        if unknown := sorted(set(ports or {}) - set(_PORTS)):
            raise ValueError(f"There is no port {unknown[0]!r}. The ports are {', '.join(_PORTS)}.")
        self.image = image if isinstance(image, Image) else Image(image)
        self.engine = self.image.engine
        self.name = name or f"ts-{secrets.token_hex(8)}"
        self._wanted_ports = dict(ports or {})
        self._memory, self._options = memory, list(options)
        self._tokens: dict[str, str] = {}
        self._addresses: dict[str, str] = {}
        self._restarted: str | None = None

    # Starting and stopping

    def _prepare(self) -> None:
        self._restarted = None
        self._reap_containers()
        reap_orphans()
        if not self.engine.has_image(self.image.name):
            raise ImageError(
                f"There is no image {self.image.name} on this machine: Image.build(…) it, or pull() it."
            )

    def _reap_containers(self) -> None:
        """Removes this engine's containers whose owners are dead (a killed kernel), and their folders."""
        for folder in orphans(self.engine.name):
            with contextlib.suppress(EngineError):  # then the folder stays, for another try at the next start
                listed = self.engine.run("ps", "--all", "--quiet", "--filter", f"label={_OWNER}={folder}")
                for container in listed.split():
                    self.engine.run("rm", "--force", container)
                remove_folder(folder)

    def command(self, keys: str = "keys") -> list[str]:
        """Returns the engine's command that runs the container; `keys` is the folder of the access tokens."""
        return [
            self.engine.name,
            *("run", "--detach", "--name", self.name),
            *(
                f"--publish=127.0.0.1:{self._wanted_ports.get(name, '')}:{port}"
                for name, port in _PORTS.items()
            ),
            *_CLOSED,
            f"--volume={keys}:/run/keys:ro,Z" if self.token_auth else "--env=TOKEN_AUTH=off",
            *([f"--memory={self._memory}"] if self._memory else []),
            *self._options,
            self.image.name,
        ]

    def _launch(self, folder: Path) -> None:
        set_engine(folder, self.engine.name)
        try:
            # cwd is a folder of its own: podman's monitor writes a file "oom" there if memory ran out
            self.engine.run(
                *("run", "--label", f"{_OWNER}={folder}"),
                *self.command(str(self._write_tokens(folder)))[2:],
                timeout=self._startup_timeout,
                cwd=folder,
            )
        except EngineError as error:
            taken = re.search(r"address already in use|port is already allocated", error.output)
            for name, port in self._wanted_ports.items():
                if taken and str(port) in error.output:
                    raise PortInUse(name, port) from error
            raise

    def _write_tokens(self, folder: Path) -> Path:
        """Writes access tokens that the user inside can read; only the owner can enter the outer folder."""
        keys = folder / "keys"
        keys.mkdir()
        keys.chmod(0o755)
        for kind in ("inference", "management") if self.token_auth else ():
            self._tokens[kind] = secrets.token_urlsafe(24)
            (keys / kind).write_text(self._tokens[kind] + "\n", encoding="utf-8")
            (keys / kind).chmod(0o644)
        return keys

    def _waiting_for(self) -> str:
        health = self.health()
        if not health.ok:
            if "memory limit was hit" in health.message:
                raise OutOfMemory(self._memory, health.message)
            return health.message.rstrip(".")
        published = {name: self.engine.run("port", self.name, str(port)) for name, port in _PORTS.items()}
        self._addresses = {name: f"http://{line.splitlines()[0]}" for name, line in published.items()}
        self._connect_clients(self._tokens.get("inference"), self._tokens.get("management"))
        return ""

    def _raise_if_ended(self) -> None:
        state = self.state()
        if state["Running"]:
            return
        log = self._recent_log(200)
        killed = re.search(r"The memory limit was hit: .*", log)
        if killed or state.get("OOMKilled"):
            raise OutOfMemory(self._memory, killed[0] if killed else "The kernel killed it.")
        hint = hint_for_log(log)
        if state["ExitCode"] in (126, 127):
            hint = "Its start command can't be run: was the image built from deploy/image/Dockerfile?"
        raise ContainerExited(state["ExitCode"], "\n".join(log.splitlines()[-20:]), hint)

    def stop(self, grace: float = 30) -> float:
        """Stops the container: requests in flight can finish; after `grace` seconds it is killed.

        Returns:
            the seconds that stopping took.
        """
        started = time.monotonic()
        self.engine.run("stop", "--time", str(int(grace)), self.name, timeout=grace + ANSWER_TIMEOUT)
        return time.monotonic() - started

    def restart(self) -> None:
        """Stops and starts the container, with the same name and access tokens, and waits until it is ready.

        docker chooses new ports in place of those that were not asked for. This object's addresses and
        clients are updated at a restart; copies of them may be out of date.
        """
        deadline = time.monotonic() + self._startup_timeout
        self.stop()
        self._restarted = datetime.now(UTC).isoformat()
        self.engine.run("start", self.name, cwd=self._folder)
        self._wait_until_ready(deadline)

    def remove(self) -> None:
        """Ends the container, and removes it with its access tokens. `log_tail` keeps the last lines."""
        self._close()

    def _end(self, folder: Path) -> None:
        with contextlib.suppress(EngineError):
            self.stop(grace=10)
        self._keep_last_lines()
        self.engine.run("rm", "--force", self.name)

    # What a running container reports

    def state(self) -> dict[str, Any]:
        """Returns the state that the engine reports: "Running", "ExitCode", "OOMKilled" and more."""
        state: dict[str, Any] = json.loads(
            self.engine.run("inspect", "--format", "{{json .State}}", self.name)
        )
        return state

    def health(self) -> Health:
        """Runs the image's own health check now, which passes if a worker is READY."""
        try:
            return Health(True, self.exec("python", "/srv/serve/health.py"))
        except EngineError as error:
            return Health(False, error.output)

    def exec(self, *command: str) -> str:
        """Runs a command in the container, and returns its output; raises EngineError if it fails."""
        return self.engine.run("exec", self.name, *command)

    def logs(self, n: int = 20) -> str:
        """Returns the same as `log_tail`; the name is that of the engine's command."""
        return self.log_tail(n)

    def _log_from_now(self) -> Read:
        since = datetime.now(UTC).isoformat()
        return lambda: self._read_log(10_000, "--since", since)

    def _recent_log(self, n: int) -> str:
        return self._read_log(n, *(["--since", self._restarted] if self._restarted else []))

    def _read_log(self, n: int, *window: str) -> str:
        try:  # docker keeps stdout and stderr apart
            return self.engine.run("logs", "--tail", str(n), *window, self.name, with_stderr=True)
        except EngineError:
            return ""

    def token(self, kind: TokenType) -> str:
        """Returns the access token of an address: "inference" (metrics too) or "management"."""
        try:
            return self._tokens[kind]
        except KeyError:
            raise TutorialError("This container asks for no tokens, or has not been started.") from None

    def _address(self, name: str) -> str:
        try:
            return self._addresses[name]
        except KeyError:
            raise TutorialError("This container has not been started: it has no addresses yet.") from None

    def __str__(self) -> str:
        return f"Container {self.name}"
