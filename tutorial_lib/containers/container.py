"""Builds an image that serves a model, and runs the image, with podman or docker, whichever works."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tutorial_lib.archives.building import check_files, copy_checked, read_manifest
from tutorial_lib.clients.tokens import TokenType
from tutorial_lib.containers.packages import check_packages, refuse_passwords, requirements
from tutorial_lib.course_files import course_file
from tutorial_lib.errors import (
    ContainerExited,
    EngineError,
    EngineNotFound,
    ImageError,
    OutOfMemory,
    PortInUse,
    TutorialError,
)
from tutorial_lib.processes import orphans, reap_orphans, remove_folder, set_engine
from tutorial_lib.servers.base import ADDRESSES, ModelServer
from tutorial_lib.servers.failures import Read

BASE_IMAGE = "docker.io/library/debian:bookworm-slim"
LOCAL_BASE_IMAGE = "localhost/debian:bookworm-slim"  # deploy/image/base-image.sh makes it, with no registry

_PORTS = dict(zip(ADDRESSES, (8080, 8081, 8082), strict=True))  # inside the container
_LOOPBACK = "127.0.0.1"
_OWNER = "torchserve-course.owner"  # label: the folder of the container's start
_ASK_TIMEOUT = 60.0  # seconds for commands that should answer at once
_SYSTEM_PROGRAMS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_STAGED_ARCHIVE = "model_store/model.mar"  # in the build context
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """A program that builds and runs containers: podman or docker.

    Attributes:
        program: its path.
        name: "podman" or "docker".

    >>> Engine("no/such/podman", "podman").run("ps")
    Traceback (most recent call last):
    tutorial_lib.errors.EngineError: `podman ps` failed: [Errno 2] No such file or directory: 'no/such/podman'
    """

    program: str
    name: str

    def run(self, *arguments: str, timeout: float | None = _ASK_TIMEOUT, cwd: Path | None = None) -> str:
        """Runs one command, in the folder `cwd`, and returns its output.

        Raises:
            EngineError: the command failed, or took longer than `timeout` seconds. The message has its
                output.
        """
        try:
            done = subprocess.run(
                [self.program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                cwd=cwd,
                env=self.variables(),
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{self.name} {arguments[0]}", f"no answer within {timeout:g} s") from error
        except OSError as error:
            raise EngineError(f"{self.name} {arguments[0]}", str(error)) from error
        if done.returncode:
            raise self._error(arguments[0], done.stdout + done.stderr)
        return done.stdout.strip()

    def stream(self, *arguments: str) -> str:
        """Runs one command, prints its lines as they come, and returns them.

        Raises:
            EngineError: the command failed. Its lines are printed already, so the error has only the last.
        """
        lines: list[str] = []
        with subprocess.Popen(
            [self.program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self.variables(),
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    lines.append(line)
                    print(line, end="", flush=True)
            except BaseException:  # a Ctrl-C ends the build too
                process.terminate()
                raise
        if process.returncode:
            raise self._error(arguments[0], "".join(lines[-20:]))
        return "".join(lines)

    def variables(self) -> dict[str, str]:
        """Returns variables for the engine's processes: PATH leads to iptables, unlike that of Debian's `su`.

        >>> "PATH" in Engine("/usr/bin/podman", "podman").variables()
        True
        """
        found = [os.environ.get("PATH", os.defpath), *filter(os.path.isdir, _SYSTEM_PROGRAMS)]
        return {**os.environ, "PATH": os.pathsep.join(found)}

    def _error(self, verb: str, output: str) -> EngineError:
        """Returns the error of a failed command, with advice on a full disk, which any command can meet."""
        output = _last_lines(output)
        if "no space left on device" in output.lower():
            output += f"\nThe disk is full: `{self.name} system prune` removes what no image needs any more."
        return EngineError(f"{self.name} {verb}", output)

    def has_image(self, name: str) -> bool:
        """Returns whether an image of that name is on this machine."""
        try:
            self.run("image", "inspect", name)
        except EngineError:
            return False
        return True


def find_engine() -> Engine:
    """Returns the first of podman and docker that works.

    If CONTAINER_ENGINE (a name or a path) is set, only that program is tried.

    Raises:
        EngineNotFound: no engine is installed, or none works. The message says which were tried, what they
            printed, and what to do.

    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {"CONTAINER_ENGINE": "no_such_engine"}):
    ...     find_engine()
    Traceback (most recent call last):
    tutorial_lib.errors.EngineNotFound: CONTAINER_ENGINE is 'no_such_engine', and no such program is on...
    """
    wanted = os.environ.get("CONTAINER_ENGINE")
    tried = []
    for name in [wanted] if wanted else ["podman", "docker"]:
        program = shutil.which(name)
        if program is None:
            continue
        engine = Engine(program, "docker" if "docker" in Path(name).name else "podman")
        try:
            engine.run("ps", "--quiet")  # asks the daemon, unlike `version`; fails in one line, unlike `info`
            return engine
        except EngineError as error:
            last = error.output.splitlines()[-1].rstrip(".")
            end = "" if last.endswith("?") else "."
            tried.append(
                f"{name} is there, but says: {last}{end} {_engine_hint(engine.name, error.output)}".strip()
            )
    raise EngineNotFound(tried, wanted)


class Layer(NamedTuple):
    """A layer of an image: how many MB (10⁶ bytes) it adds, and the instruction that made it."""

    megabytes: float
    instruction: str


@dataclass(frozen=True)
class Image:
    """An image on this machine.

    Attributes:
        name: as "localhost/my_model:1.0".
        engine: the engine that built the image and runs it; by default `find_engine()`'s.

    >>> Image("localhost/my_model:1.0", Engine("/usr/bin/podman", "podman")).name
    'localhost/my_model:1.0'
    """

    name: str
    engine: Engine = field(default_factory=find_engine)

    @classmethod
    def build(
        cls,
        name: str,
        archive: str | Path = "model_store/BERTweetSentimentAnalysis.mar",
        *,
        model: str = "my_model",
        base: str | None = None,
        build_args: Mapping[str, str] | None = None,
        packages: Sequence[str] = (),
        engine: Engine | None = None,
        sha256: str | None = None,
    ) -> Image:
        """Builds an archive's image from the course's deploy/image/Dockerfile, and prints the build's lines.

        This machine's pip settings (index, certificates, a folder of wheels) go into the build as secrets:
        the build can use them, and they are not in the image.

        The image has what the course's handler imports, the packages of the archive's own requirements file,
        onnxruntime if the archive has a model in ONNX's format, and `packages`. constraints.txt decides the
        versions of the packages that it lists.

        Args:
            name: the image's name and tag.
            archive: the .mar to serve; it may lie anywhere.
            model: the name to serve it as.
            base: the base image; None for the one that deploy/image/base-image.sh made, or else Debian's.
            build_args: more of the Dockerfile's arguments, such as TORCH_INDEX.
            packages: what the handler imports too, as pip names it: ["scikit-learn", "pillow>=11"].
            engine: the engine that builds it; None for `find_engine()`'s.
            sha256: the `archive_sha256` that the archive must have; the image gets the copy that was checked.

        Returns:
            the image, on this machine.

        Raises:
            ArchiveError: there is no such archive, or it is broken.
            EngineNotFound: no engine is installed, or none works.
            ImageError: the archive is not a .mar, the base image can't be fetched, the disk is full, or a
                step failed.
            TypeError, ValueError: packages is no list, or has something other than packages.
        """
        wanted = check_packages(packages)
        read_manifest(archive, sha256=sha256)
        check_files(archive)
        if not Path(archive).is_file() or not str(archive).endswith(".mar"):
            raise ImageError(
                f"An image holds a .mar, and {archive} is none. Build the archive with "
                'archive_format="default" or "zip-store".'
            )
        engine = engine or find_engine()
        if base is None:
            base = LOCAL_BASE_IMAGE if engine.has_image(LOCAL_BASE_IMAGE) else BASE_IMAGE
        arguments = {
            "BASE_IMAGE": base,
            "MODEL_NAME": model,
            "MODEL_ARCHIVE": _STAGED_ARCHIVE,
            **(build_args or {}),
        }
        refuse_passwords(arguments)
        command = ["build", "--tag", name]
        if engine.name == "podman":
            command += ["--format=docker", "--network=host"]  # podman's own format has no HEALTHCHECK
        _logger.info("building the image %s around %s", name, archive)
        with _pip_options(arguments) as options, _build_context(Path(archive), wanted, sha256) as context:
            command += options
            command += [f"--build-arg={key}={value}" for key, value in arguments.items()]
            command += ["--file", str(context / "deploy" / "image" / "Dockerfile"), str(context)]
            try:
                engine.stream(*command)
            except EngineError as error:
                raise ImageError(
                    f"The image was not built. {_build_hint(error.output, base)}\n{error.output}"
                ) from error
        return cls(name, engine)

    def layers(self) -> list[Layer]:
        """Returns the layers that add bytes, from the base up."""
        listed = self.engine.run("history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", self.name)
        rows = [line.partition("\t") for line in listed.splitlines()]
        layers = [Layer(_megabytes(size), _instruction(made_by)) for size, _, made_by in rows]
        return [layer for layer in reversed(layers) if layer.megabytes > 0]

    @property
    def megabytes(self) -> float:
        """The image's size on disk in MB (10⁶ bytes)."""
        return int(self.engine.run("image", "inspect", "--format", "{{.Size}}", self.name)) / 1e6

    def push(self, target: str, *, tls_verify: bool = True) -> Image:
        """Tags the image with another name, "registry/name:tag", and pushes it to that registry."""
        self.engine.run("tag", self.name, target)
        self._transfer("push", target, tls_verify)
        return Image(target, self.engine)

    def pull(self, *, tls_verify: bool = True) -> Image:
        """Fetches the image of this name from its registry."""
        self._transfer("pull", self.name, tls_verify)
        return self

    def remove(self) -> None:
        """Removes the name, and the image too if this was its last name."""
        self.engine.run("rmi", self.name)

    def _transfer(self, verb: str, target: str, tls_verify: bool) -> None:
        # docker has no such flag: it accepts plain HTTP on loopback by itself
        flag = [f"--tls-verify={str(tls_verify).lower()}"] if self.engine.name == "podman" else []
        try:
            self.engine.run(verb, *flag, target, timeout=None)
        except EngineError as error:
            raise ImageError(
                f"The {verb} of {target} failed. {_transfer_hint(self.engine.name, error.output)}\n"
                f"{error.output}"
            ) from error


class Health(NamedTuple):
    """Whether a container has a READY worker, and the line that the image's health check printed.

    >>> Health(True, "1 of 1 workers of my_model are READY.").ok
    True
    """

    ok: bool
    message: str


class Container(ModelServer):
    """A running container of an image, ready inside a `with` block and removed after it.

    If the owner process is killed, the container serves on until this user's next `Container` with the same
    engine and the same TMPDIR starts, which removes it.

    The container's ports are published on loopback only, its root file system is read-only, and a prediction
    needs an access token, which is generated here and mounted into the container. "Ready" means that the
    model has a READY worker.

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
        unknown = sorted(set(ports or {}) - set(_PORTS))
        if unknown:
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

    def stop(self, grace: float = 30) -> float:
        """Stops the container: requests in flight can finish; after `grace` seconds it is killed.

        Returns:
            the seconds that stopping took.
        """
        started = time.monotonic()
        self.engine.run("stop", "--time", str(int(grace)), self.name, timeout=grace + _ASK_TIMEOUT)
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

    def command(self, keys: str = "keys") -> list[str]:
        """Returns the engine's command that runs the container; `keys` is the folder of the access tokens."""
        publish = [
            f"--publish={_LOOPBACK}:{self._wanted_ports.get(name, '')}:{port}"
            for name, port in _PORTS.items()
        ]
        return [
            self.engine.name,
            *("run", "--detach", "--name", self.name, *publish),
            *(
                "--read-only",
                "--tmpfs=/tmp:rw,mode=1777",
                "--cap-drop=all",
                "--security-opt=no-new-privileges",
            ),
            *([f"--volume={keys}:/run/keys:ro,Z"] if self.token_auth else ["--env=TOKEN_AUTH=off"]),
            *([f"--memory={self._memory}"] if self._memory else []),
            *self._options,
            self.image.name,
        ]

    def _reap_containers(self) -> None:
        """Removes the containers of this engine whose owners are dead (a killed kernel), and their folders.

        A container's label names the folder of its start, so no other container is removed.
        """
        for folder in orphans(self.engine.name):
            with contextlib.suppress(EngineError):  # then the folder stays, for another try at the next start
                listed = self.engine.run("ps", "--all", "--quiet", "--filter", f"label={_OWNER}={folder}")
                for container in listed.split():
                    self.engine.run("rm", "--force", container)
                remove_folder(folder)

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

    def _connect(self) -> None:
        """Reads the ports that the engine chose, and makes clients for them."""
        published = {name: self.engine.run("port", self.name, str(port)) for name, port in _PORTS.items()}
        self._addresses = {name: f"http://{line.splitlines()[0]}" for name, line in published.items()}
        self._connect_clients(self._tokens.get("inference"), self._tokens.get("management"))

    def _raise_if_ended(self) -> None:
        state = self.state()
        if not state["Running"]:
            raise self._why_it_ended(state)

    def _waiting_for(self) -> str:
        health = self.health()
        if "memory limit was hit" in health.message and not health.ok:
            raise OutOfMemory(self._memory, health.message)
        if not health.ok:
            return health.message.rstrip(".")
        self._connect()
        return ""

    def _why_it_ended(self, state: Mapping[str, Any]) -> TutorialError:
        """Returns the error; OutOfMemory if a worker or the server was killed because memory ran out."""
        log = self._recent_log(200)
        killed = re.search(r"The memory limit was hit: .*", log)
        if killed or state.get("OOMKilled"):
            return OutOfMemory(self._memory, killed[0] if killed else "The kernel killed it.")
        last_lines = "\n".join(log.splitlines()[-20:])
        return ContainerExited(state["ExitCode"], last_lines, _exit_hint(state))

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
        """Runs a command in the container, and returns its output.

        Raises:
            EngineError: the command failed.
        """
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
        try:
            done = subprocess.run(
                [self.engine.program, "logs", "--tail", str(n), *window, self.name],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # docker keeps stdout and stderr apart
                env=self.engine.variables(),
                text=True,
                errors="replace",
                timeout=_ASK_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return "" if done.returncode else done.stdout.strip()

    def token(self, kind: TokenType) -> str:
        """Returns the access token of an address: "inference" (metrics too) or "management"."""
        try:
            return self._tokens[kind]
        except KeyError:
            raise TutorialError("This container asks for no tokens, or has not been started.") from None

    def __str__(self) -> str:
        return f"Container {self.name}"

    def _address(self, name: str) -> str:
        if name not in self._addresses:
            raise TutorialError("This container has not been started: it has no addresses yet.")
        return self._addresses[name]


@contextlib.contextmanager
def _build_context(archive: Path, packages: Sequence[str], sha256: str | None) -> Iterator[Path]:
    """Makes a folder with a build's files, laid out like the course's, so that one Dockerfile fits both."""
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        root = Path(folder)
        shutil.copytree(course_file("deploy/image"), root / "deploy" / "image")
        for name in ("constraints.txt", "metrics.yaml"):
            shutil.copy2(course_file(name), root / name)
        staged = root / _STAGED_ARCHIVE
        staged.parent.mkdir()
        if sha256 is None:
            try:
                os.link(archive.resolve(), staged)
            except OSError:  # the archive is on another disk
                shutil.copy2(archive, staged)
        else:
            copy_checked(archive, staged, sha256)
        lines = requirements(staged, packages)  # of the archive that was checked
        refuse_passwords({"packages, or the archive's requirements file,": "\n".join(lines)})
        with (root / "deploy" / "image" / "requirements.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        yield root


@contextlib.contextmanager
def _pip_options(arguments: dict[str, str]) -> Iterator[list[str]]:
    """Gives the build options that pass on this machine's pip settings, certificates and wheels.

    If this machine's pip has its own package sources, torch comes from them too, not from the Dockerfile's
    index.
    """
    settings = _pip_settings()
    options: list[str] = []
    lines = ["[global]"]
    for key, value in settings.items():
        words = value.split()
        if key == "cert":
            options.append(f"--secret=id=ca,src={value}")
            lines.append("cert = /run/ca.crt")
        elif key == "find-links" and Path(words[0]).is_dir():
            options.append(f"--build-context=wheels={words[0]}")
        elif urls := [word for word in words if not word.startswith(("file:", "/"))]:
            lines.append(f"{key} = {' '.join(urls)}")
    if {"index-url", "extra-index-url", "find-links"} & set(settings):
        arguments.setdefault("TORCH_INDEX", "")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pip.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield [f"--secret=id=pipconf,src={config}", *options]


def _pip_settings() -> dict[str, str]:
    """Returns pip's settings for package sources, by `pip config list`; the environment wins over files."""
    known = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "proxy", "default-timeout")
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=_ASK_TIMEOUT
    )
    lines = sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:"))
    found = (re.fullmatch(r"(?:global|install|:env:)\.([a-z-]+)='(.+)'", line) for line in lines)
    return {match[1]: match[2].replace("\\n", " ").strip() for match in found if match and match[1] in known}


def _last_lines(output: str) -> str:
    """Returns what an engine printed, without the log lines that podman adds if no systemd runs.

    >>> _last_lines('time="2026-01-01" level=error msg="unable to get systemd connection"\\nError: no space')
    'Error: no space'
    """
    lines = [line for line in output.strip().splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith('time="')]
    return "\n".join((own or lines)[-20:]) or "(it printed nothing)"


def _megabytes(size: str) -> float:
    """Converts a size, as engines print it, to MB.

    >>> _megabytes("771 MB"), _megabytes("13.3kB"), _megabytes("1.2GB"), _megabytes("0 B")
    (771.0, 0.0133, 1200.0, 0.0)
    """
    number, unit = re.fullmatch(r"([\d.]+)\s*([kMG]?)i?B", size).groups()  # type: ignore[union-attr]
    return round(float(number) * {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}[unit], 6)


def _instruction(made_by: str) -> str:
    """Converts a line of an image's history to the form that it has in the Dockerfile.

    >>> _instruction('|1 A= /bin/sh -c --mount=type=secret,id=x pip install   torch')
    'RUN pip install torch'
    >>> _instruction('/bin/sh -c #(nop) COPY file:1a2b in /opt/model.mar ')
    'COPY file:1a2b in /opt/model.mar'
    """
    text = re.sub(r"^(RUN )?(\|\d+ .*?)?/bin/sh -c ", "RUN ", made_by).removesuffix("# buildkit")
    text = re.sub(r"^RUN #\(nop\)\s*|--mount=\S+ ", "", text)
    return " ".join(text.split())


def _engine_hint(name: str, output: str) -> str:
    """Returns what to do about an engine that is installed and does not work.

    >>> _engine_hint("docker", "permission denied while trying to connect to the Docker daemon socket")
    'Your user may not use it: join the group docker and log in again, or install podman, ...'
    """
    if "permission denied" in output.lower():
        return (
            f"Your user may not use it: join the group {name} and log in again, "
            "or install podman, which needs no daemon."
        )
    if "cannot connect to the docker daemon" in output.lower() or "daemon running" in output:
        return "Start its daemon (sudo systemctl start docker), or install podman, which needs none."
    return ""


def _transfer_hint(name: str, output: str) -> str:
    """Returns what to check if an image could not be pushed to a registry, or pulled from it."""
    if "no space left" in output.lower():
        return ""  # the engine's error says what to do
    return f"Is its registry up, are you logged in there ({name} login), and does the name exist?"


def _build_hint(output: str, base: str) -> str:
    """Returns what some well-known last lines of a build mean."""
    if "no space left on device" in output.lower():
        return ""  # the engine's error says what to do
    if re.search(
        r"initializing source|resolve source metadata|short-name|pull access denied|manifest unknown", output
    ):
        return (
            f"The base image {base} can't be fetched: is its registry within reach? Where there is none, "
            "deploy/image/base-image.sh makes one from Debian's packages, or name one with base=."
        )
    if re.search(r"No matching distribution|Could not find a version", output):
        return "pip found no package: see `pip config list`, whose settings the build uses."
    if re.search(r"conflicting dependencies|ResolutionImpossible", output):
        return (
            "A package of packages= or of the archive's requirements file wants versions that others, or the "
            "course's constraints.txt, exclude."
        )
    if re.search(r"Temporary failure|Could not resolve|Connection (refused|timed out)", output):
        return "The build can't reach the network."
    return "The build's last lines say why."


def _exit_hint(state: Mapping[str, Any]) -> str:
    """Returns why a container ended, if its state shows the reason."""
    if state.get("ExitCode") in (126, 127):
        return "Its start command can't be run: was the image built from deploy/image/Dockerfile?"
    return ""
