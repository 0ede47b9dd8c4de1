"""Registers, describes, scales and removes models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, get_args

from tutorial_lib.clients.arguments import MAXIMUM, check_int, check_seconds, invalid_argument, quote_path
from tutorial_lib.clients.client import Client, model_path
from tutorial_lib.clients.shapes import ModelDescription, ModelEntry, ModelPage, Status
from tutorial_lib.clients.tokens import TokenType
from tutorial_lib.errors import ApiError, TimedOut, is_stop_during_batch

Runtime = Literal["python", "python3", "LSP"]

_PAGE = 100  # models on a page of the list; TorchServe returns no more, even for a higher limit


class ManagementClient(Client):
    """Registers, describes, scales and removes models while the server runs.

    Every call raises ApiError if the server refuses the call, and NoAnswer if it does not answer. It raises
    ValueError, before anything is sent, for a name, version or number that TorchServe would take for another
    one.

    >>> ManagementClient("http://127.0.0.1:8081").address
    'http://127.0.0.1:8081'
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
        params = {
            "limit": check_int("limit", limit, 1, _PAGE),
            "next_page_token": check_int("next_page_token", int(next_page_token), 0, MAXIMUM - _PAGE),
        }
        page: ModelPage = self._json("GET", "/models", "models", params=params)
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
        answer: list[ModelDescription] = self._json("GET", model_path(model, version), 0, params=params)
        return answer[0]

    def describe_all(self, model: str) -> list[ModelDescription]:
        """Describes every version of a model."""
        answer: list[ModelDescription] = self._json("GET", f"{model_path(model)}/all", 0)
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
            wait: return when the workers are READY.
            timeout: seconds to wait.

        Raises:
            ApiError: 405 if the server was not started with model_api=True, 404 if the store has no such
                archive, 409 if that version is registered already.
        """
        path = Path(archive)
        as_it_is = "://" in str(archive) or (path.is_absolute() and path.is_dir())
        url = str(archive) if as_it_is else path.name
        if not url:
            raise invalid_argument("archive", archive, "Give the file name of an archive in the model store.")
        if runtime is not None and runtime not in get_args(Runtime):
            raise invalid_argument("runtime", runtime, f"Give one of {', '.join(get_args(Runtime))}.")
        numbers = {
            "initial_workers": (initial_workers, 0),
            "batch_size": (batch_size, 1),
            "max_batch_delay": (max_batch_delay, 0),
            "response_timeout": (response_timeout, 1),
            "startup_timeout": (startup_timeout, 1),
        }
        params = {
            "url": url,
            "model_name": None if model is None else quote_path("model", model),
            **{name: check_int(name, n, least) for name, (n, least) in numbers.items() if n is not None},
            "handler": handler,
            "runtime": runtime,
            "synchronous": str(wait).lower(),
        }
        status: Status = self._json("POST", "/models", "status", params=params, timeout=timeout)
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
            ApiError: the server refused.
            TimedOut: not enough workers were READY in time.
        """
        minimum = check_int("min_worker", min_worker, 0)
        maximum = minimum if max_worker is None else check_int("max_worker", max_worker, 0)
        if maximum < minimum:
            raise invalid_argument("max_worker", maximum, f"Give at least min_worker, which is {minimum}.")
        deadline = time.monotonic() + check_seconds(timeout)
        params = {"min_worker": minimum, "max_worker": maximum}
        path = model_path(model, version)
        while True:
            try:
                status: Status = self._json("PUT", path, "status", params=params, timeout=timeout)
                break
            except ApiError as error:
                if not is_stop_during_batch(error) or time.monotonic() > deadline:
                    raise
                # The worker that TorchServe was stopping is off its list; the others need one more call.
                time.sleep(0.1)
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
        path = f"{model_path(model)}/{quote_path('version', version)}/set-default"
        status: Status = self._json("PUT", path, "status")
        return status

    def unregister(self, model: str, version: str | None = None) -> Status:
        """Removes a version (None: the default one) and stops its workers.

        Requests for it get errors. Under load TorchServe 0.12 may answer with a 500, and leave workers of the
        removed version running until the server stops; so let its last requests end first.

        Raises:
            ApiError: 404 if the version is not there, 403 if it is the default among several, 405 if
                model_api is off; 500 if TorchServe stumbled over a busy worker.
        """
        status: Status = self._json("DELETE", model_path(model, version), "status")
        return status
