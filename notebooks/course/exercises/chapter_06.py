from collections.abc import Callable

from course.exercises import Exercise

_CHANGES = {"model": 52, "torch": 2, "Debian": 1, "config": 12, "packages": 4}


def _names_signals(answer: Callable[[int], str]) -> bool:
    return [answer(status) for status in (0, 1, 137, 143)] == ["", "", "SIGKILL", "SIGTERM"]


EXERCISES = {
    "06.1": Exercise(
        lambda answer: answer(_CHANGES) == ["Debian", "torch", "packages", "config", "model"],
        "what changes least comes first: sorted(changes, key=…)",
        """def answer(changes):
    return sorted(changes, key=changes.get)""",
    ),
    "06.2": Exercise(
        _names_signals,
        "a status over 128 is 128 plus the signal's number; signal.Signals(9).name is SIGKILL",
        """import signal

def answer(status):
    return signal.Signals(status - 128).name if status > 128 else \"\"""",
    ),
    "06.3": Exercise(
        lambda answer: answer(10) == {"max_request_size": 10_000},
        "the setting is max_request_size, and it counts bytes",
        """def answer(kilobytes):
    return {"max_request_size": kilobytes * 1000}""",
    ),
}
