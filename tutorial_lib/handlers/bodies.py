"""Makes the requests that check a handler: a sample in each form that clients send, and bodies unlike it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tutorial_lib.worker import contract as worker

_LONG_CHARACTERS, _LONG_ITEMS = 50_000, 500


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
    """One part of a request on the wire: its name, its content type, its bytes."""

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


def check_request(request: Any) -> None:
    """Raises ValueError if a client can't send the request."""
    body, files, _ = request if isinstance(request, Request) else (request, None, None)
    if files is not None:
        if not files or not all(isinstance(part, (bytes, bytearray)) for part in files.values()):
            raise ValueError("files= of a Request is a dict of names and bytes: {'image': b'…'}.")
        if body is not None and not isinstance(body, dict):
            raise ValueError("Beside files=, the body of a Request is a dict of form fields, or None.")
    if isinstance(body, (bytes, bytearray)):
        return
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"A sample is neither JSON, nor text, nor bytes: {error}. Give the body that a client sends; "
            "for multipart or headers, give tutorial_lib.testing.Request(body, files, headers)."
        ) from error


def wire_of(request: Any) -> Wire:
    """Returns a request as a client sends it."""
    body, files, headers = request if isinstance(request, Request) else (request, None, None)
    if files is None:
        return Wire((Part("body", *_encode(body)),), headers or {})
    fields = [
        Part(name, "", value.encode() if isinstance(value, str) else json.dumps(value).encode())
        for name, value in (body or {}).items()
    ]
    parts = [Part(name, "", bytes(content)) for name, content in files.items()]
    return Wire((*fields, *parts), headers or {})


def _encode(body: Any) -> tuple[str, bytes]:
    if isinstance(body, (bytes, bytearray)):
        return "", bytes(body)
    if isinstance(body, str):
        return "text/plain", body.encode()
    return "application/json", json.dumps(body).encode()


def forms(request: Any) -> dict[str, Wire]:
    """Returns a good request in each form in which clients send one of its kind."""
    wire = wire_of(request)
    if len(wire.parts) != 1 or wire.parts[0].name != "body":
        return {"multipart": wire}
    [(_, content_type, body)] = wire.parts
    found = {
        "JSON": Part("body", "application/json", body),
        "text": Part("body", "text/plain", body),
        "bytes": Part("body", "", body),
        "a form field": Part("data", "", body),
        "a JSON form field": Part("data", "application/json", body),
    }
    unlike = {"": ("JSON", "text", "a JSON form field"), "text/plain": ("JSON", "a JSON form field")}
    return {
        name: wire._replace(parts=(part,))
        for name, part in found.items()
        if name not in unlike.get(content_type, ())
    }


def bad_bodies(samples: Sequence[Any]) -> list[BadBody]:
    """Returns bodies unlike the samples, for the first sample of each type."""
    first = {type(sample): sample for sample in reversed(samples)}
    found: dict[Any, BadBody] = {}
    for sample in first.values():
        for bad in _unlike(sample):
            found.setdefault((bad.name, bad.wire.parts), bad)
    return list(found.values())


def _unlike(sample: Any) -> list[BadBody]:
    headers: Mapping[str, str] = {}
    if isinstance(sample, Request):
        headers = sample.headers or {}
        if sample.files is not None:
            return _bad_parts(wire_of(sample))
        sample = sample.body

    def bad(name: str, content_type: str, body: bytes, refused: bool = False) -> BadBody:
        return BadBody(name, Wire((Part("body", content_type, body),), headers), refused)

    foreign = [
        bad("a JSON object", "application/json", b'{"unlike": 1}'),
        bad("null", "application/json", b"null"),
    ]
    if isinstance(sample, (bytes, bytearray)):
        return [
            bad("an empty body", "", b""),
            bad("other bytes", "", bytes(range(256))),
            bad("half a body", "", bytes(sample[: len(sample) // 2])),
            bad("a text", "text/plain", b"a text"),
            *foreign,
        ]
    if isinstance(sample, str):
        long = (sample or "a") * (_LONG_CHARACTERS // max(len(sample), 1))
        return [
            bad("an empty text", "text/plain", b""),
            bad("a very long text", "text/plain", long.encode()),
            bad("not UTF-8", "text/plain", b"\xff\xfe\x00"),
            bad("a JSON list", "application/json", b"[1]"),
            *foreign,
        ]
    refused = {"an empty body": b"", "not JSON": b"{", "not UTF-8": b"\xff\xfe\x00"}
    if sample is not None:
        refused["null"] = b"null"
    if isinstance(sample, (dict, list)):
        refused["a number"] = b"7"
    answered: dict[str, Any] = {
        "nothing in it": type(sample)(),
        "null in place of each value": _replaced(sample, lambda value: None),
        "text in place of each value": _replaced(sample, lambda v: "a" if not isinstance(v, str) else 1),
        "half a surrogate pair": _replaced(sample, lambda v: v + "\ud800" if isinstance(v, str) else v),
        "very long": _lengthened(sample),
    }
    return [bad(name, "application/json", body, refused=True) for name, body in refused.items()] + [
        bad(name, "application/json", json.dumps(value).encode())
        for name, value in answered.items()
        if value != sample
    ]


def _bad_parts(wire: Wire) -> list[BadBody]:
    """Returns the multipart request with one part missing, empty, or of other bytes."""
    found = []
    for index, part in enumerate(wire.parts):
        others = wire.parts[:index], wire.parts[index + 1 :]
        missing = (*others[0], *others[1]) or (Part("unlike", "", b"1"),)
        found.append(BadBody(f"no {part.name}", wire._replace(parts=missing), True))
        for name, body in {"an empty": b"", "other bytes as": bytes(range(256))}.items():
            changed = (*others[0], part._replace(body=body), *others[1])
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
