"""Runs TorchServe as a context manager: own folder, free ports, really ready, nothing left behind."""

from __future__ import annotations

import atexit
import contextlib
import html
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tutorial_lib.archive import read_manifest
from tutorial_lib.client import (
    InferenceClient,
    KeyFile,
    ManagementClient,
    MetricsClient,
    ModelDescription,
    TokenType,
)
from tutorial_lib.errors import (
    ApiError,
    ArchiveError,
    PortInUse,
    ServerExited,
    StartTimeout,
    TutorialError,
    WorkerFailed,
)
from tutorial_lib.java import find_java
from tutorial_lib.logs import first_traceback

PORT_NAMES = ("inference", "management", "metrics", "grpc_inference", "grpc_management", "worker")
_LOOPBACK = "127.0.0.1"
_POLL = 0.1  # seconds between two looks at a starting server
_GRACE = 10.0  # seconds that a stopping server has before it is killed


class TorchServe:
    """A TorchServe of its own, ready inside `with` and gone after it.

    It runs in a new temporary folder (config, tokens, sockets, unpacked models, logs), listens on
    loopback only, and asks for tokens. "Ready" means that each model has a READY worker. After a
    crash of the owner, the next `TorchServe` to start ends what was left.

    Args:
        models: name to serve as → archive. All archives lie in one folder, the model store.
        model_store: the folder that archives can be registered from; None for that of `models`.
        token_auth: ask for tokens (TorchServe's default).
        model_api: allow registering and unregistering over HTTP (TorchServe's default is no).
        ports: port numbers by name (`PORT_NAMES`); those not given, and None, are free ones.
        config: more keys for config.properties; they win over the ones set here.
        startup_timeout: the one deadline for a whole start, in seconds.
        log_dir: where to keep the logs; None for the server's folder, which goes when it stops.

    Raises:
        ArchiveError: an archive is missing or broken, or the archives lie in several folders.
        PortInUse, JavaNotFound, ServerExited, StartTimeout, WorkerFailed: from starting it.

    >>> TorchServe(models={"my_model": "model_store/missing.mar"})
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: There is no archive model_store/missing.mar. Build it...
    """

    def __init__(
        self,
        models: Mapping[str, str | Path] | None = None,
        *,
        model_store: str | Path | None = None,
        token_auth: bool = True,
        model_api: bool = False,
        ports: Mapping[str, int] | None = None,
        config: Mapping[str, object] | None = None,
        startup_timeout: float = 120,
        log_dir: str | Path | None = None,
    ) -> None:
        self._models = {name: Path(archive) for name, archive in (models or {}).items()}
        self._model_store = _find_store(self._models, model_store)
        self._token_auth, self._model_api = token_auth, model_api
        self._wanted_ports = _checked_ports(ports or {})
        self._config = dict(config or {})
        self._startup_timeout = startup_timeout
        self._log_dir = Path(log_dir).absolute() if log_dir else None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._owner = os.getpid()
        self._ports: dict[str, int] = {}
        self._last_lines = ""

    # Starting and stopping

    def start(self) -> Self:
        """Starts the server and waits until every model has a READY worker."""
        if self._process is not None:
            raise TutorialError(
                f"This server is running already, at {self.inference_address}. Use it, or stop() it first."
            )
        deadline = time.monotonic() + self._startup_timeout
        java = find_java()
        sweep()
        while True:
            try:
                self._start_once(java.home, deadline)
            except BaseException as error:  # a Ctrl-C too: nothing may be left behind
                self.stop()
                if isinstance(error, ServerExited) and self._lost_a_port_race(error):
                    continue
                raise
            atexit.register(self.stop)
            return self

    def stop(self) -> None:
        """Ends the launcher, the JVM and every worker, and removes the server's folder."""
        if self._folder is None or os.getpid() != self._owner:
            return
        atexit.unregister(self.stop)
        self._last_lines = self.log_tail(200)
        _end_processes(self._folder, _GRACE)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_once(self, java_home: Path, deadline: float) -> None:
        self._owner = os.getpid()
        self._folder = _new_folder()
        self._ports = _choose_ports(self._wanted_ports)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        (self._folder / "config.properties").write_text(self._properties(), encoding="utf-8")
        with (self.log_dir / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._folder,
                env=self._environment(java_home),
                stdin=subprocess.DEVNULL,
                stdout=console,  # a file, since a pipe that nobody reads fills up and blocks the server
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is for us to handle
            )
        self._clients()
        self._wait_until_ready(deadline)

    def _lost_a_port_race(self, error: ServerExited) -> bool:
        """Between choosing a free port and using it, another program may take it: then choose again."""
        taken = "Address already in use" in error.log_tail or "BindException" in error.log_tail
        return taken and set(self._wanted_ports) != set(PORT_NAMES)

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--model-store", str(self._model_store or self._folder)]
        command += ["--ts-config", "config.properties"]
        command += [] if self._token_auth else ["--disable-token-auth"]
        command += ["--enable-model-api"] if self._model_api else []
        if self._models:
            command += ["--models", *(f"{name}={path.name}" for name, path in self._models.items())]
        return command

    def _environment(self, java_home: Path) -> dict[str, str]:
        """JAVA_HOME for the launcher; the folder as the temp folder of launcher and JVM.

        TorchServe keeps its pid file, its sockets and unpacked models in the temp folder, so two
        servers with one temp folder would meet there. It is also how `sweep` knows its processes.
        """
        folder, logs = str(self._folder), str(self.log_dir)
        inherited = {name: value for name, value in os.environ.items() if name != "TS_CONFIG_FILE"}
        return {
            **inherited,
            "JAVA_HOME": str(java_home),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), logs),
        }

    def _properties(self) -> str:
        ports = self._ports
        settings: dict[str, object] = {
            **{f"{name}_address": self._address(name) for name in PORT_NAMES[:3]},
            "grpc_inference_address": _LOOPBACK,
            "grpc_management_address": _LOOPBACK,
            "grpc_inference_port": ports["grpc_inference"],
            "grpc_management_port": ports["grpc_management"],
            "initial_worker_port": ports["worker"],
            "metrics_mode": "prometheus",  # else the metrics address has nothing to say
            "default_workers_per_model": 1,  # else one copy of the model for each core
            **self._config,
        }
        lines = (
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in settings.items()
        )
        return "\n".join(lines) + "\n"

    def _wait_until_ready(self, deadline: float) -> None:
        """One deadline across all waits: the process, the management address, each model."""
        assert self._process is not None
        waiting_for = "the server does not answer yet"
        while True:
            if self._process.poll() is not None:
                raise ServerExited(self._process.returncode, self.log_tail(20), _hint(self.log_tail(200)))
            try:
                self.inference.ping()
                waiting_for = self._first_model_not_ready()
                if not waiting_for:
                    return
            except ApiError:
                pass
            self._raise_if_a_worker_failed()
            if time.monotonic() > deadline:
                raise StartTimeout(self._startup_timeout, waiting_for, self.log_tail(20))
            time.sleep(_POLL)

    def _first_model_not_ready(self) -> str:
        for name in self._models:
            try:
                workers = self.management.describe(name)["workers"]
            except ApiError as error:
                return f"the model {name} can't be described ({error.kind})"
            if not any(worker["status"] == "READY" for worker in workers):
                return f"the model {name} has no READY worker"
        return ""

    def _raise_if_a_worker_failed(self) -> None:
        """TorchServe starts a failing worker again and again for 5 minutes; its first failure says it all."""
        log = self.log_tail(10_000)
        refused = next((line for line in log.splitlines() if "Failed to load model" in line), None)
        if refused:
            raise ArchiveError(f"TorchServe refused an archive: {refused.partition(' - ')[2]}.")
        if "backend worker process died" not in log.lower():
            return
        time.sleep(2 * _POLL)  # the last lines of the worker are on their way into the log
        traceback = first_traceback(self.log_tail(10_000))
        raise WorkerFailed(traceback or f"(it left none)\n{self.log_tail(20)}", _hint(log))

    # What a running server has to say

    def _clients(self) -> None:
        assert self._folder is not None
        key_file = KeyFile(self._folder / "key_file.json", self.management_address)
        token = key_file if self._token_auth else None
        self._key_file = key_file
        self.inference = InferenceClient(self.inference_address, token=token)
        self.management = ManagementClient(self.management_address, token=token)
        self.metrics = MetricsClient(self.metrics_address, token=token)

    @property
    def inference_address(self) -> str:
        """Where predictions are asked for, as "http://127.0.0.1:8080"."""
        return self._address("inference")

    @property
    def management_address(self) -> str:
        """Where models are registered, described and scaled."""
        return self._address("management")

    @property
    def metrics_address(self) -> str:
        """Where Prometheus reads metrics."""
        return self._address("metrics")

    @property
    def ports(self) -> dict[str, int]:
        """The port numbers in use, by name."""
        return dict(self._ports)

    @property
    def pid(self) -> int:
        """The launcher's process id; the JVM is its child, the workers are the JVM's."""
        if self._process is None:
            raise TutorialError("This server is not running: it has no process.")
        return self._process.pid

    @property
    def log_dir(self) -> Path:
        """The folder with console.log, ts_log.log, model_log.log, access_log.log and the metrics' two."""
        if self._log_dir is not None:
            return self._log_dir
        if self._folder is None:
            raise TutorialError("This server's logs went with it; start it with log_dir= to keep them.")
        return self._folder / "logs"

    @property
    def command(self) -> str:
        """The command that runs it, as one would type it."""
        return shlex.join(["torchserve", *self._command()[3:]])

    def token(self, kind: TokenType) -> str:
        """The current token: "inference" (metrics too) or "management"."""
        if self._process is None:
            raise TutorialError("This server is not running: it has no tokens.")
        return self._key_file.token(kind)

    def log_tail(self, n: int = 20) -> str:
        """The last n lines that the server printed; after it stopped, out of its last 200."""
        try:
            text = (self.log_dir / "console.log").read_text(encoding="utf-8", errors="replace")
        except (TutorialError, FileNotFoundError):
            text = self._last_lines
        return "\n".join(text.splitlines()[-n:])

    def _address(self, name: str) -> str:
        if not self._ports:
            raise TutorialError("This server has not been started: it has no addresses yet.")
        return f"http://{_LOOPBACK}:{self._ports[name]}"

    def _descriptions(self) -> Iterator[ModelDescription]:
        with contextlib.suppress(ApiError):
            for entry in self.management.list_models():
                yield from self.management.describe_all(entry["modelName"])

    def _rows(self) -> list[tuple[str, str]]:
        if self._process is None:
            return [("TorchServe", "not running")]
        rows = [(f"{name} address", self._address(name)) for name in PORT_NAMES[:3]]
        for model in self._descriptions():
            ready = sum(worker["status"] == "READY" for worker in model["workers"])
            rows.append(
                (
                    f"{model['modelName']} {model['modelVersion']}",
                    f"{ready} of {model['minWorkers']} workers READY",
                )
            )
        return rows

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table>{cells}</table>"


def sweep() -> None:
    """Ends the servers whose owners are dead (a killed kernel), and removes their folders.

    The owner's process id and start time are in the folder's name, so a living owner's server is
    never touched, nor one that this class did not start.
    """
    for folder in Path(tempfile.gettempdir()).glob("ts-*-*-*"):
        if folder.is_dir() and not _owner_lives(folder.name):
            _end_processes(folder, grace=0)
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    owner = psutil.Process()
    # Short, since Unix sockets live in it, and their paths end at about 100 characters.
    prefix = f"ts-{owner.pid}-{int(owner.create_time())}-"
    return Path(tempfile.mkdtemp(prefix=prefix)).resolve()


def _owner_lives(name: str) -> bool:
    try:
        pid, started = (int(part) for part in name.split("-")[1:3])
        return abs(psutil.Process(pid).create_time() - started) < 2
    except ValueError:
        return True  # not a name of ours: hands off
    except psutil.NoSuchProcess:
        return False


def _processes_in(folder: Path) -> list[psutil.Process]:
    """The processes that have this folder as their temp folder: launcher, JVM, workers."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("TEMP") == str(folder) and process.pid != os.getpid():
                found.append(process)
    return found


def _end_processes(folder: Path, grace: float) -> None:
    """SIGTERM to the JVM, which ends its workers and lets the launcher go; then SIGKILL to the rest."""
    running = _processes_in(folder)
    if grace:
        for process in running:
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("java"):
                    process.terminate()
        psutil.wait_procs(running, timeout=grace if _has_java(running) else 0)
    while running := _processes_in(folder):
        for process in running:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(running, timeout=1)


def _has_java(processes: list[psutil.Process]) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("java"):
                return True
    return False


def _find_store(models: Mapping[str, Path], model_store: str | Path | None) -> Path | None:
    """The folder that all archives are in; TorchServe loads local ones from there alone."""
    for archive in models.values():
        read_manifest(archive)
    folders = {archive.absolute().parent for archive in models.values()}
    if model_store is not None:
        store = Path(model_store).absolute()
        if not store.is_dir():
            raise ArchiveError(f"There is no model store {model_store}. Make the folder first.")
        folders.add(store)
    if len(folders) > 1:
        raise ArchiveError(
            f"TorchServe loads archives from one folder, and these lie in {len(folders)}: "
            f"{', '.join(sorted(str(folder) for folder in folders))}. Build them into one model store."
        )
    return folders.pop() if folders else None


def _checked_ports(ports: Mapping[str, int]) -> dict[str, int]:
    for name, port in ports.items():
        if name not in PORT_NAMES:
            raise ValueError(f"There is no port {name!r}; the names are {', '.join(PORT_NAMES)}.")
        if not 0 < port < 65536:
            raise ValueError(f"The {name} port {port} is not between 1 and 65535.")
    return dict(ports)


def _choose_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """The wanted ports, if they are free, and a free one for each other name."""
    with contextlib.ExitStack() as held:  # all held at once, so that no two are the same

        def hold(name: str, port: int) -> int:
            listener = held.enter_context(socket.socket())
            try:
                if os.name != "nt":  # a port in TIME_WAIT is free for TorchServe too
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((_LOOPBACK, port))
                listener.listen()
            except OSError as error:
                raise PortInUse(name, port) from error
            chosen: int = listener.getsockname()[1]
            return chosen

        given = {name: hold(name, port) for name, port in wanted.items()}
        return {name: given.get(name) or hold(name, 0) for name in PORT_NAMES}


def _hint(log: str) -> str:
    """What some well-known lines of a log mean."""
    known = {
        "Address already in use": "One of its ports is taken.",
        "UnsupportedClassVersionError": "Its Java is too old: 11 or newer is needed.",
        "java not found": "It found no Java: check JAVA_HOME.",
        "No such file or directory: 'java'": "It found no Java: check JAVA_HOME.",
        "ModuleNotFoundError": "A Python package is missing in the environment that runs TorchServe.",
        "Permission denied": "It may not write or read one of its files.",
    }
    return next((hint for line, hint in known.items() if line in log), "")
