"""Clients for TorchServe's three addresses: predictions, management, metrics."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args
from urllib.parse import quote

import pandas as pd
import requests
from prometheus_client.parser import text_string_to_metric_families

from tutorial_lib.errors import ApiError

TokenType = Literal["inference", "management"]
Runtime = Literal["python", "python3", "LSP"]

# (seconds to connect, seconds to wait for an answer). A worker may take responseTimeout, 120 s.
DEFAULT_TIMEOUT = (5.0, 125.0)

# TorchServe reads numbers as Java ints; for one that it can't read it takes its default, and says nothing.
_MOST = 2**31 - 1
_PAGE = 100  # models on a page of the list; asked for more, TorchServe gives 100


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

    customizedMetadata is there when it was asked for: whatever the handler's `describe_handle` says.
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
    """A registered model: its name, and the archive its default version came from."""

    modelName: str
    modelUrl: str


class ModelPage(TypedDict):
    """A page of the list of models; nextPageToken is there where more may follow."""

    models: list[ModelEntry]
    nextPageToken: NotRequired[str]


class Status(TypedDict):
    """What the server did, in its own words: "Workers scaled to 2 for model: m"."""

    status: str


@dataclass
class KeyFile:
    """The tokens of a running server, read from the key file that it wrote.

    TorchServe keeps an API key and two tokens that expire (after 60 minutes by default). A new token
    comes from the management address for the API key; the answer is empty, and the token is in the
    file.

    Attributes:
        path: the server's key_file.json.
        management_address: as "http://127.0.0.1:8081".
        verify: for an https address, as for the clients.
    """

    path: Path
    management_address: str
    verify: bool | str = True

    def token(self, kind: TokenType) -> str:
        """The current token for one of the two addresses; the metrics address asks for none.

        Raises:
            ApiError: there is no key file, or it can't be read.
        """
        return self._key(kind)

    def refresh(self, kind: TokenType) -> str:
        """Asks the server for a new token, and reads it.

        Raises:
            ApiError: the server refused the API key, or does not answer.
        """
        _send(
            requests.Session(),
            "GET",
            f"{self.management_address}/token",
            params={"type": kind},
            headers=_bearer(self._key("API")),
            timeout=DEFAULT_TIMEOUT,
            verify=self.verify,
        )
        return self.token(kind)

    def _key(self, kind: str) -> str:
        try:
            return str(json.loads(self.path.read_text(encoding="utf-8"))[kind]["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ApiError(
                0, "NoKeyFile", f"{self.path.name} can't be read ({error!r}); the server writes it."
            ) from error


class _Client:
    """One session to one address, with its token.

    Args:
        address: as "http://127.0.0.1:8080".
        token: a token; or the server's KeyFile, and expired tokens renew themselves; or None for a
            server with authorization off.
        timeout: seconds to connect, seconds to wait for an answer.
        verify: for an https address, the file of the certificates to trust; True for the system's.

    Raises:
        ApiError: the address is no text, or a timeout no number of seconds.
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
        if not isinstance(address, str):
            raise _wrong("address", address, 'Give a text, as "http://127.0.0.1:8080".')
        self.address = address.rstrip("/")
        self._token = token
        self._timeout = _two_timeouts(timeout)
        self._verify = verify
        self._session = requests.Session()

    def _request(
        self,
        method: str,
        path: str,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> requests.Response:
        """One call; where the token turns out to be expired, a new one is fetched, once."""
        if timeout is not None:
            kwargs["timeout"] = (self._timeout[0], _seconds(timeout))
        else:
            kwargs["timeout"] = self._timeout
        kwargs["verify"] = self._verify
        url = f"{self.address}{path}"
        if not isinstance(self._token, KeyFile):
            auth = _bearer(self._token) if self._token else {}
            return _send(self._session, method, url, headers={**(headers or {}), **auth}, **kwargs)
        try:
            auth = _bearer(self._token.token(self._token_type))
            return _send(self._session, method, url, headers={**(headers or {}), **auth}, **kwargs)
        except ApiError as error:
            if error.kind != "InvalidKeyException":
                raise
        auth = _bearer(self._token.refresh(self._token_type))
        return _send(self._session, method, url, headers={**(headers or {}), **auth}, **kwargs)

    def close(self) -> None:
        """Closes the session's connections."""
        self._session.close()


class InferenceClient(_Client):
    """Predictions, and whether the server is up.

    >>> InferenceClient("http://127.0.0.1:1").ping()
    Traceback (most recent call last):
    tutorial_lib.errors.ApiError: ConnectionError: Nothing answers at http://127.0.0.1:1/ping. Is the...
    """

    def ping(self) -> dict[str, Any]:
        """{"status": "Healthy"} as soon as the server is up, which is before its models are."""
        answer: dict[str, Any] = _json(self._request("GET", "/ping"))
        return answer

    def predict(
        self,
        model: str,
        data: Any,
        *,
        version: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> Any:
        """Sends one request to a model.

        A worker, a replica or a host can be lost with a request in its hands. A prediction changes
        nothing, so it may be asked again: `retries` times, each pause twice as long as the one before,
        from 0.1 s to 2 s. Asked again is what may pass (no answer, a worker that died or was killed, 500,
        502, 504, and a 503 for want of a worker), not what a handler makes of its request (4xx, a 503
        "Prediction failed").

        Args:
            model: the name it is registered as.
            data: bytes go as they are, a str as text/plain, anything else as JSON.
            version: a version; None for the model's default one.
            timeout: seconds to wait for the answer; for each one, if there are retries.
            retries: how often to ask again. Where this very request is what the worker dies of, each
                retry costs another worker.

        Returns:
            The answer's JSON, or its text where it is not JSON.

        Raises:
            ApiError: the answer is not a 2xx, or none came.
        """
        path = _model_path(model, version, of="predictions")
        if isinstance(data, bytes):
            body, headers = data, {}
        elif isinstance(data, str):
            body, headers = data.encode(), {"Content-Type": "text/plain; charset=utf-8"}
        else:
            body, headers = json.dumps(data).encode(), {"Content-Type": "application/json"}
        for attempt in range(_whole("retries", retries, 0) + 1):
            try:
                response = self._request("POST", path, data=body, headers=headers, timeout=timeout)
                break
            except ApiError as error:
                if attempt == retries or not _may_pass(error):
                    raise
                time.sleep(min(0.1 * 2**attempt, 2))
        try:
            return response.json()
        except ValueError:
            return response.text


class ManagementClient(_Client):
    """Registers, describes, scales and removes models while the server runs.

    Every call raises ApiError where the server refuses it, or does not answer; and, before anything is
    sent, for a name, version or number that TorchServe would take for another one.

    >>> ManagementClient("http://127.0.0.1:1").scale("my_model", min_worker=-1)
    Traceback (most recent call last):
    tutorial_lib.errors.ApiError: InvalidArgument: min_worker is -1. Give a whole number from 0 to...
    """

    _token_type: TokenType = "management"

    def list_models(self) -> list[ModelEntry]:
        """All registered models, in the order of their names; the server's pages are put together."""
        models: list[ModelEntry] = []
        page = self.list_page()
        while True:
            models += page["models"]
            if "nextPageToken" not in page:
                return models
            page = self.list_page(next_page_token=page["nextPageToken"])

    def list_page(self, limit: int = _PAGE, next_page_token: int | str = 0) -> ModelPage:
        """One page of the list.

        Args:
            limit: how many models to list, 1 to 100.
            next_page_token: where to go on: the nextPageToken of the page before.
        """
        if isinstance(next_page_token, str) and next_page_token.isdecimal():
            next_page_token = int(next_page_token)
        params = {
            "limit": _whole("limit", limit, 1, _PAGE),
            "next_page_token": _whole("next_page_token", next_page_token, 0, _MOST - _PAGE),
        }
        page: ModelPage = _json(self._request("GET", "/models", params=params), "models")
        return page

    def describe(
        self, model: str, version: str | None = None, *, customized: bool = False
    ) -> ModelDescription:
        """One version of a model (None: its default one), with its workers.

        Args:
            model: the name it is registered as.
            version: a version; None for the default one. ("all" is TorchServe's word for every
                version: `describe_all`.)
            customized: ask a worker too, and get what the handler's `describe_handle` says as
                customizedMetadata. The question waits in the queue with the predictions.
        """
        if version == "all":
            raise _wrong("version", version, "Ask describe_all for every version.")
        params = {"customized": "true"} if customized else {}
        response = self._request("GET", _model_path(model, version), params=params)
        answer: list[ModelDescription] = _json(response, 0)
        return answer[0]

    def describe_all(self, model: str) -> list[ModelDescription]:
        """Every version of a model."""
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
        """Registers an archive of the server's model store (or a URL that it may load).

        The first version of a name becomes its default one; later ones wait for `set_default`. Where
        the archive has a model-config.yaml, its minWorkers wins over `initial_workers`, and its
        timeouts over these; batch_size and max_batch_delay win over the archive's.

        Args:
            archive: its file name in the model store; of a path, the last part is taken. The
                absolute path of a folder (archive_format="no-archive") may lie anywhere.
            model: the name to serve it as; None for the archive's own.
            initial_workers: how many workers to start; 0 registers without loading.
            batch_size: how many requests go to the handler at once.
            max_batch_delay: how long a batch waits to fill up, in ms.
            response_timeout: seconds after which a worker counts as hung.
            startup_timeout: seconds that a worker has to load the model.
            handler: "module:function", in place of the archive's handler.
            runtime: in place of the archive's.
            s3_sse_kms: the URL is of an S3 object encrypted with a KMS key.
            wait: return when the workers are READY.
            timeout: seconds to wait.

        Raises:
            ApiError: 405 where the server was not started with model_api=True, 404 where the store
                has no such archive, 409 where that version is there already.
        """
        path = Path(archive) if isinstance(archive, str | Path) else Path()
        as_it_is = "://" in str(archive) or (path.is_absolute() and path.is_dir())
        url = str(archive) if as_it_is else path.name
        if not url:
            raise _wrong("archive", archive, "Give the file name of an archive in the model store.")
        if runtime is not None and runtime not in get_args(Runtime):
            raise _wrong("runtime", runtime, f"Give one of {', '.join(get_args(Runtime))}.")
        numbers = {
            "batch_size": (batch_size, 1),
            "max_batch_delay": (max_batch_delay, 0),
            "response_timeout": (response_timeout, 1),
            "startup_timeout": (startup_timeout, 1),
        }
        params = {
            "url": url,
            "model_name": None if model is None else _part("model", model),
            "initial_workers": _whole("initial_workers", initial_workers, 0),
            **{k: None if n is None else _whole(k, n, least) for k, (n, least) in numbers.items()},
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
                (TorchServe's own synchronous=true does not look whether they are READY.)
            timeout: seconds to wait.

        Raises:
            ApiError: the server refused, or `timeout` passed.
        """
        least = _whole("min_worker", min_worker, 0)
        most = least if max_worker is None else _whole("max_worker", max_worker, 0)
        if most < least:
            raise _wrong("max_worker", most, f"Give at least min_worker, which is {least}.")
        deadline = time.monotonic() + _seconds(timeout)
        params = {"min_worker": least, "max_worker": most}
        response = self._request("PUT", _model_path(model, version), params=params, timeout=timeout)
        status: Status = _json(response, "status")
        while wait:
            workers = self.describe(model, version)["workers"]
            ready = sum(worker["status"] == "READY" for worker in workers)
            if ready >= least and len(workers) <= most:
                return {"status": f"{ready} workers are READY"}
            if time.monotonic() > deadline:
                raise ApiError(0, "Timeout", f"{ready} of {least} workers were READY after {timeout:g} s.")
            time.sleep(0.1)
        return status

    def set_default(self, model: str, version: str) -> Status:
        """Makes a version the one that /predictions/<model> answers with."""
        path = f"{_model_path(model)}/{_part('version', version)}/set-default"
        status: Status = _json(self._request("PUT", path), "status")
        return status

    def unregister(self, model: str, version: str | None = None) -> Status:
        """Removes a version (None: the default one) and stops its workers.

        Raises:
            ApiError: 404 where it is not there, 403 where it is the default among several, 405 where
                model_api is off.
        """
        status: Status = _json(self._request("DELETE", _model_path(model, version)), "status")
        return status


class MetricsClient(_Client):
    """The metrics address, which speaks Prometheus' text format."""

    def scrape(self, name: str | None = None) -> pd.DataFrame:
        """All samples, or those whose name starts with `name`: one row each.

        Returns:
            columns name, labels (a dict), value.

        Raises:
            ApiError: nothing answers, or not with metrics; or `name` is no text. (TorchServe asks for
                no token here.)
        """
        if not isinstance(name, str | None):
            raise _wrong("name", name, "Give the beginning of a metric's name; None for all metrics.")
        response = self._request("GET", "/metrics")
        try:
            families = list(text_string_to_metric_families(response.text))
        except (ValueError, KeyError, IndexError) as error:
            raise _not_torchserve(response) from error
        # The parser adds _total to counters; TorchServe, and so Prometheus, names some of them without.
        said = {re.split(r"[{\s]", line, maxsplit=1)[0] for line in response.text.splitlines()}
        rows = [
            {"name": exposed, "labels": dict(sample.labels), "value": sample.value}
            for family in families
            for sample in family.samples
            for exposed in [sample.name if sample.name in said else sample.name.removesuffix("_total")]
            if name is None or exposed.startswith(name)
        ]
        return pd.DataFrame(rows, columns=["name", "labels", "value"])


def _may_pass(error: ApiError) -> bool:
    """Whether the same prediction, asked again, may be answered.

    >>> _may_pass(ApiError(500, "InternalServerException", "Worker died."))
    True
    >>> _may_pass(ApiError(503, "InternalServerException", "Prediction failed"))
    False
    """
    if error.status == 503:
        return error.kind != "InternalServerException"
    died = error.status == 507 and "worker died" in error.message.lower()
    return died or error.status in (500, 502, 504) or error.kind in ("ConnectionError", "Timeout")


def _json(response: requests.Response, key: str | int | None = None) -> Any:
    """The answer's JSON; whatever else answers on that port (a proxy, another program) is an ApiError.

    Args:
        response: the answer.
        key: what TorchServe's answer has: a dict's key, or 0 for a list that is not empty.
    """
    try:
        answer = response.json()
        if key is not None:
            answer[key]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _not_torchserve(response) from error
    return answer


def _not_torchserve(response: requests.Response) -> ApiError:
    return ApiError(0, "NotTorchServe", f"What answers at {response.url} is not TorchServe.")


def _model_path(model: str, version: str | None = None, of: str = "models") -> str:
    path = f"/{of}/{_part('model', model)}"
    return path if version is None else f"{path}/{_part('version', version)}"


def _part(what: str, value: str) -> str:
    """A name or version as a part of a URL's path.

    TorchServe registers "a/b", and can then neither describe nor remove it; an empty name or ".." would
    make it another call's URL.
    """
    try:
        if isinstance(value, str) and value.strip(".") and "/" not in value:
            return quote(value, safe="")
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise _wrong(what, value, 'Give a text that is not empty, has no "/", and is more than dots.')


def _whole(what: str, value: object, least: int, most: int = _MOST) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise _wrong(what, value, f"Give a whole number from {least} to {most}.")


def _two_timeouts(timeout: tuple[float, float]) -> tuple[float, float]:
    try:
        connect, answer = timeout
    except (TypeError, ValueError):
        advice = "Give two numbers: seconds to connect, and seconds to wait for an answer."
        raise _wrong("timeout", timeout, advice) from None
    return _seconds(connect), _seconds(answer)


def _seconds(timeout: float) -> float:
    try:
        if 0 < timeout < 1e6:
            return float(timeout)
    except TypeError:
        pass
    raise _wrong("timeout", timeout, "Give a number of seconds above 0, a million at most.")


def _wrong(what: str, value: object, advice: str) -> ApiError:
    return ApiError(0, "InvalidArgument", f"{what} is {value!r:.100}. {advice}")


def _bearer(token: object) -> dict[str, str]:
    if not (isinstance(token, str) and token.isascii() and token.isprintable() and token.strip() == token):
        raise ApiError(
            0, "InvalidArgument", "That can't be a token. Take the one of key_file.json, as a text."
        )
    return {"Authorization": f"Bearer {token}"}


def _send(session: requests.Session, method: str, url: str, **kwargs: Any) -> requests.Response:
    """One HTTP call; anything but a 2xx, and no answer at all, is an ApiError."""
    try:
        response = session.request(method, url, **kwargs)
    except requests.Timeout as error:
        raise ApiError(0, "Timeout", f"No answer from {url} within {kwargs['timeout'][1]:g} s.") from error
    except requests.exceptions.SSLError as error:
        raise ApiError(0, "SSLError", f"{url} was not asked: {error.args[0]}") from error
    except requests.ConnectionError as error:
        raise ApiError(0, "ConnectionError", f"Nothing answers at {url}.") from error
    except (OSError, ValueError) as error:  # OSError: a RequestException, or no file of certificates
        raise ApiError(0, "InvalidRequest", f"{url} can't be asked: {error}.") from error
    if response.ok:
        return response
    try:
        said = response.json()
        kind, message = str(said["type"]), str(said["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = response.reason or "Error", response.text.strip()
    raise ApiError(response.status_code, kind, message)
