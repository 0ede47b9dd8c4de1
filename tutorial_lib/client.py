"""Clients for TorchServe's three addresses: predictions, management, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict
from urllib.parse import quote

import pandas as pd
import requests
from prometheus_client.parser import text_string_to_metric_families

from tutorial_lib.errors import ApiError

TokenType = Literal["inference", "management"]

# (seconds to connect, seconds to wait for an answer). A worker may take responseTimeout, 120 s.
DEFAULT_TIMEOUT = (5.0, 125.0)


class Worker(TypedDict):
    """A worker, as `describe` lists it; memoryUsage is in bytes, startTime in ISO 8601."""

    id: str
    startTime: str
    status: str
    memoryUsage: int
    pid: int
    gpu: bool
    gpuUsage: str


class ModelDescription(TypedDict):
    """A version of a model, as TorchServe describes it; delays are in ms, timeouts in s."""

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
    loadedAtStartup: bool
    workers: list[Worker]
    jobQueueStatus: NotRequired[dict[str, int]]


class ModelEntry(TypedDict):
    """A registered model: its name, and the archive it came from."""

    modelName: str
    modelUrl: str


@dataclass
class KeyFile:
    """The tokens of a running server, read from the key file that it wrote.

    TorchServe keeps an API key and two tokens that expire (after 60 minutes by default). A new token
    comes from the management address for the API key; the answer is empty, and the token is in the
    file.

    Attributes:
        path: the server's key_file.json.
        management_address: as "http://127.0.0.1:8081".
    """

    path: Path
    management_address: str

    def token(self, kind: TokenType) -> str:
        """The current token for one of the two addresses (metrics go with "inference").

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
    """

    _token_type: TokenType = "inference"

    def __init__(
        self,
        address: str,
        *,
        token: str | KeyFile | None = None,
        timeout: tuple[float, float] = DEFAULT_TIMEOUT,
    ) -> None:
        self.address = address.rstrip("/")
        self._token = token
        self._timeout = timeout
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
        kwargs["timeout"] = (self._timeout[0], timeout) if timeout else self._timeout
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
    ) -> Any:
        """Sends one request to a model.

        Args:
            model: the name it is registered as.
            data: bytes go as they are, a str as text/plain, anything else as JSON.
            version: a version; None for the model's default one.
            timeout: seconds to wait for the answer.

        Returns:
            The answer's JSON, or its text where it is not JSON.

        Raises:
            ApiError: the answer is not a 2xx, or none came.
        """
        path = f"/predictions/{_quoted(model)}" + (f"/{_quoted(version)}" if version else "")
        if isinstance(data, bytes):
            body, headers = data, {}
        elif isinstance(data, str):
            body, headers = data.encode(), {"Content-Type": "text/plain; charset=utf-8"}
        else:
            body, headers = json.dumps(data).encode(), {"Content-Type": "application/json"}
        response = self._request("POST", path, data=body, headers=headers, timeout=timeout)
        try:
            return response.json()
        except ValueError:
            return response.text


class ManagementClient(_Client):
    """Registers, describes, scales and removes models while the server runs."""

    _token_type: TokenType = "management"

    def list_models(self) -> list[ModelEntry]:
        """All registered models; the server's pages are put together."""
        models: list[ModelEntry] = []
        page: dict[str, Any] = {"nextPageToken": 0}
        while "nextPageToken" in page:
            params = {"limit": 100, "next_page_token": page["nextPageToken"]}
            page = _json(self._request("GET", "/models", params=params))
            models += page["models"]
        return models

    def describe(self, model: str, version: str | None = None) -> ModelDescription:
        """One version of a model (None: its default one), with its workers."""
        path = f"/models/{_quoted(model)}" + (f"/{_quoted(version)}" if version else "")
        answer: list[ModelDescription] = _json(self._request("GET", path))
        return answer[0]

    def describe_all(self, model: str) -> list[ModelDescription]:
        """Every version of a model."""
        answer: list[ModelDescription] = _json(self._request("GET", f"/models/{_quoted(model)}/all"))
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
        wait: bool = True,
        timeout: float = 120,
    ) -> None:
        """Registers an archive of the server's model store (or a URL that it may load).

        Args:
            archive: its file name in the model store; of a path, the last part is taken.
            model: the name to serve it as; None for the archive's own.
            initial_workers: how many workers to start; 0 registers without loading.
            batch_size: how many requests go to the handler at once; needs max_batch_delay in ms.
            max_batch_delay: how long a batch waits to fill up, in ms.
            response_timeout: seconds after which a worker counts as hung.
            wait: return when the workers are READY.
            timeout: seconds to wait.

        Raises:
            ApiError: 405 where the server was not started with model_api=True, 404 where the store
                has no such archive, 409 where that version is there already.
        """
        url = str(archive) if "://" in str(archive) else Path(archive).name
        params = {
            "url": url,
            "model_name": model,
            "initial_workers": initial_workers,
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay,
            "response_timeout": response_timeout,
            "synchronous": str(wait).lower(),
        }
        self._request("POST", "/models", params=params, timeout=timeout)

    def scale(
        self,
        model: str,
        *,
        min_worker: int,
        max_worker: int | None = None,
        version: str | None = None,
        wait: bool = True,
        timeout: float = 120,
    ) -> None:
        """Sets how many workers a model has; each holds its own copy of the model.

        Args:
            model: the name it is registered as.
            min_worker: start workers up to this many.
            max_worker: stop workers down to this many; None for min_worker.
            version: a version; None for the default one.
            wait: return when `min_worker` workers are READY and no more than `max_worker` are left.
            timeout: seconds to wait.

        Raises:
            ApiError: the server refused, or `timeout` passed.
        """
        most = min_worker if max_worker is None else max_worker
        path = f"/models/{_quoted(model)}" + (f"/{_quoted(version)}" if version else "")
        params = {"min_worker": min_worker, "max_worker": most}
        self._request("PUT", path, params=params, timeout=timeout)
        if not wait:
            return
        deadline = time.monotonic() + timeout
        while True:
            workers = self.describe(model, version)["workers"]
            ready = sum(worker["status"] == "READY" for worker in workers)
            if ready >= min_worker and len(workers) <= most:
                return
            if time.monotonic() > deadline:
                raise ApiError(
                    0, "Timeout", f"{ready} of {min_worker} workers were READY after {timeout:g} s."
                )
            time.sleep(0.1)

    def set_default(self, model: str, version: str) -> None:
        """Makes a version the one that /predictions/<model> answers with."""
        self._request("PUT", f"/models/{_quoted(model)}/{_quoted(version)}/set-default")

    def unregister(self, model: str, version: str | None = None) -> None:
        """Removes a version (None: the default one) and stops its workers.

        Raises:
            ApiError: it is not there, it is the default among several, or model_api is off.
        """
        path = f"/models/{_quoted(model)}" + (f"/{_quoted(version)}" if version else "")
        self._request("DELETE", path)


class MetricsClient(_Client):
    """The metrics address, which speaks Prometheus' text format."""

    def scrape(self, name: str | None = None) -> pd.DataFrame:
        """All samples, or those whose name starts with `name`: one row each.

        Returns:
            columns name, labels (a dict), value.
        """
        text = self._request("GET", "/metrics").text
        rows = [
            {"name": sample.name, "labels": dict(sample.labels), "value": sample.value}
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if name is None or sample.name.startswith(name)
        ]
        return pd.DataFrame(rows, columns=["name", "labels", "value"])


def _json(response: requests.Response) -> Any:
    """The answer's JSON; whatever else answers on that port (a proxy, another program) is an ApiError."""
    try:
        return response.json()
    except ValueError as error:
        raise ApiError(0, "NotJson", f"What answers at {response.url} is not TorchServe.") from error


def _quoted(part: str) -> str:
    return quote(str(part), safe="")


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _send(session: requests.Session, method: str, url: str, **kwargs: Any) -> requests.Response:
    """One HTTP call; anything but a 2xx, and no answer at all, is an ApiError."""
    try:
        response = session.request(method, url, **kwargs)
    except requests.Timeout as error:
        raise ApiError(0, "Timeout", f"No answer from {url} within {kwargs['timeout'][1]:g} s.") from error
    except requests.ConnectionError as error:
        raise ApiError(0, "ConnectionError", f"Nothing answers at {url}.") from error
    except (requests.RequestException, ValueError) as error:
        raise ApiError(0, "InvalidRequest", f"{url} can't be asked: {error}.") from error
    if response.ok:
        return response
    try:
        said = response.json()
        kind, message = str(said["type"]), str(said["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = response.reason or "Error", response.text.strip()
    raise ApiError(response.status_code, kind, message)
