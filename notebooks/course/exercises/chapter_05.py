from collections.abc import Callable
from typing import Any

from course.exercises import Exercise

_WORKERS = {"workers": [{"status": "READY"}, {"status": "WORKER_STARTED"}, {"status": "READY"}]}


class _Management:
    """A fake management address, which records the calls that it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def register(self, archive: str, model: str, **_: Any) -> None:
        self.calls.append(("register", archive, model))

    def set_default(self, model: str, version: str) -> None:
        self.calls.append(("set_default", model, version))


def _releases(release: Callable[[_Management, str, str, str], object]) -> bool:
    management = _Management()
    release(management, "new.mar", "m", "2.0")
    return management.calls == [("register", "new.mar", "m"), ("set_default", "m", "2.0")]


EXERCISES = {
    "05.1": Exercise(
        lambda answer: answer(_WORKERS) == 2,
        'count the workers whose "status" is "READY"',
        """def answer(description):
    return sum(worker["status"] == "READY" for worker in description["workers"])""",
    ),
    "05.2": Exercise(
        _releases,
        "management.register(archive, model) first, then management.set_default(model, version)",
        """def answer(management, archive, model, version):
    management.register(archive, model)
    management.set_default(model, version)""",
    ),
}
