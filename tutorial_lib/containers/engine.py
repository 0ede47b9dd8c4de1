"""Finds podman or docker, and runs their commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tutorial_lib.errors import EngineError, EngineNotFound

ANSWER_TIMEOUT = 60.0  # seconds for commands that should answer at once
_SYSTEM_PROGRAMS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class Engine:
    """A program that builds and runs containers: a `Podman` or a `Docker`.

    Attributes:
        program: its path.
        name: "podman" or "docker"; `Engine(program, name)` returns an object of that engine's class.

    >>> Engine("/usr/bin/podman", "podman")
    Podman(program='/usr/bin/podman', name='podman')
    """

    program: str
    name: str

    build_options: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, program: str = "", name: str = "") -> Engine:
        if cls is not Engine:
            return super().__new__(cls)
        if name not in _ENGINES:
            raise ValueError(f"There is no engine {name!r}. The engines are {', '.join(_ENGINES)}.")
        return super().__new__(_ENGINES[name])

    def run(
        self,
        *arguments: str,
        timeout: float | None = ANSWER_TIMEOUT,
        cwd: Path | None = None,
        with_stderr: bool = False,
    ) -> str:
        """Runs one command, in the folder `cwd`, and returns its output.

        Raises:
            EngineError: the command failed, or took longer than `timeout` seconds.
        """
        stderr = subprocess.STDOUT if with_stderr else subprocess.PIPE
        with self._open(arguments, stderr=stderr, cwd=cwd) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise EngineError(f"{self.name} {arguments[0]}", f"no answer within {timeout:g} s") from error
            except BaseException:  # a Ctrl-C
                process.kill()
                raise
        self._check(process, arguments, output + (errors or ""))
        return output.strip()

    def stream(self, *arguments: str) -> str:
        """Does as `run`, with no limit of time, and prints the lines as they come."""
        lines: list[str] = []
        with self._open(arguments, stderr=subprocess.STDOUT) as process:
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    print(line, end="", flush=True)
            except BaseException:  # a Ctrl-C ends the build too
                process.terminate()
                raise
        self._check(process, arguments, "".join(lines))
        return "".join(lines)

    def _open(self, arguments: tuple[str, ...], **options: Any) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(
                [self.program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                errors="replace",
                env=self.variables(),
                **options,
            )
        except OSError as error:
            raise EngineError(f"{self.name} {arguments[0]}", str(error)) from error

    def _check(self, process: subprocess.Popen[str], arguments: tuple[str, ...], output: str) -> None:
        if process.returncode:
            output = _last_lines(output)
            if "no space left on device" in output.lower():  # which any command can meet
                prune = f"{self.name} system prune"
                output += f"\nThe disk is full: `{prune}` removes what no image needs any more."
            raise EngineError(f"{self.name} {arguments[0]}", output)

    def variables(self) -> dict[str, str]:
        """Returns variables for the engine: PATH leads to iptables too, unlike that of Debian's `su`."""
        found = [os.environ.get("PATH", os.defpath), *filter(os.path.isdir, _SYSTEM_PROGRAMS)]
        return {**os.environ, "PATH": os.pathsep.join(found)}

    def has_image(self, name: str) -> bool:
        """Returns whether an image of that name is on this machine."""
        try:
            self.run("image", "inspect", name)
        except EngineError:
            return False
        return True

    def transfer_options(self, tls_verify: bool) -> list[str]:
        """Returns options of push and pull: whether to check the registry's certificate."""
        return []

    def advice(self, output: str) -> str:
        """Returns what to do about an engine that is installed and does not work."""
        return ""


@dataclass(frozen=True)
class Podman(Engine):
    """podman, which needs no daemon."""

    name: str = "podman"

    build_options = ("--format=docker", "--network=host")  # podman's own format has no HEALTHCHECK

    def transfer_options(self, tls_verify: bool) -> list[str]:
        return [f"--tls-verify={str(tls_verify).lower()}"]


@dataclass(frozen=True)
class Docker(Engine):
    """docker, which accepts plain HTTP of a registry on loopback by itself."""

    name: str = "docker"

    def advice(self, output: str) -> str:
        if "permission denied" in output.lower():
            return (
                "Your user may not use it: join the group docker and log in again, "
                "or install podman, which needs no daemon."
            )
        if "cannot connect to the docker daemon" in output.lower() or "daemon running" in output:
            return "Start its daemon (sudo systemctl start docker), or install podman, which needs none."
        return ""


_ENGINES: dict[str, type[Engine]] = {"podman": Podman, "docker": Docker}


def find_engine() -> Engine:
    """Returns the first of podman and docker that works.

    If CONTAINER_ENGINE (a name or a path) is set, only that program is tried.

    Raises:
        EngineNotFound: no engine is installed, or none works.
    """
    wanted = os.environ.get("CONTAINER_ENGINE")
    tried = []
    for name in [wanted] if wanted else list(_ENGINES):
        program = shutil.which(name)
        if program is None:
            continue
        known = [engine for engine in _ENGINES if engine in Path(name).name]  # podman-remote, docker.exe
        if not known:
            tried.append(f"CONTAINER_ENGINE is {name!r}, neither podman nor docker. Unset it, or fix it.")
            continue
        engine = Engine(program, known[0])
        try:
            engine.run("ps", "--quiet")  # asks the daemon, unlike `version`; fails in one line, unlike `info`
            return engine
        except EngineError as error:
            last = error.output.splitlines()[-1].rstrip(".")
            end = "" if last.endswith("?") else "."
            tried.append(f"{name} is there, but says: {last}{end} {engine.advice(error.output)}".strip())
    raise EngineNotFound(tried, wanted)


def _last_lines(output: str) -> str:
    """Returns an engine's output without the log lines that podman adds if no systemd runs.

    >>> _last_lines('time="2026-01-01" level=error msg="unable to get systemd connection"\\nError: no space')
    'Error: no space'
    """
    lines = [line for line in output.strip().splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith('time="')]
    return "\n".join((own or lines)[-20:]) or "(it printed nothing)"
