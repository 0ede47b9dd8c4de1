"""Keeps the console log within a limit, and reads it without reading it whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

LIMIT = 100_000_000  # bytes, as for each log that TorchServe itself writes
_TAIL = 4_000_000  # bytes; enough for the 10,000 lines that a start looks at


def older_part(log: Path) -> Path:
    """Returns the file with the older lines of a log that became too large.

    >>> older_part(Path("logs/console.log")).name
    'console.log.1'
    """
    return log.with_name(f"{log.name}.1")


def limit_size(log: Path, limit: int = LIMIT) -> None:
    """Moves the lines of a log that is too large to the older part, in place of the lines there.

    The processes that append to the log go on. A line that comes between the last read and the cut is lost.

    >>> limit_size(Path("no/such/console.log"))
    """
    with contextlib.suppress(OSError):  # there is no log, or the disk is full
        if (size := log.stat().st_size) < limit:
            return
        with log.open("r+b") as source, older_part(log).open("wb") as target:
            source.seek(max(0, size - 2 * limit))
            try:
                shutil.copyfileobj(source, target)
            finally:
                source.truncate(0)


def read_tail(log: Path) -> str:
    """Returns the end of a log, some megabytes at most; "" if there is no log.

    >>> read_tail(Path("no/such/console.log"))
    ''
    """
    parts = [_read(path, max(0, _size(path) - _TAIL)) for path in (older_part(log), log)]
    return b"".join(parts)[-_TAIL:].decode("utf-8", errors="replace")


def read_since(log: Path, start: int) -> str:
    """Returns what was written to a log since it had a size of `start` bytes.

    >>> read_since(Path(__file__), _size(Path(__file__)))
    ''
    """
    was_cut = _size(log) < start
    found = _read(older_part(log), start) + _read(log, 0) if was_cut else _read(log, start)
    return found.decode("utf-8", errors="replace")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read(path: Path, start: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(start, os.SEEK_SET)
        return file.read()
