"""Clients for TorchServe's three addresses: predictions, management, metrics."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, Self, TypedDict, get_args

import requests

from tutorial_lib.clients.arguments import (
    MAXIMUM,
    check_address,
    check_headers,
    check_int,
    check_seconds,
    check_timeouts,
    invalid_argument,
    mask,
    quote_path,
)
from tutorial_lib.clients.bodies import decode as decode
from tutorial_lib.clients.bodies import encode as encode
from tutorial_lib.clients.transport import AccessToken, new_session, parts_of, send
from tutorial_lib.errors import ApiError, NoAnswer, NoKeyFile, TimedOut, is_retryable, is_stop_during_batch
from tutorial_lib.extras import extra

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

TokenType = Literal["inference", "management"]
Runtime = Literal["python", "python3", "LSP"]

# (seconds to connect, seconds to wait for an answer). A worker may take responseTimeout, 120 s.
DEFAULT_TIMEOUT = (5.0, 125.0)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before a retry
_CHANCE = random.SystemRandom()  # not seeded, so forked processes don't wait equally long
_MARGIN = timedelta(seconds=1)  # before it expires, a token is renewed: a request takes a moment to arrive
_PAGE = 100  # models on a page of the list; TorchServe returns no more, even for a higher limit


class Worker(TypedDict):
    """A worker, as `describe` lists it; memoryUsage is in bytes, startTime in ISO 8601."""

    id: str
    startTime: str
    status: str
    memoryUsage: int
    pid: int
    gpu: bool
    gpuUsage: str


class JobQueueStatus(TypedDict):
    """How many more requests a version's queue takes, and how many wait in it."""

    remainingCapacity: int
    pendingRequests: int


class ModelDescription(TypedDict):
    """A version of a model, as TorchServe describes it; delays are in ms, timeouts in s.

    customizedMetadata is there if it was asked for: it is what the handler's `describe_handle` returns.
    """

    modelName: str
    modelVersion: str
    modelUrl: str
    runtime: str
    minWorkers: int
    maxWorkers: int
    batchSize: int
    maxBatchDelay: int
    responseTimeout: NotRequired[int]
    startupTimeout: NotRequired[int]
    maxRetryTimeoutInSec: NotRequired[int]
    clientTimeoutInMills: NotRequired[int]
    parallelType: NotRequired[str]
    parallelLevel: NotRequired[int]
    deviceType: NotRequired[str]
    continuousBatching: NotRequired[bool]
    useJobTicket: NotRequired[bool]
    useVenv: NotRequired[bool]
    stateful: NotRequired[bool]
    sequenceMaxIdleMSec: NotRequired[int]
    sequenceTimeoutMSec: NotRequired[int]
    maxNumSequence: NotRequired[int]
    maxSequenceJobQueueSize: NotRequired[int]
    loadedAtStartup: bool
    workers: list[Worker]
    jobQueueStatus: NotRequired[JobQueueStatus]
    customizedMetadata: NotRequired[Any]


class ModelEntry(TypedDict):
    """A registered model: its name, and the archive that its default version came from."""

    modelName: str
    modelUrl: str


class ModelPage(TypedDict):
    """A page of the list of models; nextPageToken is there if more may follow."""

    models: list[ModelEntry]
    nextPageToken: NotRequired[str]


class Status(TypedDict):
    """The server's message about what it did: "Workers scaled to 2 for model: m"."""

    status: str


class Sample(NamedTuple):
    """One sample of a metric.

    >>> Sample("Requests2XX", {"Level": "Host"}, 3.0).value
    3.0
    """

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Answer:
    """A model's answer, as the server sent it.

    Attributes:
        status: the HTTP status code, 200 to 299.
        headers: the answer's headers; a look-up ignores the case of the name.
        content: the body.

    >>> Answer(200, {}, b'["Positive"]').value
    ['Positive']
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes

    @property
    def value(self) -> Any:
        """The decoded body: JSON, else text, else the bytes (see `decode`)."""
        return decode(self.content, self.headers.get("Content-Type"))


# Not a field of KeyFile, which may be copied; one for each process, since a fork may copy it locked.
_RENEWING: dict[int, threading.Lock] = {}


@dataclass
class KeyFile:
    """The access tokens of a running server, read from the key file that it wrote.

    TorchServe keeps an API key and two access tokens that expire (after 60 minutes by default). The
    management address renews an access token if the request carries the API key; the answer is empty, and
    the new access token is in the file.

    Attributes:
        path: the server's key_file.json.
        management_address: as "http://127.0.0.1:8081".
        verify: for an https address, as for the clients.

    >>> KeyFile(Path("missing/key_file.json"), "http://127.0.0.1:8081").token("inference")
    Traceback (most recent call last):
    tutorial_lib.errors.NoKeyFile: key_file.json can't be read (FileNotFoundError(2, ...
    """

    path: Path
    management_address: str
    verify: bool | str = True

    def token(self, kind: TokenType) -> str:
        """Returns a valid access token of one of the two addresses; the metrics address asks for none.

        If the token in the file has expired, by this machine's clock, the server renews it first.

        Raises:
            NoKeyFile: there is no key file, or it can't be read.
            ApiError, NoAnswer: as for `refresh`.
        """
        token, has_expired = self._read(kind)
        return self.renew(kind, expired=token) if has_expired else token

    def renew(self, kind: TokenType, expired: str) -> str:
        """Returns an access token to use in place of an expired one.

        Another thread or process may have renewed the token already. Renewing it once more would make that
        new token invalid, so the new token is then only read.

        Raises:
            NoKeyFile, ApiError, NoAnswer: as for `token`.
        """
        with _RENEWING.setdefault(os.getpid(), threading.Lock()):
            token, _ = self._read(kind)
            return self.refresh(kind) if token == expired else token

    def refresh(self, kind: TokenType) -> str:
        """Asks the server for a new access token, and reads it; the old one is then invalid.

        Raises:
            ApiError: the server refused the API key.
            NoAnswer: it does not answer.
        """
        logger.info("The %s token has expired: %s renews it.", kind, mask(self.management_address))
        with new_session(self.management_address) as session:
            send(
                session,
                "GET",
                f"{self.management_address}/token",
                params={"type": kind},
                auth=AccessToken(self._read("API")[0]),
                timeout=DEFAULT_TIMEOUT,
                verify=self.verify,
            )
        return self._read(kind)[0]

    def _read(self, kind: str) -> tuple[str, bool]:
        """Returns a token of the file, and whether it has expired."""
        try:
            entry = self._keys()[kind]
            token, expires = str(entry["key"]), entry.get("expiration time")
            return token, bool(expires) and datetime.fromisoformat(expires) - _MARGIN < datetime.now(UTC)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{self.path.name} can't be read ({error!r}); the server writes it."
            raise NoKeyFile(message) from error

    def _keys(self) -> Any:
        """Reads the key file. The server writes the file in place, so for a moment it is incomplete."""
        deadline = time.monotonic() + 2
        while True:
            try:
                return json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


class _Client:
    """One session to one address, with its access token. A client is a context manager.

    Threads may share a client. So may processes: a fork uses connections of its own.

    Args:
        address: as "http://127.0.0.1:8080". The environment's proxies are used, except for this machine.
        token: an access token; or the server's KeyFile, which renews expired tokens; or None for a server
            with authorization off.
        timeout: seconds to connect, seconds to wait for an answer.
        verify: for an https address, the file of the certificates to trust; True for those that `requests`
            trusts.

    Raises:
        ValueError: the address is no server's URL, or the token can't be one.
    """

    _token_type: TokenType = "inference"

    def __init__(
        self,
        address: str,
        *,
        token: str | KeyFile | None = None,
        timeout: tuple[float, float] = DEFAULT_TIMEOUT,
        verify: bool | str = True,
    ) -> None:
        self.address = check_address(address)
        self._key_file = token if isinstance(token, KeyFile) else None
        self._auth = AccessToken(token) if token and not isinstance(token, KeyFile) else None
        self._timeout = check_timeouts(timeout)
        self._verify = verify
        self._sessions: dict[int, requests.Session] = {}

    @property
    def _session(self) -> requests.Session:
        """The session of this process: a fork that used its parent's connections would read its answers."""
        process = os.getpid()
        if process not in self._sessions:
            self._sessions.setdefault(process, new_session(self.address))
        return self._sessions[process]

    def _request(
        self, method: str, path: str, *, timeout: float | None = None, **kwargs: Any
    ) -> requests.Response:
        """Makes one call; if the access token has expired, makes the call again with a new one."""
        connect, answer = self._timeout
        kwargs["timeout"] = (connect, answer if timeout is None else check_seconds(timeout))
        kwargs["verify"] = self._verify

        def call(auth: AccessToken | None) -> requests.Response:
            return send(self._session, method, f"{self.address}{path}", auth=auth, **kwargs)

        if self._key_file is None:
            return call(self._auth)
        token = self._key_file.token(self._token_type)
        for _ in range(3):  # another process may renew the token between two steps of this one
            try:
                return call(AccessToken(token))
            except ApiError as error:
                if error.kind != "InvalidKeyException":
                    raise
            expired, token = token, self._key_file.renew(self._token_type, expired=token)
            if token == expired:
                break
        return call(AccessToken(token))

    def close(self) -> None:
        """Closes the connections; the next call opens a new one."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class InferenceClient(_Client):
    """Requests predictions, and checks whether the server is up.

    >>> with InferenceClient("http://127.0.0.1:1") as client:
    ...     client.ping()
    Traceback (most recent call last):
    tutorial_lib.errors.ConnectionFailed: Nothing answers at http://127.0.0.1:1/ping. Is the...
    """

    def ping(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Returns {"status": "Healthy"} as soon as the server is up, which is before its models are ready.

        Args:
            timeout: seconds to wait for the answer; None for the client's.

        Raises:
            ApiError: nothing answers, or what answers is not TorchServe.
        """
        answer: dict[str, Any] = _json(self._request("GET", "/ping", timeout=timeout))
        return answer

    def predict(
        self,
        model: str,
        data: Any = None,
        *,
        files: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> Any:
        """Sends one request to a model.

        A worker, a replica or a host can be lost while it works on a request. A prediction changes
        nothing, so it may be sent again, up to `retries` times. The pauses between attempts (see `pauses`)
        double from 0.1 s to 10 s; each is shortened at random by up to a half, so that clients that were
        refused together don't return together. A request is sent again after an error that may pass (no
        answer, a worker that died or was killed, 500, 502, 504, and a 503 because no worker is there), not
        after an error of the handler (4xx, a 503 "Prediction failed").

        Args:
            model: the name it is registered as.
            data: bytes (or a file opened with "rb") are sent unchanged, a str as text/plain, anything else
                as JSON; beside `files`, a dict of form fields.
            files: multipart parts by name: bytes or a file, as {"data": open("cat.png", "rb")}; a list of
                them sends several parts of that name; a tuple (file name, content[, content type]) names one.
            headers: more headers, such as {"X-Request-Id": "7"}; a Content-Type wins over that of `data`.
            version: a version; None for the model's default one.
            timeout: seconds to wait for the answer; with retries, for each answer.
            retries: how often to send again. If this request itself ends the worker, each retry ends another
                one (see `is_retryable`).

        Returns:
            The answer's JSON; its text if it is not JSON; its bytes if it is neither, as a picture (see
            `decode`).

        Raises:
            ApiError: an argument can't be sent, the answer is not a 2xx, or no answer came.

        >>> InferenceClient("http://127.0.0.1:1").predict("my_model", "a", headers={"Authorization": "x"})
        Traceback (most recent call last):
        ValueError: headers has an Authorization. Give the access token...
        """
        return self.predict_raw(
            model, data, files=files, headers=headers, version=version, timeout=timeout, retries=retries
        ).value

    def predict_raw(
        self,
        model: str,
        data: Any = None,
        *,
        files: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> Answer:
        """Sends one request to a model, and returns the answer with its status, headers and bytes.

        Args:
            model, data, files, headers, version, timeout, retries: as for `predict`.

        Returns:
            The answer; its `value` is what `predict` returns.

        Raises:
            ApiError: an argument can't be sent, the answer is not a 2xx, or no answer came.

        >>> InferenceClient("http://127.0.0.1:1").predict_raw("my_model", {1, 2})
        Traceback (most recent call last):
        ValueError: data is {1, 2}. Give bytes, a text, or what JSON...
        """
        response = self._predict(model, data, files, headers, version, timeout, retries)
        return Answer(response.status_code, response.headers, response.content)

    def predict_stream(
        self,
        model: str,
        data: Any = None,
        *,
        files: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        lines: bool = False,
    ) -> Iterator[bytes]:
        """Sends one request to a model that streams its answer, and yields the parts as they come.

        The call returns when the answer begins. Leaving the iterator early (`break`, `close()`) closes the
        connection.

        Args:
            model, data, files, headers, version: as for `predict`.
            timeout: seconds to wait for the beginning, and then for each part.
            retries: as for `predict`; after the answer has begun, the request is not sent again.
            lines: yield whole lines, without their ends, for a handler that sends JSON lines. A part is
                what the handler sent at once, but a proxy may cut or join parts.

        Raises:
            ApiError: an argument can't be sent, the answer is not a 2xx, no answer came, or the answer broke
                off; the parts before that were yielded.

        >>> list(InferenceClient("http://127.0.0.1:1").predict_stream("my_model", "once upon"))
        Traceback (most recent call last):
        tutorial_lib.errors.ConnectionFailed: Nothing answers at http://127.0.0.1:1/predictions/my...
        """
        response = self._predict(model, data, files, headers, version, timeout, retries, stream=True)
        return parts_of(response, lines, self._timeout[1] if timeout is None else timeout, os.getpid())

    def _predict(
        self,
        model: str,
        data: Any,
        files: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        version: str | None,
        timeout: float | None,
        retries: int,
        stream: bool = False,
    ) -> requests.Response:
        path = _model_path(model, version, of="predictions")
        body = encode(data, files)
        options: dict[str, Any] = {
            "data": body.content,
            "headers": check_headers(headers, body.content_type),
            "timeout": timeout,
            "stream": stream,
        }
        for attempt, pause in enumerate(pauses(check_int("retries", retries, 0, 1000)), start=1):
            try:
                return self._request("POST", path, **options)
            except (ApiError, NoAnswer) as error:
                if not is_retryable(error):
                    raise
                logger.info("%s: %s; retry %d of %d in %.2f s.", path, error.message, attempt, retries, pause)
                time.sleep(pause)
        return self._request("POST", path, **options)


class ManagementClient(_Client):
    """Registers, describes, scales and removes models while the server runs.

    Every call raises ApiError if the server refuses the call, or does not answer. It also raises ApiError,
    before anything is sent, for a name, version or number that TorchServe would take for another one.

    >>> ManagementClient("http://127.0.0.1:1").scale("my_model", min_worker=-1)
    Traceback (most recent call last):
    ValueError: min_worker is -1. Give a whole number from 0 to...
    """

    _token_type: TokenType = "management"

    def list_models(self) -> list[ModelEntry]:
        """Returns all registered models in the order of their names, from all pages of the server's list."""
        models: list[ModelEntry] = []
        page = self.list_page()
        while True:
            models += page["models"]
            if "nextPageToken" not in page:
                return models
            page = self.list_page(next_page_token=page["nextPageToken"])

    def list_page(self, limit: int = _PAGE, next_page_token: int | str = 0) -> ModelPage:
        """Returns one page of the list.

        Args:
            limit: how many models to list, 1 to 100.
            next_page_token: where to continue: the nextPageToken of the page before.
        """
        if isinstance(next_page_token, str) and next_page_token.isdecimal():
            next_page_token = int(next_page_token)
        params = {
            "limit": check_int("limit", limit, 1, _PAGE),
            "next_page_token": check_int("next_page_token", next_page_token, 0, MAXIMUM - _PAGE),
        }
        page: ModelPage = _json(self._request("GET", "/models", params=params), "models")
        return page

    def describe(
        self, model: str, version: str | None = None, *, customized: bool = False
    ) -> ModelDescription:
        """Describes one version of a model (None: its default one), with its workers.

        Args:
            model: the name it is registered as.
            version: a version; None for the default one. ("all" means every version to
                TorchServe: use `describe_all`.)
            customized: ask a worker too, and return what the handler's `describe_handle` returns as
                customizedMetadata. This request waits in the queue with the predictions.
        """
        if version == "all":
            raise invalid_argument("version", version, "Ask describe_all for every version.")
        params = {"customized": "true"} if customized else {}
        response = self._request("GET", _model_path(model, version), params=params)
        answer: list[ModelDescription] = _json(response, 0)
        return answer[0]

    def describe_all(self, model: str) -> list[ModelDescription]:
        """Describes every version of a model."""
        answer: list[ModelDescription] = _json(self._request("GET", f"{_model_path(model)}/all"), 0)
        return answer

    def register(
        self,
        archive: str | Path,
        model: str | None = None,
        *,
        initial_workers: int = 1,
        batch_size: int | None = None,
        max_batch_delay: int | None = None,
        response_timeout: int | None = None,
        startup_timeout: int | None = None,
        handler: str | None = None,
        runtime: Runtime | None = None,
        s3_sse_kms: bool = False,
        wait: bool = True,
        timeout: float = 120,
    ) -> Status:
        """Registers an archive of the server's model store (or a URL that the server may load).

        The first version of a name becomes its default one; later ones wait for `set_default`. If the
        archive has a model-config.yaml, its minWorkers wins over `initial_workers`, and its timeouts win over
        `response_timeout` and `startup_timeout`; but `batch_size` and `max_batch_delay` win over the
        archive's settings.

        Args:
            archive: its file name in the model store; only the last part of a path is used. A folder
                (archive_format="no-archive") may lie anywhere: give its absolute path.
            model: the name to serve it as; None for the archive's own.
            initial_workers: how many workers to start; 0 registers without loading.
            batch_size: how many requests go to the handler at once.
            max_batch_delay: how long a batch waits to fill up, in ms.
            response_timeout: seconds after which a worker counts as hung.
            startup_timeout: seconds that a worker has to load the model.
            handler: "module:function", in place of the archive's handler.
            runtime: the runtime, in place of the archive's.
            s3_sse_kms: the URL names an S3 object that is encrypted with a KMS key.
            wait: return when the workers are READY.
            timeout: seconds to wait.

        Raises:
            ApiError: 405 if the server was not started with model_api=True, 404 if the store has no such
                archive, 409 if that version is registered already.
        """
        path = Path(archive) if isinstance(archive, str | Path) else Path()
        as_it_is = "://" in str(archive) or (path.is_absolute() and path.is_dir())
        url = str(archive) if as_it_is else path.name
        if not url:
            raise invalid_argument("archive", archive, "Give the file name of an archive in the model store.")
        if not isinstance(handler, str | None):
            raise invalid_argument("handler", handler, 'Give a text, as "module:function".')
        if runtime is not None and runtime not in get_args(Runtime):
            raise invalid_argument("runtime", runtime, f"Give one of {', '.join(get_args(Runtime))}.")
        numbers = {
            "batch_size": (batch_size, 1),
            "max_batch_delay": (max_batch_delay, 0),
            "response_timeout": (response_timeout, 1),
            "startup_timeout": (startup_timeout, 1),
        }
        params = {
            "url": url,
            "model_name": None if model is None else quote_path("model", model),
            "initial_workers": check_int("initial_workers", initial_workers, 0),
            **{k: None if n is None else check_int(k, n, minimum) for k, (n, minimum) in numbers.items()},
            "handler": handler,
            "runtime": runtime,
            "s3_sse_kms": str(bool(s3_sse_kms)).lower(),
            "synchronous": str(bool(wait)).lower(),
        }
        response = self._request("POST", "/models", params=params, timeout=timeout)
        status: Status = _json(response, "status")
        return status

    def scale(
        self,
        model: str,
        *,
        min_worker: int,
        max_worker: int | None = None,
        version: str | None = None,
        wait: bool = True,
        timeout: float = 120,
    ) -> Status:
        """Sets how many workers a model has; each holds its own copy of the model.

        Args:
            model: the name it is registered as.
            min_worker: start workers up to this many.
            max_worker: stop workers down to this many; None for min_worker.
            version: a version; None for the default one.
            wait: return when `min_worker` workers are READY and no more than `max_worker` are left.
                (TorchServe's own synchronous=true does not check whether they are READY.)
            timeout: seconds to wait.

        Raises:
            ApiError: the server refused, or `timeout` passed.
        """
        minimum = check_int("min_worker", min_worker, 0)
        maximum = minimum if max_worker is None else check_int("max_worker", max_worker, 0)
        if maximum < minimum:
            raise invalid_argument("max_worker", maximum, f"Give at least min_worker, which is {minimum}.")
        deadline = time.monotonic() + check_seconds(timeout)
        params = {"min_worker": minimum, "max_worker": maximum}
        while True:
            try:
                response = self._request("PUT", _model_path(model, version), params=params, timeout=timeout)
                break
            except ApiError as error:
                if not is_stop_during_batch(error) or time.monotonic() > deadline:
                    raise
                # The worker that TorchServe was stopping is off its list; the others need one more call.
                time.sleep(0.1)
        status: Status = _json(response, "status")
        while wait:
            workers = self.describe(model, version)["workers"]
            ready = sum(worker["status"] == "READY" for worker in workers)
            if ready >= minimum and len(workers) <= maximum:
                return {"status": f"{ready} workers are READY"}
            if time.monotonic() > deadline:
                raise TimedOut(f"{ready} of {minimum} workers were READY after {timeout:g} s.")
            time.sleep(0.1)
        return status

    def set_default(self, model: str, version: str) -> Status:
        """Makes a version the default one, which answers at /predictions/<model>."""
        path = f"{_model_path(model)}/{quote_path('version', version)}/set-default"
        status: Status = _json(self._request("PUT", path), "status")
        return status

    def unregister(self, model: str, version: str | None = None) -> Status:
        """Removes a version (None: the default one) and stops its workers.

        Requests for it get errors. Under load TorchServe 0.12 may answer with a 500, and leave workers of the
        removed version running until the server stops; so let its last requests end first.

        Raises:
            ApiError: 404 if the version is not there, 403 if it is the default among several, 405 if
                model_api is off; 500 if TorchServe stumbled over a busy worker.
        """
        status: Status = _json(self._request("DELETE", _model_path(model, version)), "status")
        return status


class MetricsClient(_Client):
    """Reads the metrics address, which answers in Prometheus' text format.

    >>> MetricsClient("http://127.0.0.1:1").samples("ts_")
    Traceback (most recent call last):
    tutorial_lib.errors.ConnectionFailed: Nothing answers at http://127.0.0.1:1/metrics. Is the...
    """

    def samples(self, name: str | None = None) -> list[Sample]:
        """Returns all samples, or those whose name starts with `name`.

        Raises:
            ApiError: nothing answers, the answer is not metrics, or `name` is no text. (TorchServe asks for
                no access token here.)
        """
        from prometheus_client.parser import text_string_to_metric_families  # half of a client's import time

        if not isinstance(name, str | None):
            raise invalid_argument("name", name, "Give the beginning of a metric's name; None for all.")
        response = self._request("GET", "/metrics")
        try:
            families = list(text_string_to_metric_families(response.text))
        except (ValueError, KeyError, IndexError) as error:
            raise _not_torchserve(response) from error
        # The parser adds _total to counters; in TorchServe, and so in Prometheus, some names lack it.
        names = {re.split(r"[{\s]", line, maxsplit=1)[0] for line in response.text.splitlines()}
        return [
            Sample(exposed, dict(sample.labels), sample.value)
            for family in families
            for sample in family.samples
            for exposed in [sample.name if sample.name in names else sample.name.removesuffix("_total")]
            if name is None or exposed.startswith(name)
        ]

    def scrape(self, name: str | None = None) -> pd.DataFrame:
        """Returns the samples as a table, one row for each.

        Args:
            name: the beginning of a metric's name; None for all.

        Returns:
            columns name, labels (a dict), value.

        Raises:
            ApiError: as for `samples`.
            PackageMissing: pandas, which the extra "load" installs, is missing.
        """
        with extra("load", "MetricsClient.scrape"):
            import pandas as pd
        return pd.DataFrame(self.samples(name), columns=[*Sample._fields])


def pauses(retries: int, chance: random.Random = _CHANCE) -> Iterator[float]:
    """Yields how long to wait before each retry: exponential backoff with jitter.

    Args:
        retries: how many retries.
        chance: the random numbers; a test gives them a seed.

    Yields:
        seconds: a random part, from half to all, of 0.1, 0.2, 0.4, …, at most 10.

    >>> [round(pause, 2) for pause in pauses(4, random.Random(1))]
    [0.06, 0.18, 0.35, 0.5]
    """
    for attempt in range(retries):
        yield chance.uniform(0.5, 1) * min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)


def _json(response: requests.Response, key: str | int | None = None) -> Any:
    """Returns the answer's JSON; raises ApiError if a proxy or another program answers on that port.

    Args:
        response: the answer.
        key: what TorchServe's answer must have: a dict's key, or 0 for a list that is not empty.
    """
    try:
        answer = response.json()
        if key is not None:
            answer[key]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _not_torchserve(response) from error
    return answer


def _not_torchserve(response: requests.Response) -> ApiError:
    return ApiError(
        response.status_code, "NotTorchServe", f"What answers at {mask(response.url)} is not TorchServe."
    )


def _model_path(model: str, version: str | None = None, of: str = "models") -> str:
    path = f"/{of}/{quote_path('model', model)}"
    return path if version is None else f"{path}/{quote_path('version', version)}"
