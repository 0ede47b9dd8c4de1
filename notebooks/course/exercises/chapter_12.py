from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from course.exercises import Exercise


def _in_a_store(answer: Callable[..., Any]) -> Any:
    with TemporaryDirectory() as folder:
        for name in ("b.mar", "a.mar", "known.mar", "notes.txt"):
            (Path(folder) / name).write_text(name)
        return answer(Path(folder), [sha256(b"known.mar").hexdigest(), sha256(b"gone").hexdigest()])


_NOW = datetime(2026, 1, 1, 10, tzinfo=UTC)


def _entry(seconds: float) -> dict[str, str]:
    expires = _NOW + timedelta(seconds=seconds)
    return {"key": "x", "expiration time": expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}


EXERCISES = {
    "12.1": Exercise(
        lambda answer: list(_in_a_store(answer)) == ["a.mar", "b.mar"],
        'archive_sha256 of each file of Path(store).glob("*.mar"), and `not in`',
        """from pathlib import Path
from tutorial_lib import archive_sha256

def answer(store, digests):
    return sorted(mar.name for mar in Path(store).glob("*.mar") if archive_sha256(mar) not in digests)""",
    ),
    "12.2": Exercise(
        lambda answer: abs(answer(_entry(90.5), _NOW) - 90.5) < 0.01 and answer(_entry(-5), _NOW) == 0,
        "datetime.fromisoformat reads the time; a difference has total_seconds(); not below 0",
        """from datetime import datetime

def answer(entry, now):
    return max(0, (datetime.fromisoformat(entry["expiration time"]) - now).total_seconds())""",
    ),
}
