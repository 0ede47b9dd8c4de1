"""What multipart files and fields become, and what is refused since it would be lost or misread."""

from __future__ import annotations

import io
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from tutorial_lib.clients import encode

Part = tuple[str, str | None, bytes]  # name, file name, content


def parts(body: Any) -> list[Part]:
    head = f"Content-Type: {body.content_type}\r\n\r\n".encode()
    found = []
    for part in message_from_bytes(head + body.content).get_payload():
        assert not isinstance(part, str)
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(name, str) and isinstance(content, bytes)
        found.append((name, part.get_filename(), content))
    return found


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": b"1"}, [("a", "a", b"1")]),
        ({"a": bytearray(b"1")}, [("a", "a", b"1")]),
        ({"a": memoryview(b"1")}, [("a", "a", b"1")]),
        ({"a": io.BytesIO(b"1")}, [("a", "a", b"1")]),
        ({"a": b""}, [("a", "a", b"")]),
        ({"a": [b"1"]}, [("a", "a", b"1")]),
        ({"a": [b"1", b"2"]}, [("a", "a", b"1"), ("a", "a", b"2")]),
        ({"a": [b"1", b"2", b"3", b"4", b"5"]}, [("a", "a", b"%d" % i) for i in range(1, 6)]),
        ({"a": [bytearray(b"1"), io.BytesIO(b"2")]}, [("a", "a", b"1"), ("a", "a", b"2")]),
        ({"a": [("x.png", b"1"), ("y.png", b"2")]}, [("a", "x.png", b"1"), ("a", "y.png", b"2")]),
        ({"a": [b"1", b"2"], "b": b"3"}, [("a", "a", b"1"), ("a", "a", b"2"), ("b", "b", b"3")]),
        ({"a": ("x.png", b"1")}, [("a", "x.png", b"1")]),
        ({"a": ("x.png", bytearray(b"1"))}, [("a", "x.png", b"1")]),
        ({"a": ("x.csv", "1,2")}, [("a", "x.csv", b"1,2")]),  # after a file name, a text is content
        ({"a": (None, "{}", "application/json")}, [("a", None, b"{}")]),
        ({"a": ("x.png", io.BytesIO(b"1"), "image/png", {"X-A": "b"})}, [("a", "x.png", b"1")]),
    ],
)
def test_every_part_is_sent(files: dict[str, Any], expected: list[Part]) -> None:
    assert parts(encode(files=files)) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("cat.png", "", ["cat.png", "dog.png"], [b"1", "dog.png"], Path("cat.png"), [Path("cat.png")]),
        *(None, [], [None], [b"1", None], [[b"1"]], (), (b"1",), (b"1", b"2"), ["x", b"1"]),
        *(("x.png", None), ("x.png", 3), ("x.png", Path("cat.png")), ("x.png", (b"1", b"2"))),
        *(
            ("x.png", [b"1", b"2"]),
            (3, b"1"),
            ("a", b"1", "b", {}, 5),
            3,
            True,
            {"x.png": b"1"},
            {b"1", b"2"},
        ),
        iter([b"1", b"2"]),
    ],
)
def test_what_would_be_lost_or_misread_is_told(value: Any) -> None:
    for files in ({"a": value}, {"right": b"1", "a": value}):
        with pytest.raises(
            ValueError, match=r"files is .*Give at least one part, .* several parts .* file name"
        ):
            encode(files=files)


@pytest.mark.parametrize("files", [{}, [("a", b"1")], b"1", "cat.png", [b"1", b"2"], {1: b"1"}, {b"a": b"1"}])
def test_files_are_a_dict_of_names(files: Any) -> None:
    with pytest.raises(ValueError, match="Give at least one part"):
        encode(files=files)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"top": "3"}, [b"3"]),
        ({"top": 3}, [b"3"]),
        ({"top": 0.5}, [b"0.5"]),
        ({"top": b"\xff"}, [b"\xff"]),
        ({"top": bytearray(b"89")}, [b"89"]),
        ({"top": ["a", "b"]}, [b"a", b"b"]),
        ({"top": ["a", 1, b"2"]}, [b"a", b"1", b"2"]),
        ({"top": "Straße"}, ["Straße".encode()]),
        ({}, []),
        (None, []),
    ],
)
def test_every_field_is_sent_beside_files(fields: Any, expected: list[bytes]) -> None:
    found = parts(encode(fields, files={"data": b"1"}))
    assert found == [*(("top", None, one) for one in expected), ("data", "data", b"1")]


@pytest.mark.parametrize("value", [None, {"a": 1}, {1, 2}, [], [None], [["a"]], ("a", "b"), io.BytesIO(b"1")])
def test_a_field_that_would_be_lost_or_misread_is_told(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"data is .*Beside files, give a dict of form fields: texts, bytes or"
    ):
        encode({"top": value}, files={"data": b"1"})
