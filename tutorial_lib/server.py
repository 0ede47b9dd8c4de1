"""Runs TorchServe as a context manager: in its own folder, on free ports, ready, with nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tutorial_lib import preload as preloading
from tutorial_lib.archive import NAME, NAME_ADVICE, check_files, copy_checked, python_files
from tutorial_lib.client import KeyFile, TokenType
from tutorial_lib.errors import (
    ApiError,
    ArchiveError,
    PortInUse,
    ServerExited,
    TutorialError,
    hint_for_log,
)
from tutorial_lib.extras import need
from tutorial_lib.java import find_java, utf8_locale
from tutorial_lib.model_server import POLL, ModelServer
from tutorial_lib.preload_python import VARIABLE
from tutorial_lib.processes import end_processes, reap_orphans
from tutorial_lib.redeploy import redeploy
from tutorial_lib.server_config import LOOPBACK, PORT_NAMES, ServerConfig, to_properties

_ANSWER = 10.0  # seconds that a starting server has to answer a ping
_GRACE = 10.0  # seconds that a stopping server has before it is killed
_LONGEST_SOCKET = 107 if sys.platform == "linux" else 103  # bytes of the path of a Unix socket
# What the command torchserve does, with the Python for workers as first argument; the command takes its own.
_LAUNCHER = (
    "import sys; from ts import model_server; sys.executable = sys.argv.pop(1); sys.argv[0] = 'torchserve'; "
    "model_server.start()"
)
_READ_BY_TORCHSERVE = ("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME")  # would override the options of a start
_logger = logging.getLogger(__name__)


class TorchServe(ModelServer):
    """A TorchServe server of your own, ready inside a `with` block and gone after it.

    The server runs in a new temporary folder (config, access tokens, sockets, unpacked models, logs), listens
    on loopback only, and asks for access tokens. "Ready" means that each model has a READY worker. If the
    owner process crashes, the next `TorchServe` to start ends what was left.

    Args:
        models: name to serve as → archive. All archives lie in one folder, the model store.
        model_store: the folder that archives can be registered from; None for that of `models`.
        sha256: name → `archive_sha256`, for each of `models`. The server then has a model store of its
            own, with copies of these archives and nothing else, so that it serves what was checked. While it
            runs, it accepts no other code: there is no model_api and no `redeploy`.
        token_auth: ask for access tokens (TorchServe's default).
        model_api: allow registering and unregistering over HTTP (TorchServe's default is no).
        ports: port numbers by name (`PORT_NAMES`); other names get free ports, as do all with None.
        config: more keys for config.properties (`ServerConfig`); they win over the keys set here, and the
            clients use them too: {"inference_address": "http://0.0.0.0:8080"} listens on all interfaces. A
            Path is made absolute. With certificate_file and private_key_file all three addresses are https,
            and the clients trust that certificate (gRPC has a switch of its own: enable_grpc_ssl).
        startup_timeout: the one deadline for a whole start, in seconds.
        log_dir: where to keep the logs; None for the server's folder, which is removed when it stops.
        preload: True to start workers in tenths of a second, as forks of a process that has imported torch
            and transformers, or a list of more packages to import there. See `preloaded`, which does this for
            many servers. The process needs as much memory as a worker without its model.

    Raises:
        TypeError, ValueError: an argument has the wrong kind or shape, or TorchServe does not know a key of
            `config`, or can't use its value.
        ArchiveError: an archive is missing, broken or not the one of `sha256`, the archives lie in
            several folders, or `sha256` comes with an argument that would let other code in.
        PackageMissing, PortInUse, JavaNotFound, ServerExited, StartTimeout, WorkerFailed: it could not start.

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
        preload: bool | Sequence[str] = False,
    ) -> None:
        super().__init__(token_auth=token_auth, startup_timeout=startup_timeout)
        if not isinstance(model_api, bool):
            raise TypeError(f"model_api is {model_api!r}. Give True or False.")
        self._config = ServerConfig.of(config)
        self.token_auth = not self._config.is_on("disable_token_authorization", not token_auth)
        self._models = _checked_models(models)
        self._model_store = _find_store(self._models, model_store)
        self._model_api = self._config.is_on("enable_model_api", model_api)
        takes_code = self._model_api or self._config.settings.get("allowed_urls", "none") != "none"
        self._sha256 = _checked_sha256(sha256, self._models, model_store, takes_code)
        self._wanted_ports = _checked_ports(ports, self._config)
        self._log_dir = _checked_log_dir(log_dir)
        self._preload = _checked_preload(preload)
        self._process: subprocess.Popen[bytes] | None = None
        self._preloading: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    # Starting and stopping

    def stop(self) -> None:
        """Ends the launcher, the JVM and every worker, and removes the server's folder."""
        self._close()

    def _prepare(self) -> None:
        need("serving", "TorchServe", "ts")
        self._java_home = find_java().home
        reap_orphans()

    def _launch(self, folder: Path) -> None:
        _check_length(folder)
        self._copy_checked_archives()
        self._ports = _choose_ports(self._wanted_ports, self._config)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        (folder / "config.properties").write_text(self._properties(), encoding="ascii")
        _logger.debug("%s", self.command)
        environment = self._environment(folder)
        if self._preload is not None and preloading.POSSIBLE:
            self._preloading = preloading.start(folder, environment, self._preload)
            environment[VARIABLE] = str(folder)
        with self._console_log.open("wb") as console:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _LAUNCHER),
                    preloading.python_for(folder, environment),
                    *self._arguments(),
                ],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,  # a file, since a pipe that nobody reads fills up and blocks the server
                stderr=subprocess.STDOUT,
                start_new_session=True,  # this process handles a Ctrl-C in the terminal
            )
        self._connect(folder)

    def _end(self, folder: Path) -> None:
        if self._preloading is not None and self._preloading.stdin is not None:
            self._preloading.stdin.close()  # it ends when the last worker has ended
        end_processes(folder, grace=_GRACE)
        for process in (self._process, self._preloading):
            if process is not None:
                process.wait()
        self._process = self._preloading = None

    def _copy_checked_archives(self) -> None:
        """Copies the archives and checks the copies: the archives could change between check and serving."""
        if self._sha256 is None:
            return
        store = self._store
        store.mkdir()
        for name, archive in self._models.items():
            copy_checked(archive, store / archive.name, self._sha256[name])

    @property
    def _store(self) -> Path:
        own = self._folder or Path()
        return own / "store" if self._sha256 is not None else self._model_store or own

    def _is_worth_another_try(self, error: BaseException) -> bool:
        """Returns whether another program took a free port before the server used it: then choose again."""
        if not isinstance(error, ServerExited):
            return False
        taken = "Address already in use" in error.log_tail or "BindException" in error.log_tail
        own_choice = any(key.endswith(("_address", "_port")) for key in self._config.settings)
        return taken and not own_choice and set(self._wanted_ports) != set(PORT_NAMES)

    def _arguments(self) -> list[str]:
        command = ["--start", "--foreground", "--ncs"]
        command += ["--model-store", str(self._store)]
        command += ["--ts-config", "config.properties"]
        command += [] if self.token_auth else ["--disable-token-auth"]
        command += ["--enable-model-api"] if self._model_api else []
        if self._models:
            command += ["--models", *(f"{name}={path.name}" for name, path in self._models.items())]
        return command

    def _environment(self, folder: Path) -> dict[str, str]:
        """Returns the environment: JAVA_HOME, and the folder as temporary folder of launcher and JVM.

        TorchServe keeps its pid file, its sockets and unpacked models in the temporary folder, so two servers
        with one temporary folder would collide. `processes_of` also finds the processes by it.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in _READ_BY_TORCHSERVE}
        if inherited.get("PYTHONPATH"):
            inherited["PYTHONPATH"] = self._python_path(folder, inherited["PYTHONPATH"])
        return {
            **inherited,
            **utf8_locale(inherited),
            "JAVA_HOME": str(self._java_home),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(self.log_dir)),
        }

    def _python_path(self, folder: Path, python_path: str) -> str:
        """Returns PYTHONPATH without the modules that the archives have, and with absolute paths.

        A worker looks for a handler along PYTHONPATH before it looks in the archive, so a handler.py there
        would be served in place of the archive's. A folder with such a file is replaced by one with links to
        the other files.
        """
        own = {"handler.py"}.union(*map(python_files, self._models.values()))
        hidden = {name.partition("/")[0] for name in own}
        entries = [Path(entry).absolute() for entry in python_path.split(os.pathsep)]  # "" is this folder
        return os.pathsep.join(
            str(_without(hidden, entry, folder / "python_path" / str(number)))
            for number, entry in enumerate(entries)
        )

    def _properties(self) -> str:
        ports = self._ports
        settings: dict[str, object] = {
            **{f"{name}_address": self._address(name) for name in PORT_NAMES[:3]},
            "grpc_inference_address": LOOPBACK,
            "grpc_management_address": LOOPBACK,
            "grpc_inference_port": ports["grpc_inference"],
            "grpc_management_port": ports["grpc_management"],
            "initial_worker_port": ports["worker"],
            "allowed_urls": "none",  # else a management token is enough to fetch code from anywhere
            "metrics_mode": "prometheus",  # else the metrics address has no metrics
            "default_workers_per_model": 1,  # else one copy of the model for each core
            **self._config.settings,
        }
        return to_properties(settings)

    def _raise_if_ended(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise ServerExited(self._process.returncode, self.log_tail(20), hint_for_log(self.log_tail(200)))

    def _waiting_for(self) -> str:
        try:
            self.inference.ping(timeout=_ANSWER)
        except ApiError as error:
            _raise_if_lasting(error, self.inference_address)
            return f"the server does not answer yet ({error.kind}: {error.message.rstrip('.')})"
        return self._first_model_not_ready()

    def _first_model_not_ready(self) -> str:
        for name in self._models:
            try:
                workers = self.management.describe(name)["workers"]
            except ApiError as error:
                _raise_if_lasting(error, self.management_address)
                return f"the model {name} can't be described ({error.kind}: {error.message.rstrip('.')})"
            states = [worker["status"] for worker in workers]
            if "READY" not in states:
                return f"the model {name} has no READY worker (its workers: {', '.join(states) or 'none'})"
        return ""

    def redeploy(
        self,
        model: str,
        *,
        handler: str | Path | None = None,
        model_file: str | Path | None = None,
        serialized_file: str | Path | None = None,
        config_file: str | Path | None = None,
        extra_files: Sequence[str | Path] = (),
        timeout: float = 120,
    ) -> str:
        """Replaces files of a running model by edited ones, without packing its weights again.

        The edited files become a new version, which is loaded beside the old one (both need memory) and made
        the default. The old version answers until then. It finishes the requests that it has begun, and is
        unregistered in the background, some tenths of a second later: no request is lost. If the edit is
        broken, the old version goes on answering. The archive in the model store does not change: call
        `build_archive` when the edit is good.

        `redeploy` takes as long as a worker's start. Python needs most of that time to import torch and
        transformers, which `TorchServe(preload=True)` saves (`make bench` measures both).

        Args:
            model: the name it is registered as; its default version is the one replaced.
            handler: the edited Python file.
            model_file, serialized_file: an edited model.py, or other weights, as for `build_archive`.
            config_file: edited per-model settings; without it, settings and workers stay as they are.
            extra_files: more files to replace or add, as index_to_name.json.
            timeout: seconds to wait for the new version, and then the maximum for the old one to finish.

        Returns:
            the new version: "1.1" after "1.0".

        Raises:
            WorkerFailed: the new version can't be loaded; the error quotes the traceback.
            ArchiveError: a file is missing.
            ApiError: there is no such model.
            TutorialError: the server was not started with model_api=True (which sha256= does not allow), or
                the model has no worker.
        """
        if self._folder is None:
            raise TutorialError("This server is not running: there is nothing to replace. Start it first.")
        return redeploy(
            self.management,
            self._console_log,
            self._folder / "versions",
            model,
            handler=handler,
            model_file=model_file,
            serialized_file=serialized_file,
            config_file=config_file,
            extra_files=extra_files,
            timeout=timeout,
        )

    # What a running server reports

    def _connect(self, folder: Path) -> None:
        verify = self._config.settings.get("certificate_file", True)
        key_file = KeyFile(folder / "key_file.json", self.management_address, verify)
        token = key_file if self.token_auth else None
        self._keys = key_file
        self._connect_clients(token, token, verify)

    @property
    def ports(self) -> dict[str, int]:
        """The port numbers in use, by name."""
        return dict(self._ports)

    @property
    def pid(self) -> int:
        """The launcher's process id. The JVM is its child; the workers are the JVM's, unless preloaded."""
        if self._process is None:
            raise TutorialError("This server is not running: it has no process.")
        return self._process.pid

    @property
    def log_dir(self) -> Path:
        """The folder with console.log, ts_log.log, model_log.log, access_log.log and two for metrics."""
        if self._log_dir is not None:
            return self._log_dir
        if self._folder is None:
            raise TutorialError("This server's logs went with it; start it with log_dir= to keep them.")
        return self._folder / "logs"

    @property
    def command(self) -> str:
        """The command that runs the server, as you would type it."""
        return shlex.join(["torchserve", *self._arguments()])

    @property
    def key_file(self) -> Path:
        """The file with the access tokens and the API key, which the server writes when it starts."""
        if self._process is None:
            raise TutorialError("This server is not running: it has no key file.")
        return self._keys.path

    def token(self, kind: TokenType) -> str:
        """Returns the current access token, "inference" or "management"; the metrics address needs none."""
        if self._process is None:
            raise TutorialError("This server is not running: it has no tokens.")
        return self._keys.token(kind)

    @property
    def _console_log(self) -> Path:
        return self.log_dir / "console.log"

    def _read_log(self, n: int) -> str:
        try:
            return self._console_log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for_log(self, text: str, *, log: str = "model_log.log", timeout: float = 30) -> str:
        """Waits until a whole line of a log holds the text, and returns the log's lines up to now.

        A worker's lines are written a moment after it started or answered: what reads its log at once may
        come too early.

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
            if text in (lines := found[: found.rfind("\n") + 1]):
                return lines
            if time.monotonic() > deadline:
                raise TutorialError(
                    f"{log} did not hold {text!r} within {timeout:g} s. Its end:\n{found[-2000:]}"
                )
            time.sleep(POLL)

    def _address(self, name: str) -> str:
        if not self._ports:
            raise TutorialError("This server has not been started: it has no addresses yet.")
        return self._config.url(name, self._ports[name])


def _checked_preload(preload: bool | Sequence[str]) -> Sequence[str] | None:
    """Returns the packages to preload beside the usual ones, or None for no preloading."""
    if isinstance(preload, bool):
        return () if preload else None
    if not isinstance(preload, list | tuple) or not all(isinstance(name, str) for name in preload):
        raise TypeError(f"preload is {preload!r}. Give True, or a list of packages: ['torchvision'].")
    preloading.check_packages(preload)
    return tuple(preload)


def _check_length(folder: Path) -> None:
    """Checks that the paths of the workers' Unix sockets, which lie in the folder, are short enough."""
    longest = len(os.fsencode(folder / ".ts.sock.65535"))
    if longest > _LONGEST_SOCKET:
        raise TutorialError(
            f"The folder for temporary files, {folder.parent}, has too long a path: the workers' sockets in "
            f"it would have paths of {longest} bytes, and {_LONGEST_SOCKET} are the maximum. Set TMPDIR to a "
            "folder with a shorter path, as /tmp, before Python starts."
        )


def _raise_if_lasting(error: ApiError, address: str) -> None:
    """Raises an error if waiting can't help: the server answers, and will give the same answer again."""
    if error.kind == "SSLError":
        raise TutorialError(
            f"The server runs, and its clients don't trust its certificate: {error.message}. Give "
            f"config={{'certificate_file': …}} a certificate that is made for the host of {address}."
        ) from error
    if error.kind == "NotTorchServe" or error.status in (400, 401, 403, 407):
        raise TutorialError(f"The server's address {address} answers with an error. {error}") from error


def _without(hidden: set[str], folder: Path, view: Path) -> Path:
    """Returns the folder; if it has one of the hidden names, a new folder with links to the others."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:  # a zip file, or a missing folder
        return folder
    if not names & hidden:
        return folder
    _logger.warning(
        "PYTHONPATH: %s of %s is hidden from the workers, so that the archive's own is served.",
        ", ".join(sorted(names & hidden)),
        folder,
    )
    view.mkdir(parents=True)
    for name in names - hidden:
        (view / name).symlink_to((folder / name).absolute())
    return view


def _checked_models(models: Mapping[str, str | Path] | None) -> dict[str, Path]:
    if not isinstance(models, Mapping | None):
        raise TypeError(
            f"models is {models!r:.100}. Give a dict from the name to serve a model as to its archive, as "
            "{'my_model': 'model_store/my_model.mar'}."
        )
    for name, archive in (models or {}).items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"models has the name {name!r}, which TorchServe can't serve. {NAME_ADVICE}")
        if not isinstance(archive, str | os.PathLike):
            raise TypeError(f"models has {name!r}: {archive!r:.100}. Give the path of an archive.")
        if "," in Path(archive).name:
            raise ValueError(f"TorchServe reads {Path(archive).name!r} as two archives. Rename it: no comma.")
    return {name: Path(archive) for name, archive in (models or {}).items()}


def _checked_log_dir(log_dir: str | Path | None) -> Path | None:
    if log_dir is None:
        return None
    if not isinstance(log_dir, str | os.PathLike) or not str(log_dir):
        raise TypeError(f"log_dir is {log_dir!r:.100}. Give the path of a folder.")
    if Path(log_dir).exists() and not Path(log_dir).is_dir():
        raise ValueError(f"log_dir is {str(log_dir)!r}, which is a file. Give a folder.")
    return Path(log_dir).absolute()


def _find_store(models: Mapping[str, Path], model_store: str | Path | None) -> Path | None:
    """Returns the folder that all archives are in; TorchServe loads local archives only from there."""
    for archive in models.values():
        check_files(archive)
    folders = {archive.absolute().parent for archive in models.values()}
    if model_store is not None:
        if not isinstance(model_store, str | os.PathLike):
            raise TypeError(f"model_store is {model_store!r:.100}. Give the path of a folder.")
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
    if not isinstance(sha256, Mapping):
        raise TypeError(
            f"sha256 is {sha256!r:.100}. Give a dict from each model's name to its archive_sha256."
        )
    for name, digest in sha256.items():
        if not isinstance(digest, str) or not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", digest):
            raise ValueError(
                f"sha256 has {name!r}: {digest!r:.100}. Give its archive's archive_sha256: 64 hex digits."
            )
        if name not in models:
            raise ValueError(f"sha256 has {name!r}, and models does not. Is the name right?")
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


def _checked_ports(ports: Mapping[str, int] | None, config: ServerConfig) -> dict[str, int]:
    """Returns the ports that were asked for, in ports= or in config=."""
    if not isinstance(ports, Mapping | None):
        raise TypeError(f"ports is {ports!r:.100}. Give a dict, as {{'inference': 8080}}.")
    asked = dict(ports or {})
    for name, port in asked.items():
        if name not in PORT_NAMES:
            raise ValueError(f"There is no port {name!r}; the names are {', '.join(PORT_NAMES)}.")
        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"The {name} port is {port!r}. Give a whole number, as 8080.")
        if not 0 < port < 65536:
            raise ValueError(f"The {name} port {port} is not between 1 and 65535.")
        if config.port(name) is not None:
            raise ValueError(f"Both ports and config have a port for {name}. Leave one of them out.")
    found = {name: asked.get(name) or config.port(name) for name in PORT_NAMES}
    wanted = {name: port for name, port in found.items() if port is not None}
    for name, port in wanted.items():
        if others := [other for other in wanted if wanted[other] == port and other != name]:
            raise ValueError(f"The ports of {name} and {others[0]} are both {port}. Give each its own.")
    return wanted


def _choose_ports(wanted: Mapping[str, int], config: ServerConfig) -> dict[str, int]:
    """Returns the wanted ports, if they are free, and a free port for each other name."""
    with contextlib.ExitStack() as held:  # all held at once, so that no two are the same

        def hold(name: str, port: int) -> int:
            listener = held.enter_context(socket.socket())
            try:
                if os.name != "nt":  # a port in TIME_WAIT is free for TorchServe too
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((config.host(name), port))
                listener.listen()
            except OSError as error:
                raise _port_error(name, config.host(name), port, error) from error
            chosen: int = listener.getsockname()[1]
            return chosen

        given = {name: hold(name, port) for name, port in wanted.items()}
        return {name: given.get(name) or hold(name, 0) for name in PORT_NAMES}


def _port_error(name: str, host: str, port: int, error: OSError) -> TutorialError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(name, port)
    if isinstance(error, PermissionError):
        return TutorialError(
            f"The {name} port {port} is for administrators (as most below 1024). Choose a higher one."
        )
    return TutorialError(
        f"The {name} address {host} can't be opened: {error.strerror or error}. Give an address of this "
        "machine: 127.0.0.1 for this machine alone, or 0.0.0.0 for all of its addresses."
    )
