"""Reads request bodies as TorchServe does: forms become their fields, any other body is one parameter."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from tutorial_lib.extras import extra
from tutorial_lib.worker import contract as worker

with extra("ray", "tutorial_lib.ray_app"):
    import python_multipart
    from python_multipart.exceptions import FormParserError


def read_body(content_type: str, body: bytes) -> list[dict[str, Any]]:
    """Returns the parameters of a request, as `worker.request` takes them.

    Raises:
        ValueError: a form has a "%" without two hexadecimal digits after it.

    >>> form = read_body("application/x-www-form-urlencoded", b"data=a+b&n=1")
    >>> [(part["name"], bytes(part["value"])) for part in form]
    [('data', b'a b'), ('n', b'1')]
    """
    mime, _, options = (part.strip() for part in content_type.partition(";"))
    if mime.lower() == "application/x-www-form-urlencoded":
        return [worker.parameter(name, "", value) for name, value in _urlencoded(body)]
    if mime.lower() == "multipart/form-data" and "boundary=" in options:
        return _multipart(content_type, body)
    return [worker.parameter("body", mime, body)]


def _urlencoded(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields fields as TorchServe's Netty decoder reads them: a line end in a value ends the whole form."""
    *fields, last = body.split(b"&")
    for field in fields + ([last] if b"=" in last else []):  # Netty drops a last field without "="
        name, _, rest = field.partition(b"=")
        value, *more_lines = re.split(rb"\r?\n", rest, maxsplit=1)
        text = _unquote(name).decode("utf-8", errors="replace")
        yield re.sub(r"[\r\t]", " ", text).replace("\n", "").strip(), _unquote(value)
        if more_lines:
            return


def _unquote(part: bytes) -> bytes:
    if re.search(rb"%(?![0-9A-Fa-f]{2})", part):
        raise ValueError(f"Bad string: '{part.decode('utf-8', errors='replace')}'")
    return unquote_to_bytes(part.replace(b"+", b" "))


def _multipart(content_type: str, body: bytes) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []

    def add(name: bytes | None, kind: str | None, value: bytes | None) -> None:
        parts.append(worker.parameter((name or b"").decode("utf-8", "replace"), kind or "", value or b""))

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.content_type, file.file_object.read())

    with contextlib.suppress(FormParserError):  # the parts before a fault are kept
        python_multipart.parse_form(
            {"Content-Type": content_type.encode()},
            io.BytesIO(body),
            lambda field: add(field.field_name, None, field.value),
            on_file,
        )
    return parts
