"""Request bodies without a server; tests/test_ray_app.py compares the same kinds with TorchServe."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="pip install '.[ray]'")

from tutorial_lib.ray_app.bodies import read_body

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=abc"
PART = b'--abc\r\nContent-Disposition: form-data; name="data"\r\n\r\n'


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/json", b'{"a": 1}', [("body", {"a": 1})]),
        ("application/json; charset=utf-8", b"[1]", [("body", [1])]),
        ("application/json", b"{", [("body", b"{")]),
        ("text/plain", "ü".encode(), [("body", "ü")]),
        ("", b"\xff", [("body", b"\xff")]),
        ("multipart/form-data", b"no boundary", [("body", b"no boundary")]),
        (FORM, b"a=1&b=%C3%BC+x&a=2", [("a", b"1"), ("b", "ü x".encode()), ("a", b"2")]),
        (FORM, b"a=1&c", [("a", b"1")]),
        (FORM, b"a=1\nb&c=2", [("a", b"1")]),
        (FORM, b"", []),
        (MULTIPART, PART + b"good\r\n--abc--\r\n", [("data", b"good")]),
        (MULTIPART, PART + b"cut o", []),
        (MULTIPART, b"nothing of it", []),
    ],
)
def test_bodies_become_parameters(content_type: str, body: bytes, expected: list[tuple[str, object]]) -> None:
    assert [(part["name"], part["value"]) for part in read_body(content_type, body)] == expected


@pytest.mark.parametrize("body", [b"a=%", b"a=%zz", b"%4=a"])
def test_a_percent_sign_that_encodes_nothing_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="Bad string: "):
        read_body(FORM, body)
