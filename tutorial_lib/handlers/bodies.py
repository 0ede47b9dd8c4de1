"""Makes the requests that check a handler: a sample in each form that clients send, and bodies unlike it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tutorial_lib.worker import contract as worker

_JSON, _TEXT = "application/json", "text/plain"
_LONG_CHARACTERS, _LONG_ITEMS = 50_000, 500
_NOT_UTF8 = b"\xff\xfe\x00"
_ALL_BYTES = bytes(range(256))


class Request(NamedTuple):
    """A request with multipart parts, or with headers: for what a plain body can't say.

    Attributes:
        body: a JSON value, a text (str) or bytes; beside `files`, a dict of form fields.
        files: the multipart parts by name, as bytes.
        headers: the request's headers.

    >>> Request({"caption": "a cat"}, files={"image": b"..."}).files["image"]
    b'...'
    """

    body: Any = None
    files: Mapping[str, bytes] | None = None
    headers: Mapping[str, str] | None = None


class Part(NamedTuple):
    """One part of a request on the wire."""

    name: str
    content_type: str
    body: bytes


class Wire(NamedTuple):
    """A request on the wire. A body that is no multipart is one part, "body"."""

    parts: tuple[Part, ...]
    headers: Mapping[str, str]

    def as_batch_item(self, id: str) -> dict[str, Any]:
        """Returns the request as `worker.predict` takes it."""
        return worker.request(id, [worker.parameter(*part) for part in self.parts], self.headers)


class BadBody(NamedTuple):
    """A body unlike the samples. If `refused` is True it must get a 4xx; else it may be answered."""

    name: str
    wire: Wire
    refused: bool


def wire_of(request: Any) -> Wire:
    """Returns a request as a client sends it; raises ValueError if no client can send it."""
    body, files, headers = _as_request(request)
    try:
        if files is None:
            parts = [Part("body", *_encode(body))]
        else:
            parts = [Part(name, "", _encode(value)[1]) for name, value in (body or {}).items()]
            parts += [Part(name, "", bytes(content)) for name, content in files.items()]
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"A sample is neither JSON, nor text, nor bytes: {error}. Give the body that a client sends; "
            "for multipart or headers, give tutorial_lib.testing.Request(body, files, headers)."
        ) from error
    return Wire(tuple(parts), headers or {})


def _as_request(request: Any) -> Request:
    return request if isinstance(request, Request) else Request(request)


def _encode(body: Any) -> tuple[str, bytes]:
    """Returns the content type and the bytes of a body; other than for a client, None is JSON's null."""
    if isinstance(body, (bytes, bytearray)):
        return "", bytes(body)
    if isinstance(body, str):
        return _TEXT, body.encode()
    return _JSON, json.dumps(body, allow_nan=False).encode()


def forms(request: Any) -> dict[str, Wire]:
    """Returns a good request in each form in which clients send one of its kind."""
    wire = wire_of(request)
    if [part.name for part in wire.parts] != ["body"]:
        return {"multipart": wire}
    [(_, content_type, body)] = wire.parts
    found = {
        "JSON": Part("body", _JSON, body),
        "text": Part("body", _TEXT, body),
        "bytes": Part("body", "", body),
        "a form field": Part("data", "", body),
        "a JSON form field": Part("data", _JSON, body),
    }
    unlike = {_JSON: (), _TEXT: ("JSON", "a JSON form field"), "": ("JSON", "text", "a JSON form field")}
    return {
        name: wire._replace(parts=(part,)) for name, part in found.items() if name not in unlike[content_type]
    }


def bad_bodies(samples: Sequence[Any]) -> list[BadBody]:
    """Returns bodies unlike the samples, for the first sample of each type."""
    first = {type(sample): sample for sample in reversed(samples)}
    found: dict[Any, BadBody] = {}
    for bad in (bad for sample in first.values() for bad in _unlike(sample)):
        found.setdefault((bad.name, bad.wire.parts), bad)
    return [*found.values()]


def _unlike(request: Any) -> list[BadBody]:
    wire, sample = wire_of(request), _as_request(request).body
    if _as_request(request).files is not None:
        return _bad_parts(wire)
    [(_, sent_as, sent)] = wire.parts

    def bad(name: str, body: bytes, content_type: str = sent_as, refused: bool = False) -> BadBody:
        return BadBody(name, wire._replace(parts=(Part("body", content_type, body),)), refused)

    if sent_as == _JSON:
        refused = {"an empty body": b"", "not JSON": b"{", "not UTF-8": _NOT_UTF8}
        if sample is not None:
            refused["null"] = b"null"
        if isinstance(sample, (dict, list)):
            refused["a number"] = b"7"
        answered: dict[str, Any] = {
            "nothing in it": type(sample)(),
            "null in place of each value": _replaced(sample, lambda value: None),
            "text in place of each value": _replaced(sample, lambda v: 1 if isinstance(v, str) else "a"),
            "half a surrogate pair": _replaced(sample, lambda v: f"{v}\ud800" if isinstance(v, str) else v),
            "very long": _lengthened(sample),
        }
        return [bad(name, body, refused=True) for name, body in refused.items()] + [
            bad(name, json.dumps(value).encode()) for name, value in answered.items() if value != sample
        ]
    foreign = [bad("a JSON object", b'{"unlike": 1}', _JSON), bad("null", b"null", _JSON)]
    if sent_as == _TEXT:
        return [
            bad("an empty text", b""),
            bad("a very long text", _lengthened(sample or "a").encode()),
            bad("not UTF-8", _NOT_UTF8),
            bad("a JSON list", b"[1]", _JSON),
            *foreign,
        ]
    return [
        bad("an empty body", b""),
        bad("other bytes", _ALL_BYTES),
        bad("half a body", sent[: len(sent) // 2]),
        bad("a text", b"a text", _TEXT),
        *foreign,
    ]


def _bad_parts(wire: Wire) -> list[BadBody]:
    """Returns the multipart request with one part missing, empty, or of other bytes."""
    found = []
    for index, part in enumerate(wire.parts):
        before, after = wire.parts[:index], wire.parts[index + 1 :]
        missing = before + after or (Part("unlike", "", b"1"),)
        found.append(BadBody(f"no {part.name}", wire._replace(parts=missing), True))
        for name, body in {"an empty": b"", "other bytes as": _ALL_BYTES}.items():
            changed = (*before, part._replace(body=body), *after)
            found.append(BadBody(f"{name} {part.name}", wire._replace(parts=changed), False))
    return found


def _replaced(value: Any, replace: Callable[[Any], Any]) -> Any:
    """Returns the same structure with each innermost value replaced."""
    if isinstance(value, dict):
        return {key: _replaced(item, replace) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, replace) for item in value]
    return replace(value)


def _lengthened(value: Any) -> Any:
    """Makes each text, and each list of texts or numbers, many times as long."""
    if isinstance(value, dict):
        return {key: _lengthened(item) for key, item in value.items()}
    if isinstance(value, str):
        return value * (_LONG_CHARACTERS // max(len(value), 1))
    if isinstance(value, list) and value:
        nested = isinstance(value[0], (dict, list))
        return [_lengthened(item) for item in value] if nested else value * (_LONG_ITEMS // len(value) + 1)
    return value
