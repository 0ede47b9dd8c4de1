"""Makes the bodies of requests, and reads those of answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from typing import Any, NamedTuple

import requests

from tutorial_lib.clients.arguments import invalid_argument

_PART_ADVICE = (
    'Give at least one part, as {"data": open(path, "rb")} or {"data": b"…"}; for several parts of one name '
    'a list of them; for a part with a file name a tuple, as ("cat.png", b"…"). A text may mean a path: '
    "read the file, or give the text in data=, as a field."
)
_FIELD_ADVICE = "Beside files, give a dict of form fields: texts, bytes or numbers, or lists of them."


class Body(NamedTuple):
    """A request's body, ready to be sent, and its content type; None sends no content type."""

    content: bytes
    content_type: str | None


def decode(content: bytes, content_type: str | None) -> Any:
    """Decodes an answer's body: JSON, else text, else bytes.

    TorchServe sends a content type only if the handler set one. If there is none (or
    "application/octet-stream"), the bytes decide. A body of another type, as image/png, stays bytes.

    >>> decode(b'["Positive"]', None), decode(b'["Positive"]', "text/plain"), decode(b"\\x89PNG", None)
    (['Positive'], '["Positive"]', b'\\x89PNG')
    """
    header = Message()
    header["Content-Type"] = content_type or "application/octet-stream"
    media_type = header.get_content_type()
    unknown = media_type == "application/octet-stream" or "/" not in (content_type or "/")
    may_be_json = unknown or media_type.endswith("json")
    if not (may_be_json or media_type.startswith("text/") or media_type.endswith("xml")):
        return content
    try:
        text = content.decode(header.get_content_charset("utf-8"))
    except (UnicodeDecodeError, LookupError):
        return content
    if may_be_json:
        try:
            return json.loads(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError):
            pass
    return content if unknown and "\0" in text else text


def encode(data: Any = None, files: Mapping[str, Any] | None = None) -> Body:
    """Makes a request's body from the arguments of `predict`.

    Raises:
        ValueError: the data or the files can't be sent.

    >>> encode({"input": ["a"]})
    Body(content=b'{"input": ["a"]}', content_type='application/json')
    """
    if files is not None:
        return _multipart(data, files)
    if hasattr(data, "read"):
        data = data.read()
    if isinstance(data, bytes | bytearray | memoryview):
        return Body(bytes(data), None)
    try:
        if isinstance(data, str):
            return Body(data.encode(), "text/plain; charset=utf-8")
        if data is not None:
            return Body(json.dumps(data).encode(), "application/json")
    except (TypeError, ValueError, RecursionError):  # ValueError: half of a surrogate pair, a cycle
        pass
    advice = 'Give bytes, a text, or what JSON can hold (of an array, .tolist()); b"" sends an empty body.'
    raise invalid_argument("data", data, advice)


def _multipart(data: Any, files: Mapping[str, Any]) -> Body:
    """Reads and encodes the files once, so that a second attempt sends the same."""
    parts = list(_pairs("files", files, _is_part, _PART_ADVICE))
    if not parts:
        raise invalid_argument("files", files, _PART_ADVICE)
    fields = list(_pairs("data", {} if data is None else data, _is_field, _FIELD_ADVICE))
    request = requests.Request("POST", "http://localhost", data=fields, files=parts).prepare()
    assert isinstance(request.body, bytes)
    return Body(request.body, request.headers["Content-Type"])


def _pairs(
    what: str, given: Any, is_right: Callable[[object], bool], advice: str
) -> Iterator[tuple[str, Any]]:
    """Yields name and value of each part or field; raises ValueError for what would be lost or misread."""
    if not isinstance(given, Mapping):
        raise invalid_argument(what, given, advice)
    for name, values in given.items():
        values = values if isinstance(values, list) else [values]
        if not values or not isinstance(name, str) or not all(map(is_right, values)):
            raise invalid_argument(what, given, advice)
        for value in values:
            yield name, bytes(value) if isinstance(value, bytearray | memoryview) else value


def _is_part(value: object) -> bool:
    """Returns whether `requests` reads it as one part; a lone str may be meant as a path."""
    if isinstance(value, tuple):
        name, content = value[:2] if 2 <= len(value) <= 4 else ((), None)
        return isinstance(name, str | None) and (isinstance(content, str) or _is_part(content))
    return isinstance(value, bytes | bytearray | memoryview) or callable(getattr(value, "read", None))


def _is_field(value: object) -> bool:
    return isinstance(value, str | bytes | bytearray | memoryview | int | float)
