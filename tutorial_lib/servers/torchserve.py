"""Runs TorchServe as a context manager: in its own folder, on free ports, ready, with nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from tutorial_lib.archives.building import copy_checked, python_files, read_settings
from tutorial_lib.archives.model_files import FileKeywords, ModelFiles, edits_of
from tutorial_lib.clients.readiness import Readiness
from tutorial_lib.clients.tokens import KeyFile, TokenType
from tutorial_lib.cores import all_cores, usable_cores
from tutorial_lib.errors import (
    ApiError,
    ServerExited,
    TlsError,
    TutorialError,
    hint_for_log,
)
from tutorial_lib.extras import need
from tutorial_lib.preload import owner as preloading
from tutorial_lib.preload.python import VARIABLE
from tutorial_lib.processes import end_processes, reap_orphans, start_owned
from tutorial_lib.servers import launcher
from tutorial_lib.servers.arguments import (
    checked_log_dir,
    checked_models,
    checked_ports,
    checked_preload,
    checked_sha256,
    choose_ports,
    find_store,
)
from tutorial_lib.servers.base import POLL, ModelServer
from tutorial_lib.servers.config import LOOPBACK, PORT_NAMES, ServerConfig, to_properties
from tutorial_lib.servers.console_log import read_since, read_tail
from tutorial_lib.servers.exit_status import explain_end, without_exception
from tutorial_lib.servers.failures import Read
from tutorial_lib.servers.java import find_java, utf8_locale
from tutorial_lib.servers.redeploy import redeploy

_EXIT = 60.0  # seconds that a worker has to end in the same way again
_LOGS = (
    *("console.log", "console.log.1", "ts_log.log", "model_log.log", "access_log.log"),
    *("ts_metrics.log", "model_metrics.log"),
)
_LONGEST_SOCKET = 107 if sys.platform == "linux" else 103  # bytes of the path of a Unix socket
_READ_BY_TORCHSERVE = ("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME")  # would override the options of a start
_logger = logging.getLogger(__name__)


class TorchServe(ModelServer):
    """A TorchServe server of your own, ready inside a `with` block and gone after it.

    The server runs in a new temporary folder (config, access tokens, sockets, unpacked models, logs), listens
    on loopback only, and asks for access tokens. "Ready" means that each model has a READY worker. If the
    owner process ends without a stop, even if it is killed, the server ends within seconds.

    The workers share the cores: OMP_NUM_THREADS is the number of cores divided by the number of workers that
    the archives and `config` ask for, at least 1. It is not set if the environment has OMP_NUM_THREADS or
    MKL_NUM_THREADS, or if `config` has cpu_launcher_enable. `redeploy` and `management.scale` don't change it
    later.

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
        startup_timeout: the one deadline for a whole start, in seconds. A worker may take as long (120 s at
            least) to load its model, unless `config` has default_startup_timeout or its archive has a
            config_file: that file's startupTimeout (120 s by default) then ends the start.
        log_dir: where to keep the logs; None for the server's folder, which is removed when it stops. The
            logs of the last run are moved to its folder earlier/1, earlier/2, …
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
        self._models = checked_models(models)
        self._model_store = find_store(self._models, model_store)
        self._model_api = self._config.is_on("enable_model_api", model_api)
        takes_code = self._model_api or self._config.settings.get("allowed_urls", "none") != "none"
        self._sha256 = checked_sha256(sha256, self._models, model_store, takes_code)
        self._wanted_ports = checked_ports(ports, self._config)
        self._log_dir = checked_log_dir(log_dir)
        self._preload = checked_preload(preload)
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
        self._ports = choose_ports(self._wanted_ports, self._config)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        _move_earlier_logs(self.log_dir)
        (folder / "config.properties").write_text(self._properties(), encoding="ascii")
        _logger.debug("%s", self.command)
        environment = self._environment(folder)
        if self._preload is not None and preloading.POSSIBLE:
            self._preloading = preloading.start(folder, environment, self._preload)
            environment[VARIABLE] = str(folder)
        python = preloading.python_for(folder, environment)
        command = launcher.command(self._console_log, python, self._arguments())
        with self._console_log.open("ab") as console:  # not a pipe: one that nobody reads blocks the server
            self._process = start_owned(command, folder, environment, console)
        self._connect(folder)

    def _end(self, folder: Path) -> None:
        started = [process for process in (self._process, self._preloading) if process is not None]
        for process in started:
            assert process.stdin is not None
            process.stdin.close()  # the launcher ends the JVM and the workers, as if this process had ended
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2 * launcher.GRACE)
        end_processes(folder, grace=0)  # if the launcher could not do it
        for process in started:
            process.wait()
        self._process = self._preloading = None
        self._keep_last_lines()

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
            **self._own_variables(inherited),
            **inherited,
            **utf8_locale(inherited),
            "JAVA_HOME": str(self._java_home),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(self.log_dir)),
        }

    def _own_variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Returns the variables that workers have unless the user's environment has others."""
        own = {"PYTHONFAULTHANDLER": "1"}  # a segmentation fault then has a traceback
        workers = sum(self._limit("minWorkers", name) or 1 for name in self._models)
        share = max(1, usable_cores() // max(1, workers))
        by_user = "MKL_NUM_THREADS" in inherited or self._config.is_on("cpu_launcher_enable", False)
        if share < all_cores() and not by_user:
            own["OMP_NUM_THREADS"] = str(share)
        return own

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
            "default_startup_timeout": self._load_timeout,
            **self._config.settings,
        }
        return to_properties(settings)

    @property
    def _load_timeout(self) -> int:
        return max(120, math.ceil(min(self._startup_timeout, 1_000_000)))

    def _limit(self, name: str, model: str) -> int | None:
        if name.startswith("max_"):
            return self._config.limit(name, model, {})
        if model not in self._models:  # registered later, with settings of its own
            return None
        default = self._load_timeout if name == "startupTimeout" else None
        return self._config.limit(name, model, read_settings(self._models[model]), default)

    def _how_it_ended(self, worker: str) -> str:
        if self._folder is None or self._preload is not None or VARIABLE in os.environ:
            return without_exception()  # TorchServe's child is then a program that waits for the worker
        return explain_end(self.pid, self._folder / f".ts.sock.{worker.split('-')[1]}", _EXIT)

    def _log_from_now(self) -> Read:
        start = self._console_log.stat().st_size

        def read() -> str:
            return read_since(self._console_log, start)

        return read

    def _raise_if_ended(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise ServerExited(self._process.returncode, self.log_tail(20), hint_for_log(self.log_tail(200)))

    def _waiting_for(self) -> str:
        try:
            return Readiness(self.inference, self.management, list(self._models)).waiting_for()
        except TlsError as error:
            raise TutorialError(
                f"The server runs, and its clients don't trust its certificate: {error.message}. Give "
                "config={'certificate_file': …} a certificate that is made for the host of "
                f"{self.inference_address}."
            ) from error
        except ApiError as error:
            raise TutorialError(
                f"The server at {self.inference_address} answers with an error. {error}"
            ) from error

    def redeploy(
        self,
        model: str,
        files: ModelFiles | None = None,
        *,
        timeout: float = 120,
        **keywords: Unpack[FileKeywords],
    ) -> str:
        """Replaces files of a running model by edited ones, without packing its weights again.

        The edited files and copies of the others become a new version, which is checked as `build_archive`
        does, loaded beside the old one (both need memory and disk), and made the default. The old version
        answers until then, finishes the requests that it has begun, and is unregistered in the background: no
        request is lost. If the edit is broken, the old version goes on answering. Calls at the same time wait
        for each other. The archive in the model store does not change: call `build_archive` when the edit is
        good.

        It takes as long as a worker's start, mostly to import torch, which `TorchServe(preload=True)` saves.

        Args:
            model: the name it is registered as; its default version is the one replaced.
            files: all files of the model, as for `build_archive`; or as keywords the edited ones alone: those
                that are left out stay, and so do settings and workers without a config_file. New weights take
                the old file's name; replace a model.onnx of the old ones with `extra_files`.
            timeout: seconds to wait for the new version, and then the maximum for the old one to finish.
            keywords: the fields of `ModelFiles`, but for model_dir.

        Returns:
            the new version: "1.1" after "1.0".

        Raises:
            WorkerFailed: the new version can't be loaded; the error quotes the traceback.
            ArchiveError: a file is missing or wrong, as for `build_archive`.
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
            edits_of(files, keywords),
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
        return read_tail(self._console_log)

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
        if self._folder is None:
            raise TutorialError("This server is not running: it has no addresses. Start it first.")
        return self._config.url(name, self._ports[name])


def _move_earlier_logs(log_dir: Path) -> None:
    """Moves the logs of an earlier run out of the way, since TorchServe would append to them."""
    logs = [log for name in _LOGS if (log := log_dir / name).is_file()]
    if not logs:
        return
    earlier = log_dir / "earlier"
    folder = next(place for n in itertools.count(1) if not (place := earlier / str(n)).exists())
    folder.mkdir(parents=True)
    for log in logs:
        log.rename(folder / log.name)


def _check_length(folder: Path) -> None:
    """Checks that the paths of the workers' Unix sockets, which lie in the folder, are short enough."""
    longest = len(os.fsencode(folder / ".ts.sock.65535"))
    if longest > _LONGEST_SOCKET:
        raise TutorialError(
            f"The folder for temporary files, {folder.parent}, has too long a path: the workers' sockets in "
            f"it would have paths of {longest} bytes, and {_LONGEST_SOCKET} are the maximum. Set TMPDIR to a "
            "folder with a shorter path, as /tmp, before Python starts."
        )


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
