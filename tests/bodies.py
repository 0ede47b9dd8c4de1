"""Request bodies, good, odd and bad, for the real server and for the handler alone."""

from __future__ import annotations

import json
from typing import NamedTuple

GOOD = {"input": ["I love this!", "this is awful"]}
RIGHT = ["Positive", "Negative"]


class Case(NamedTuple):
    """A body, and how many labels it gets; None: it is refused with a 400 and a sentence."""

    name: str
    body: bytes
    labels: int | None = None


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


CASES = [
    Case("not JSON", b"{"),
    Case("plain text", b"hello"),
    Case("nested too deep", b"[" * 100_000),
    Case("invalid UTF-8", b"\xff\xfe\x00"),
    Case("invalid UTF-8 in a text", b'{"input": ["\xff"]}'),
    Case("a list", b"[1]"),
    Case("a string", b'"a"'),
    Case("a number", b"7"),
    Case("null", b"null"),
    Case("no input", b"{}"),
    Case("a misspelt input", _json({"inputs": ["a"]})),
    Case("input: a string", _json({"input": "a text"})),
    Case("input: a number", _json({"input": 1})),
    Case("input: null", _json({"input": None})),
    Case("input: a non-string in the list", _json({"input": ["a", 1]})),
    Case("scores: neither true nor false", _json({"input": ["a"], "scores": "yes"})),
    Case("10,000 texts", _json({"input": ["a"] * 10_000})),
    Case("an empty list", _json({"input": []}), 0),
    Case("an empty string", _json({"input": [""]}), 1),
    Case("10,000 characters", _json({"input": ["a" * 10_000, "a b " * 2_500]}), 2),
    Case("emoji, RTL, NUL, half a pair", _json({"input": ["😍👎" * 25, "שלום עולם", "a\x00b", "\ud800"]}), 4),
    Case("nothing but space", _json({"input": [" ", "\n\n"]}), 2),
]
