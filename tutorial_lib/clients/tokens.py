"""Reads, renews and sends access tokens."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import requests
from requests.auth import AuthBase

from tutorial_lib.clients.arguments import mask
from tutorial_lib.clients.transport import DEFAULT_TIMEOUT, new_session, send
from tutorial_lib.errors import ApiError, NoKeyFile

logger = logging.getLogger(__name__)

TokenType = Literal["inference", "management"]

_MARGIN = timedelta(seconds=1)  # before it expires, a token is renewed: a request takes a moment to arrive
_MOST_RENEWALS = 3

# Not a field of KeyFile, which may be copied; one for each process, since a fork may copy it locked.
_RENEWING: dict[int, threading.Lock] = {}


class AccessToken(AuthBase):
    """An access token, in requests' own form of authentication, which .netrc never replaces."""

    def __init__(self, token: str) -> None:
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]+( +[!-~]+)*", token):
            raise ValueError("That can't be a token. Take the one of key_file.json, as a text.")
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def was_refused(error: ApiError) -> bool:
    """Returns whether TorchServe refused the access token."""
    return error.kind == "InvalidKeyException"


def tokens_to_try(token: str, renew: Callable[[str], str]) -> Iterator[str]:
    """Yields the access token of a request, and after each refusal the one to send next.

    Another process may renew the token between two steps of this one, so a new one may be refused too.

    Args:
        token: the current token.
        renew: returns a token to use in place of a refused one.

    >>> list(tokens_to_try("old", lambda refused: "new"))
    ['old', 'new', 'new']
    """
    for _ in range(_MOST_RENEWALS):
        yield token
        refused, token = token, renew(token)
        if token == refused:
            break
    yield token


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

    >>> KeyFile(Path("key_file.json"), "http://127.0.0.1:8081").path.name
    'key_file.json'
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
        url, auth = f"{self.management_address}/token", AccessToken(self._read("API")[0])
        options: dict[str, Any] = {"timeout": DEFAULT_TIMEOUT, "verify": self.verify}
        with new_session(url) as session:
            send(session, "GET", url, params={"type": kind}, auth=auth, **options)
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
