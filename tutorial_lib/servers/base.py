"""Defines what `TorchServe` and `Container` share: start, one deadline, readiness, clients, log tail."""

from __future__ import annotations

import atexit
import contextlib
import html
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tutorial_lib.clients.inference import InferenceClient
from tutorial_lib.clients.management import ManagementClient
from tutorial_lib.clients.metrics import MetricsClient
from tutorial_lib.clients.shapes import ModelDescription
from tutorial_lib.clients.tokens import KeyFile, TokenType
from tutorial_lib.errors import (
    ArchiveError,
    StartTimeout,
    TutorialError,
    WorkerFailed,
    explain_os_error,
    hint_for_log,
)
from tutorial_lib.processes import new_folder, remove_folder
from tutorial_lib.servers.exit_status import without_exception
from tutorial_lib.servers.failures import ExplainingClient, Read
from tutorial_lib.servers.logs import (
    NO_TRACEBACK,
    dead_worker,
    exception_line,
    refusal,
    telling_lines,
    too_slow,
    wait_for_traceback,
    worker_thread_failure,
)

ADDRESSES = ("inference", "management", "metrics")
POLL = 0.1  # seconds between two checks of a starting server

_STARTS = 5  # at most, if other programs take the ports that were free
_KEPT_LINES = 200  # of the log, kept after the server ended
_logger = logging.getLogger(__name__)


class ModelServer(ABC):
    """A server of models that is ready inside a `with` block and gone after it.

    A subclass defines how the server is launched, what it still waits for, and how it is ended.

    Args:
        token_auth: whether the server asks for access tokens.
        startup_timeout: the one deadline for a whole start, in seconds.

    Attributes:
        token_auth: whether the server asks for access tokens.

    >>> from tutorial_lib import Container, TorchServe
    >>> issubclass(TorchServe, ModelServer), issubclass(Container, ModelServer)
    (True, True)
    """

    def __init__(self, *, token_auth: bool, startup_timeout: float) -> None:
        if not isinstance(token_auth, bool):
            raise TypeError(f"token_auth is {token_auth!r}. Give True or False.")
        if isinstance(startup_timeout, bool) or not isinstance(startup_timeout, int | float):
            raise TypeError(f"startup_timeout is {startup_timeout!r}. Give a number of seconds.")
        if not startup_timeout > 0:  # nan too
            raise ValueError(f"startup_timeout is {startup_timeout}. Give a number of seconds above 0.")
        self.token_auth = token_auth
        self._startup_timeout = startup_timeout
        self._folder: Path | None = None  # set from a start until the end
        self._owner = os.getpid()
        self._last_lines = ""
        self._clients: tuple[InferenceClient, ManagementClient, MetricsClient] | None = None

    # Starting and ending

    def start(self) -> Self:
        """Starts the server, and waits until every model has a READY worker.

        Returns:
            the server itself.

        Raises:
            TutorialError: the server runs already, or could not start; the class lists the errors.
        """
        if self._folder is not None:
            raise TutorialError(f"{self} is running already. Use it, or end it first.")
        started = time.monotonic()
        deadline = started + self._startup_timeout
        try:
            self._prepare()
            for attempt in range(_STARTS, 0, -1):
                if self._try_to_start(deadline, is_last=attempt == 1):
                    break
                _logger.info("a port was taken meanwhile: starting %s again", self)
        except OSError as error:
            raise TutorialError(f"{self} can't be started: {explain_os_error(error)}") from error
        atexit.register(self._close)
        _logger.info(
            "%s is ready after %.1f s at %s", self, time.monotonic() - started, self.inference_address
        )
        return self

    def _try_to_start(self, deadline: float, is_last: bool) -> bool:
        """Starts the server; returns False if it did not start, and another try may succeed."""
        self._owner = os.getpid()
        try:
            self._folder = new_folder()
            _logger.info("starting %s", self)
            self._launch(self._folder)
            self._wait_until_ready(deadline)
        except BaseException as error:  # a Ctrl-C too: nothing may be left behind
            self._close_after(error)
            if not is_last and self._is_worth_another_try(error):
                return False
            raise
        return True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self._close()
        else:
            self._close_after(exc)

    def _close(self) -> None:
        """Ends the server and removes its folder; in a fork of the owner, does nothing."""
        if self._folder is None or os.getpid() != self._owner:
            return
        atexit.unregister(self._close)
        try:
            self._end(self._folder)
        finally:
            remove_folder(self._folder)
        self._folder = self._clients = None
        _logger.info("%s has ended", self)

    def _keep_last_lines(self) -> None:
        """Keeps what `log_tail` returns after the end; `_end` calls this before the log is gone."""
        self._last_lines = self.log_tail(_KEPT_LINES)

    def _close_after(self, error: BaseException) -> None:
        """Ends the server after an error; if that fails too, adds a note to the error that came first."""
        try:
            self._close()
        except TutorialError as failure:
            error.add_note(f"{self} could not be removed: {failure}")

    def _wait_until_ready(self, deadline: float) -> None:
        while True:
            self._raise_if_ended()
            waiting_for = self._waiting_for()
            if not waiting_for:
                return
            _logger.debug("%s is not ready: %s", self, waiting_for)
            self._raise_if_a_worker_failed()
            if time.monotonic() > deadline:
                raise StartTimeout(
                    self._startup_timeout, waiting_for, telling_lines(self._recent_log(1000), 20)
                )
            time.sleep(POLL)

    def _raise_if_a_worker_failed(self) -> None:
        """Raises the first failure, which shows the cause: TorchServe retries for 5 minutes."""
        log = self._recent_log(10_000)
        if reason := refusal(log):
            raise ArchiveError(f"TorchServe refused the archive {reason}")
        if (worker := dead_worker(log)) is not None:
            cause = wait_for_traceback(lambda: self._recent_log(10_000))
            if cause.startswith(NO_TRACEBACK):
                raise WorkerFailed(cause, self._how_it_ended(worker))
            raise WorkerFailed(cause, hint_for_log(exception_line(cause)))
        if (worker := too_slow(log)) is not None:
            model = self._model_of(worker)
            raise StartTimeout(
                self._limit("startupTimeout", model),
                f"a worker of {model} did not load it within its startupTimeout, so TorchServe ended it",
                telling_lines(log, 20),
                "Raise startupTimeout in the archive's config_file (where it has no such file, "
                "default_startup_timeout in config=)",
            )
        if reason := worker_thread_failure(log):
            advice = "TorchServe itself failed: check the settings in the archive's config_file."
            raise WorkerFailed(reason, hint_for_log(reason) or advice)

    # What a subclass defines

    @abstractmethod
    def _prepare(self) -> None:
        """Checks what can be checked before a start, and removes what dead owners left."""

    @abstractmethod
    def _launch(self, folder: Path) -> None:
        """Launches the server; the folder holds the server's files, and is removed when it ends."""

    @abstractmethod
    def _raise_if_ended(self) -> None:
        """Raises an error that says why the server ended, if it did."""

    @abstractmethod
    def _waiting_for(self) -> str:
        """Returns what is not ready, as the middle of a sentence; "" when all is ready and clients work."""

    @abstractmethod
    def _end(self, folder: Path) -> None:
        """Ends all that `_launch` began, even if it did not finish, and calls `_keep_last_lines`."""

    @abstractmethod
    def _read_log(self, n: int) -> str:
        """Returns the last n lines that the server printed, or more; "" if there is no log."""

    @abstractmethod
    def _address(self, name: str) -> str:
        """Returns the address of that name; raises TutorialError if there is none yet."""

    def _recent_log(self, n: int) -> str:
        """Returns the last n lines since the last start."""
        return self.log_tail(n)

    def _limit(self, name: str, model: str) -> int | None:
        """Returns the value of a setting for a model; None if it is unknown."""
        return None

    def _how_it_ended(self, worker: str) -> str:
        """Returns a sentence on a worker that no exception ended."""
        return without_exception()

    @staticmethod
    def _model_of(worker: str) -> str:
        """Returns the name of the model of a worker such as "W-9000-my_model_1.0"."""
        return re.sub(r"^W-\d+-|_[^_]*$", "", worker)

    @abstractmethod
    def _log_from_now(self) -> Read:
        """Returns a function that reads what the log has from now on."""

    def _is_worth_another_try(self, error: BaseException) -> bool:
        return False

    # What a running server reports

    @abstractmethod
    def token(self, kind: TokenType) -> str:
        """Returns the current access token.

        Args:
            kind: "inference" or "management".

        Raises:
            TutorialError: the server is not running, or asks for no tokens.
        """

    @property
    def inference(self) -> InferenceClient:
        """Requests predictions; an error of a prediction has the traceback from the server's log."""
        return self._running_clients()[0]

    @property
    def management(self) -> ManagementClient:
        """Registers, describes and scales models."""
        return self._running_clients()[1]

    @property
    def metrics(self) -> MetricsClient:
        """Reads counters."""
        return self._running_clients()[2]

    def _running_clients(self) -> tuple[InferenceClient, ManagementClient, MetricsClient]:
        if self._clients is None:
            raise TutorialError(
                f"{self} is not running: it has no clients and addresses. Use it inside "
                f"`with {type(self).__name__}(…) as server:`, or call start() first."
            )
        return self._clients

    @property
    def inference_address(self) -> str:
        """The address for predictions, as "http://127.0.0.1:8080"."""
        return self._address("inference")

    @property
    def management_address(self) -> str:
        """The address at which models are registered, described and scaled."""
        return self._address("management")

    @property
    def metrics_address(self) -> str:
        """The address at which Prometheus reads metrics."""
        return self._address("metrics")

    def log_tail(self, n: int = 20) -> str:
        """Returns the last lines that the server printed.

        Args:
            n: how many lines; after the server ended, at most 200 are left.
        """
        text = self._last_lines if self._folder is None else self._read_log(n)
        return "\n".join(text.splitlines()[-n:])

    def _connect_clients(
        self,
        inference: str | KeyFile | None,
        management: str | KeyFile | None,
        verify: bool | str = True,
    ) -> None:
        """Makes new clients, with the access token of each address; metrics use that of inference."""
        client = ExplainingClient(self.inference_address, token=inference, verify=verify)
        client.log_from_now, client.limit = self._log_from_now, self._limit
        self._clients = (
            client,
            ManagementClient(self.management_address, token=management, verify=verify),
            MetricsClient(self.metrics_address, token=inference, verify=verify),
        )

    def __str__(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table>{cells}</table>"

    def _rows(self) -> Iterator[tuple[str, str]]:
        if self._folder is None:
            yield str(self), "not running"
            return
        with contextlib.suppress(TutorialError):
            for name in ADDRESSES:
                yield f"{name} address", self._address(name)
            for model in self._descriptions():
                ready = sum(worker["status"] == "READY" for worker in model["workers"])
                yield (
                    f"{model['modelName']} {model['modelVersion']}",
                    f"{ready} of {model['minWorkers']} workers READY",
                )

    def _descriptions(self) -> Iterator[ModelDescription]:
        for entry in self.management.list_models():
            yield from self.management.describe_all(entry["modelName"])
