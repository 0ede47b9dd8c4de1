"""Sends the requests of all clients: a session for each process, access tokens, retries."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from typing import Any, Self

import requests

from tutorial_lib.clients.arguments import check_address, check_seconds, mask, quote_path
from tutorial_lib.clients.tokens import AccessToken, KeyFile, TokenType, tokens_to_try, was_refused
from tutorial_lib.clients.transport import DEFAULT_TIMEOUT, new_session, send
from tutorial_lib.errors import ApiError, NoAnswer, is_retryable

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before a retry
_CHANCE = random.SystemRandom()  # not seeded, so forked processes don't wait equally long


class Client:
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
        connect, answer = timeout
        self._timeout = check_seconds(connect), check_seconds(answer)
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
        self, method: str, path: str, *, timeout: float | None = None, retries: int = 0, **kwargs: Any
    ) -> requests.Response:
        """Makes one call, and makes it again after an error that may pass, up to `retries` times."""
        connect, answer = self._timeout
        kwargs["timeout"] = (connect, answer if timeout is None else check_seconds(timeout))
        for attempt, pause in enumerate(pauses(retries), start=1):
            try:
                return self._authorized(method, path, **kwargs)
            except (ApiError, NoAnswer) as error:
                if not is_retryable(error):
                    raise
                logger.info("%s: %s; retry %d of %d in %.2f s.", path, error.message, attempt, retries, pause)
                time.sleep(pause)
        return self._authorized(method, path, **kwargs)

    def _authorized(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Makes one call; if the access token has expired, makes the call again with a new one."""

        def call(auth: AccessToken | None) -> requests.Response:
            url = f"{self.address}{path}"
            return send(self._session, method, url, auth=auth, verify=self._verify, **kwargs)

        key_file, kind = self._key_file, self._token_type
        if key_file is None:
            return call(self._auth)
        refusal = None
        for token in tokens_to_try(key_file.token(kind), lambda refused: key_file.renew(kind, refused)):
            try:
                return call(AccessToken(token))
            except ApiError as error:
                if not was_refused(error):
                    raise
                refusal = error
        assert refusal is not None
        raise refusal

    def _json(self, method: str, path: str, key: str | int | None = None, **options: Any) -> Any:
        """Makes one call, and returns the answer's JSON.

        Args:
            key: what TorchServe's answer must have: a dict's key, or 0 for a list that is not empty.

        Raises:
            ApiError: a proxy or another program answers on that port.
        """
        response = self._request(method, path, **options)
        try:
            answer = response.json()
            if key is not None:
                answer[key]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise not_torchserve(response) from error
        return answer

    def close(self) -> None:
        """Closes the connections; the next call opens a new one."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pauses(retries: int, chance: random.Random = _CHANCE) -> Iterator[float]:
    """Yields the seconds to wait before each retry: a random part, from half to all, of 0.1, 0.2, 0.4, …, 10.

    >>> [round(pause, 2) for pause in pauses(4, random.Random(1))]
    [0.06, 0.18, 0.35, 0.5]
    """
    for attempt in range(retries):
        yield chance.uniform(0.5, 1) * min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)


def not_torchserve(response: requests.Response) -> ApiError:
    message = f"What answers at {mask(response.url)} is not TorchServe."
    return ApiError(response.status_code, "NotTorchServe", message)


def model_path(model: str, version: str | None = None, of: str = "models") -> str:
    path = f"/{of}/{quote_path('model', model)}"
    return path if version is None else f"{path}/{quote_path('version', version)}"
