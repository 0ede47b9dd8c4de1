"""Checks what a server would misread, before anything is sent, and hides secrets in messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Real
from urllib.parse import quote, urlsplit

from requests.structures import CaseInsensitiveDict
from requests.utils import check_header_validity

# TorchServe reads numbers as Java ints. If it can't read a number, it silently takes its default.
MAXIMUM = 2**31 - 1
_ENDPOINTS = ("predictions", "ping", "models", "metrics", "token")


def mask(text: str) -> str:
    """Returns a text with a URL, without its user, password and query: an error must not show secrets.

    >>> mask("http://me:password@host/models?token=abc")
    'http://…@host/models?…'
    """
    text = re.sub(r"(?s)^(.*?://)?.*@", r"\1…@", text)
    return re.sub(r"(?s)[?#].*", "?…", text)


def invalid_argument(what: str, value: object, advice: str) -> ValueError:
    return ValueError(f"{what} is {value!r:.100}. {advice}")


def quote_path(what: str, value: str) -> str:
    """Quotes a name or version as one part of a URL's path.

    An empty name or ".." would change the endpoint. TorchServe registers "a/b", and can then neither
    describe nor remove it.

    >>> quote_path("model", "a b")
    'a%20b'
    """
    if isinstance(value, str) and value.strip(".") and "/" not in value:
        return quote(value, safe="")
    raise invalid_argument(what, value, 'Give a text that is not empty, has no "/", and is more than dots.')


def check_int(what: str, value: int, minimum: int, maximum: int = MAXIMUM) -> int:
    """Returns the value if it is a whole number in this range.

    >>> check_int("limit", 7, 1, 100)
    7
    """
    if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
        return value
    raise invalid_argument(what, value, f"Give a whole number from {minimum} to {maximum}.")


def check_seconds(timeout: float) -> float:
    if isinstance(timeout, Real) and 0 < timeout < 1e6:
        return float(timeout)
    raise invalid_argument("timeout", timeout, "Give a number of seconds above 0, a million at most.")


def check_url(url: str, what: str = "address") -> str:
    """Returns the URL if it is a server's.

    >>> check_url("http://127.0.0.1:8080")
    'http://127.0.0.1:8080'
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username:
            return url
    except (AttributeError, ValueError):  # no text; a port that is no number
        pass
    raise _invalid_url(what, url, 'Give http:// or https://, a host and a port, as "http://127.0.0.1:8080".')


def _invalid_url(what: str, url: str, advice: str) -> ValueError:
    if "@" in str(url):
        advice += " Leave user and password out: the client takes an access token with token=."
    return ValueError(f"{what} is {mask(repr(url)):.100}. {advice}")


def check_address(address: str) -> str:
    """Returns the address without a slash at its end. It may have a path: a gateway's, or Ray's."""
    parts = urlsplit(check_url(address))
    if endpoint := next((name for name in _ENDPOINTS if name in parts.path.split("/")), None):
        raise _invalid_url("address", address, f"Leave /{endpoint} out: the client adds it.")
    if parts.query or parts.fragment:
        raise _invalid_url("address", address, "Leave out what follows '?' or '#'.")
    return address.rstrip("/")


def check_headers(headers: Mapping[str, str] | None, content_type: str | None) -> Mapping[str, str]:
    """Returns the headers to send: the caller's win over the content type of the data.

    No message shows a value: a header may be a secret.
    """
    checked = CaseInsensitiveDict({"Content-Type": content_type} if content_type else {})
    for name, value in dict(headers or {}).items():
        if not isinstance(value, str):
            raise TypeError(f"headers has no text at {name!r}. Give names and values as texts.")
        try:
            check_header_validity((name, value))
            value.encode("latin-1")
        except ValueError:
            raise ValueError(
                f"A server can't be asked with this value of the header {name!r}: it begins with a blank, or "
                "has a line end, or letters that are not of Latin-1."
            ) from None
        checked[name] = value
    if "Authorization" in checked:
        raise ValueError(
            "headers has an Authorization. Give the access token with token= when you make the client."
        )
    return checked
