from collections.abc import Callable

from course.exercises import Exercise


def _splits(version: Callable[[str, float], str]) -> bool:
    users = [f"someone-{number}" for number in range(2000)]
    few, many = ({user for user in users if version(user, share) == "2.0"} for share in (0.1, 0.5))
    again = {user for user in users if version(user, 0.1) == "2.0"}
    return few == again and few <= many and 120 < len(few) < 280 and 880 < len(many) < 1120


EXERCISES = {
    "10.1": Exercise(
        _splits,
        "a hash of the name (hashlib, not hash(), which changes with the process) as a number from 0 to 1",
        """import hashlib

def answer(user, share):
    number = int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) / 2**64
    return "2.0" if number < share else "1.0\"""",
    ),
    "10.2": Exercise(
        lambda answer: (
            answer("1.0", "1.0", "2.0")
            == [("register", "2.0"), ("set_default", "2.0"), ("unregister", "1.0")]
            and answer("3.0", "1.0", "2.0") == [("register", "2.0"), ("unregister", "1.0")]
        ),
        "the new one comes in first, and the old one goes last",
        """def answer(default, old, new):
    switch = [("set_default", new)] if default == old else []
    return [("register", new), *switch, ("unregister", old)]""",
    ),
}
