"""Checks what callers of the clients give, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    try:
        if isinstance(value, str) and value.strip(".") and "/" not in value:
            return quote(value, safe="")
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise invalid_argument(what, value, 'Give a text that is not empty, has no "/", and is more than dots.')


def check_int(what: str, value: object, minimum: int, maximum: int = MAXIMUM) -> int:
    """Returns the value if it is a whole number in this range; else raises ValueError.

    >>> check_int("limit", 0, 1, 100)
    Traceback (most recent call last):
    ValueError: limit is 0. Give a whole number from 1 to 100.
    """
    if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
        return value
    raise invalid_argument(what, value, f"Give a whole number from {minimum} to {maximum}.")


def check_url(url: str, what: str = "address") -> str:
    """Returns the URL if it is a server's; else raises ValueError.

    >>> check_url("127.0.0.1:8080")
    Traceback (most recent call last):
    ValueError: address is '127.0.0.1:8080'. Give http:// or https://, a host and a port, ...
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username:
            return url
    except (ValueError, TypeError, AttributeError):  # ValueError: a port that is no number
        pass
    advice = 'Give http:// or https://, a host and a port, as "http://127.0.0.1:8080".'
    raise _invalid_url(what, url, advice)


def _invalid_url(what: str, url: object, advice: str) -> ValueError:
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


def check_timeouts(timeout: tuple[float, float]) -> tuple[float, float]:
    try:
        connect, answer = timeout
    except (TypeError, ValueError):
        advice = "Give two numbers: seconds to connect, and seconds to wait for an answer."
        raise invalid_argument("timeout", timeout, advice) from None
    return check_seconds(connect), check_seconds(answer)


def check_seconds(timeout: float) -> float:
    try:
        if 0 < timeout < 1e6 and not isinstance(timeout, bool):
            return float(timeout)
    except TypeError:
        pass
    raise invalid_argument("timeout", timeout, "Give a number of seconds above 0, a million at most.")


def check_headers(headers: Mapping[str, str] | None, content_type: str | None) -> Mapping[str, str]:
    """Returns the headers to send: the caller's win over the content type of the data."""
    checked = CaseInsensitiveDict({"Content-Type": content_type} if content_type else {})
    try:
        given = dict(headers or {})
        if not all(isinstance(text, str) for pair in given.items() for text in pair):
            raise TypeError
    except (TypeError, ValueError):
        advice = 'Give names and values as texts, as {"X-Request-Id": "7"}.'
        has_secrets = hasattr(headers, "__iter__")
        names = dict.fromkeys(headers, "…") if isinstance(headers, Mapping) else type(headers)
        raise invalid_argument("headers", names if has_secrets else headers, advice) from None
    for name, value in given.items():
        try:
            check_header_validity((name, value))
            value.encode("latin-1")
        except ValueError:
            raise ValueError(
                f"A server can't be asked with this value of the header {name!r}: it begins with a blank, or "
                "has a line end, or letters that are not of Latin-1.",
            ) from None
    checked.update(given)
    if "Authorization" in checked:
        advice = "Give the access token with token= when you make the client."
        raise ValueError(f"headers has an Authorization. {advice}")
    return checked
