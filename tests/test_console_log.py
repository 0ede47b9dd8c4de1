"""The console log: cut when it is too large, and read from its end or from a place in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutorial_lib.servers import console_log
from tutorial_lib.servers.console_log import limit_size, older_part, read_since, read_tail


def test_a_log_is_cut_while_another_process_appends_to_it(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    with log.open("a", buffering=1) as server:
        server.write("one\ntwo\n")
        seen = log.stat().st_size
        limit_size(log, limit=100)
        assert not older_part(log).exists()  # it is not too large
        server.write("three\n")
        limit_size(log, limit=10)
        server.write("four\n")
    assert log.read_text() == "four\n" and older_part(log).read_text() == "one\ntwo\nthree\n"
    assert read_tail(log) == "one\ntwo\nthree\nfour\n"
    assert read_since(log, seen) == "three\nfour\n"
    assert read_since(log, 0) == "four\n"


def test_the_older_part_is_replaced_and_limited_too(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    older_part(log).write_text("of last week\n")
    log.write_bytes(b"x" * 1000)
    limit_size(log, limit=100)
    assert log.stat().st_size == 0 and older_part(log).stat().st_size == 200


def test_a_log_is_cut_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * 1000)
    limit_size(log, limit=100)
    assert log.stat().st_size == 0


def test_only_the_end_of_a_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_log, "_TAIL", 6)
    log = tmp_path / "console.log"
    log.write_text("first line\nlast\n")
    assert read_tail(log) == "\nlast\n"
    older_part(log).write_text("older")
    log.write_text("new\n")
    assert read_tail(log) == "ernew\n"
