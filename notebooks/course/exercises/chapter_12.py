from collections.abc import Callable
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
        lambda answer: (
            list(answer(90)) == ["token_expiration_min"]
            and abs(answer(90)["token_expiration_min"] - 1.5) < 0.001
        ),
        "the setting is token_expiration_min; it counts minutes, and takes fractions",
        """def answer(seconds):
    return {"token_expiration_min": seconds / 60}""",
    ),
}
