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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tutorial_lib.addresses import Addresses
from tutorial_lib.archive import check_sha256, read_manifest
from tutorial_lib.client import (
    KeyFile,
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
from tutorial_lib.logs import cause_of_death
from tutorial_lib.redeploy import redeploy

PORT_NAMES = ("inference", "management", "metrics", "grpc_inference", "grpc_management", "worker")
_LOOPBACK = "127.0.0.1"
_POLL = 0.1  # seconds between two looks at a starting server
_GRACE = 10.0  # seconds that a stopping server has before it is killed


class TorchServe(Addresses):
    """A TorchServe of its own, ready inside `with` and gone after it.

    It runs in a new temporary folder (config, tokens, sockets, unpacked models, logs), listens on
    loopback only, and asks for tokens. "Ready" means that each model has a READY worker. After a
    crash of the owner, the next `TorchServe` to start ends what was left.

    Args:
        models: name to serve as → archive. All archives lie in one folder, the model store.
        model_store: the folder that archives can be registered from; None for that of `models`.
        sha256: name → `archive_sha256`, for each of `models`. The server then has a model store of its
            own, with copies of these archives and nothing else: what was checked is what is served. It
            takes no other code while it runs, so there is no model_api and no `redeploy` then.
        token_auth: ask for tokens (TorchServe's default).
        model_api: allow registering and unregistering over HTTP (TorchServe's default is no).
        ports: port numbers by name (`PORT_NAMES`); those not given, and None, are free ones.
        config: more keys for config.properties; they win over the ones set here. A Path is made absolute.
            With certificate_file and private_key_file all three addresses are https, and the clients
            trust that certificate (gRPC has a switch of its own: enable_grpc_ssl).
        startup_timeout: the one deadline for a whole start, in seconds.
        log_dir: where to keep the logs; None for the server's folder, which goes when it stops.

    Raises:
        ArchiveError: an archive is missing, broken or not the one of `sha256`, the archives lie in
            several folders, or `sha256` comes with what would let other code in.
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
        sha256: Mapping[str, str] | None = None,
        token_auth: bool = True,
        model_api: bool = False,
        ports: Mapping[str, int] | None = None,
        config: Mapping[str, object] | None = None,
        startup_timeout: float = 120,
        log_dir: str | Path | None = None,
    ) -> None:
        self._models = {name: Path(archive) for name, archive in (models or {}).items()}
        self._model_store = _find_store(self._models, model_store)
        self._config = dict(config or {})
        self.token_auth, self._model_api = token_auth, model_api
        takes_code = model_api or _takes_code(self._config)
        self._sha256 = _checked_sha256(sha256, self._models, model_store, takes_code)
        self._wanted_ports = _checked_ports(ports or {})
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
        self._copy_checked_archives()
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

    def _copy_checked_archives(self) -> None:
        """Checks the copies, not the archives: those could be changed between the check and the serving."""
        if self._sha256 is None:
            return
        store = self._store
        store.mkdir()
        for name, archive in self._models.items():
            copy = store / archive.name
            shutil.copytree(archive, copy) if archive.is_dir() else shutil.copyfile(archive, copy)
            try:
                check_sha256(copy, self._sha256[name])
            except ArchiveError as error:
                raise ArchiveError(str(error).replace(str(copy), str(archive))) from None

    @property
    def _store(self) -> Path:
        own = self._folder or Path()
        return own / "store" if self._sha256 is not None else self._model_store or own

    def _lost_a_port_race(self, error: ServerExited) -> bool:
        """Between choosing a free port and using it, another program may take it: then choose again."""
        taken = "Address already in use" in error.log_tail or "BindException" in error.log_tail
        own_choice = any(key.endswith(("_address", "_port")) for key in self._config)
        return taken and not own_choice and set(self._wanted_ports) != set(PORT_NAMES)

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--model-store", str(self._store)]
        command += ["--ts-config", "config.properties"]
        command += [] if self.token_auth else ["--disable-token-auth"]
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
        if "PYTHONPATH" in inherited:
            inherited["PYTHONPATH"] = self._without_other_handlers(inherited["PYTHONPATH"])
        return {
            **inherited,
            "JAVA_HOME": str(java_home),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), logs),
        }

    def _without_other_handlers(self, python_path: str) -> str:
        """Workers import the handler by its name, and look along PYTHONPATH before the archive.

        So a folder there with a handler.py of its own would be served in place of the archive's.
        """
        manifests = (read_manifest(archive) for archive in self._models.values())
        names = {"handler.py", *(Path(manifest["model"]["handler"]).name for manifest in manifests)}
        folders = python_path.split(os.pathsep)
        return os.pathsep.join(
            f for f in folders if f and not any((Path(f) / name).exists() for name in names)
        )

    def _properties(self) -> str:
        ports = self._ports
        settings: dict[str, object] = {
            **{f"{name}_address": self._address(name) for name in PORT_NAMES[:3]},
            "grpc_inference_address": _LOOPBACK,
            "grpc_management_address": _LOOPBACK,
            "grpc_inference_port": ports["grpc_inference"],
            "grpc_management_port": ports["grpc_management"],
            "initial_worker_port": ports["worker"],
            "allowed_urls": "none",  # else a management token is enough to fetch code from anywhere
            "metrics_mode": "prometheus",  # else the metrics address has nothing to say
            "default_workers_per_model": 1,  # else one copy of the model for each core
            **self._config,
        }
        return "".join(f"{key}={_property(value)}\n" for key, value in settings.items())

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
        raise WorkerFailed(cause_of_death(lambda: self.log_tail(10_000)), _hint(log))

    def redeploy(
        self,
        model: str,
        *,
        handler: str | Path | None = None,
        config_file: str | Path | None = None,
        extra_files: Sequence[str | Path] = (),
        timeout: float = 120,
    ) -> str:
        """Puts edited files in place of a running model's, without packing its weights again.

        They become a new version, which is loaded beside the old one (so there is memory for both)
        and made the default. The old one answers until then, finishes what it has begun, and is
        unregistered in the background, some tenths of a second later: no request is lost. A broken
        edit leaves it answering. The archive in the model store stays as it is: `build_archive` when
        the edit is good.

        It takes as long as a worker's start, most of which is Python importing torch and transformers
        (2.4 of 2.5 s were, for a model of BERTweet's size; `make bench` measures the whole).

        Args:
            model: the name it is registered as; its default version is the one replaced.
            handler: the edited Python file.
            config_file: edited per-model settings; without it, settings and workers stay as they are.
            extra_files: more files to replace or add, as index_to_name.json.
            timeout: seconds to wait for the new version, and at most for the old one to finish.

        Returns:
            the new version: after "1.0", "1.1".

        Raises:
            WorkerFailed: the new version can't be loaded; it quotes the traceback.
            ArchiveError: a file is missing.
            ApiError: there is no such model.
            TutorialError: the server was not started with model_api=True (which one with sha256= can't
                be), or the model has no worker.
        """
        if self._folder is None:
            raise TutorialError("This server is not running: there is nothing to replace. Start it first.")
        return redeploy(
            self,
            model,
            handler=handler,
            config_file=config_file,
            extra_files=extra_files,
            folder=self._folder / "versions",
            timeout=timeout,
        )

    # What a running server has to say

    def _clients(self) -> None:
        assert self._folder is not None
        certificate = self._config.get("certificate_file")
        verify = True if certificate is None else _property(certificate)
        key_file = KeyFile(self._folder / "key_file.json", self.management_address, verify)
        token = key_file if self.token_auth else None
        self._keys = key_file
        self._connect_clients(token, token, verify)

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

    @property
    def key_file(self) -> Path:
        """The file with its tokens and its API key, which it writes when it starts."""
        if self._process is None:
            raise TutorialError("This server is not running: it has no key file.")
        return self._keys.path

    def token(self, kind: TokenType) -> str:
        """The current token: "inference" or "management"; the metrics address asks for none."""
        if self._process is None:
            raise TutorialError("This server is not running: it has no tokens.")
        return self._keys.token(kind)

    def log_tail(self, n: int = 20) -> str:
        """The last n lines that the server printed; after it stopped, out of its last 200."""
        try:
            text = (self.log_dir / "console.log").read_text(encoding="utf-8", errors="replace")
        except (TutorialError, FileNotFoundError):
            text = self._last_lines
        return "\n".join(text.splitlines()[-n:])

    def wait_for_log(self, text: str, *, log: str = "model_log.log", timeout: float = 30) -> str:
        """A log, once it holds the text: what a worker said is written a moment after it answered.

        Args:
            text: what to wait for.
            log: which file of `log_dir`.
            timeout: seconds to wait.

        Raises:
            TutorialError: the text did not come in time.
        """
        path, deadline = self.log_dir / log, time.monotonic() + timeout
        while True:
            found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            if text in found:
                return found
            if time.monotonic() > deadline:
                raise TutorialError(
                    f"{log} did not hold {text!r} within {timeout:g} s. Its end:\n{found[-2000:]}"
                )
            time.sleep(_POLL)

    def _address(self, name: str) -> str:
        if not self._ports:
            raise TutorialError("This server has not been started: it has no addresses yet.")
        scheme = "https" if {"certificate_file", "keystore"} & self._config.keys() else "http"
        return f"{scheme}://{_LOOPBACK}:{self._ports[name]}"

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
        if folder.is_dir() and not owner_lives(folder.name):
            _end_processes(folder, grace=0)
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    # Short, since Unix sockets live in it, and their paths end at about 100 characters.
    return Path(tempfile.mkdtemp(prefix=f"{owner_name()}-")).resolve()


def owner_name() -> str:
    """This process, as the beginning of a name that `owner_lives` reads."""
    owner = psutil.Process()
    return f"ts-{owner.pid}-{int(owner.create_time())}"


def owner_lives(name: str) -> bool:
    """Whether the process runs that a name (`ts-<pid>-<start>-…`) tells of; True for names of others."""
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


def _checked_sha256(
    sha256: Mapping[str, str] | None,
    models: Mapping[str, Path],
    model_store: str | Path | None,
    takes_code: bool,
) -> dict[str, str] | None:
    if sha256 is None:
        return None
    if takes_code:
        raise ArchiveError(
            "A server with sha256= serves what was checked and nothing else; with model_api=True or "
            "allowed_urls a management token is enough to bring in other code. Leave those out, or sha256=."
        )
    if model_store is not None:
        raise ArchiveError(
            "A server with sha256= has a model store of its own, with what was checked and nothing else. "
            "Leave model_store= out."
        )
    unknown = sorted(set(models) - set(sha256))
    if unknown:
        raise ArchiveError(
            f"sha256= has nothing for {', '.join(unknown)}. Give the digest of each model's archive."
        )
    return dict(sha256)


def _takes_code(config: Mapping[str, object]) -> bool:
    """Whether these settings let code in over HTTP: a folder from anywhere, a workflow from a URL."""
    registers, urls = config.get("enable_model_api", False), config.get("allowed_urls", "none")
    return _property(registers).lower() != "false" or _property(urls) != "none"


def _property(value: object) -> str:
    """A value as config.properties has it; the server's working directory is its own folder."""
    if isinstance(value, Path):
        return str(value.absolute())
    return str(value).lower() if isinstance(value, bool) else str(value)


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
