"""Sends one HTTP request: sessions, access tokens, proxies, redirects, and what failed."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import requests

from tutorial_lib.clients.arguments import mask
from tutorial_lib.errors import (
    AnswerBrokeOff,
    ApiError,
    ConnectionFailed,
    NoAnswer,
    TimedOut,
    TlsError,
    TutorialError,
)

# (seconds to connect, seconds to wait for an answer). A worker may take responseTimeout, 120 s.
DEFAULT_TIMEOUT = (5.0, 125.0)

_LOOPBACK_NAMES = ("localhost", "ip6-localhost", "ip6-loopback")  # also where no hosts file has them


class _Session(requests.Session):
    """A session that keeps access token and body from a redirect to another host or port."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        # requests would now look into .netrc, and send its entry in place of the access token.
        strip: bool = self.should_strip_auth(response.request.url, prepared_request.url)  # type: ignore[no-untyped-call]
        if not strip:
            return
        if response.request.method != "GET":
            target = mask(str(prepared_request.url))
            raise ApiError(
                response.status_code,
                "Redirected",
                f"{mask(response.url)} redirects to {target}, another host or port. The request was not sent "
                "there, since whoever answers there would get its body. Give the client that address if you "
                "trust it.",
            )
        prepared_request.headers.pop("Authorization", None)


def new_session(address: str) -> requests.Session:
    """Returns a session; on loopback, it ignores the environment's proxies and .netrc."""
    session = _Session()
    session.trust_env = not _is_loopback(address)
    return session


def _is_loopback(address: str) -> bool:
    """Returns whether an address is this machine's own, however it is spelled.

    >>> [_is_loopback(f"http://{host}:80") for host in ("127.1", "localhost", "[::1]", "10.0.0.1")]
    [True, True, True, False]
    """
    host = (urlsplit(address).hostname or "").rstrip(".")
    if host in _LOOPBACK_NAMES or host.endswith(".localhost"):
        return True
    try:
        found = {ipaddress.ip_address(str(entry[4][0])) for entry in socket.getaddrinfo(host, None)}
    except (OSError, ValueError):  # ValueError: a name that can't be one of a host
        return False
    found = {getattr(ip, "ipv4_mapped", None) or ip for ip in found}
    return all(ip.is_loopback or ip.is_unspecified for ip in found)


def send(session: requests.Session, method: str, url: str, **kwargs: Any) -> requests.Response:
    """Makes one HTTP call; raises ApiError for an answer other than a 2xx, NoAnswer for none."""
    try:
        response = session.request(method, url, **kwargs)
        if response.ok:
            return response
        raise error_answer(response.status_code, response.content, response.reason)
    except (OSError, ValueError) as error:  # OSError: a RequestException, or a missing certificate file
        cause = error if mask(str(error)) == str(error) else None  # a traceback shows the cause's text too
        raise no_answer(error, url, kwargs["timeout"][1]) from cause


def parts_of(response: requests.Response, lines: bool, timeout: float, process: int) -> Iterator[bytes]:
    """Yields the parts of an answer as they come, in the process that asked for it."""
    with response:  # closes it even if the caller leaves early
        try:
            _check_process(process)
            # chunk_size=None: each chunk as it arrives, however short
            for part in response.iter_lines(None) if lines else response.iter_content(None):
                yield part
                _check_process(process)
        except OSError as error:
            raise no_answer(error, response.url, timeout) from error


def _check_process(asked: int) -> None:
    if os.getpid() != asked:
        message = "This stream belongs to the process that was forked. Send a request of this process's own."
        raise TutorialError(message)


def error_answer(status: int, content: bytes, reason: str = "") -> ApiError:
    """Returns the error in an answer that is not a 2xx, from TorchServe's JSON or any other body.

    >>> error_answer(404, b'{"code": 404, "type": "ModelNotFoundException", "message": "Model not found: m"}')
    ApiError('404 ModelNotFoundException: Model not found: m. Is the name right, ...')
    """
    try:
        answer = json.loads(content)
        kind, message = str(answer["type"]), str(answer["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ApiError(status, reason or "Error", content.decode(errors="replace").strip())
    # TorchServe quotes the URL of an archive, which may have a password or a signature.
    return ApiError(status, kind, re.sub(r"\S+://\S+", lambda url: mask(url[0]), message))


def no_answer(error: OSError | ValueError, url: str, timeout: float) -> NoAnswer:
    """Returns the error for a request that `requests` could not finish."""
    url = mask(url)
    # While requests reads a body, it raises a timeout as a ConnectionError.
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return TimedOut(f"No answer from {url} within {timeout:g} s.")
    if isinstance(error, requests.exceptions.SSLError):
        return TlsError(f"{url} was not asked: {mask(str(error.args[0]))}")
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
        return AnswerBrokeOff(f"The answer from {url} broke off.")
    if isinstance(error, requests.ConnectionError):
        return ConnectionFailed(f"Nothing answers at {url}.")
    return NoAnswer(f"{url} can't be asked: {mask(str(error))}.")
