from collections.abc import Callable

from course.exercises import Exercise


def _counts(rate: Callable[[list[tuple[float, float]]], float]) -> bool:
    grows = rate([(0, 10), (10, 30), (20, 50)]) == 2
    starts_again = rate([(0, 90), (10, 100), (20, 5), (30, 20)]) == 1
    return grows and starts_again


EXERCISES = {
    "11.1": Exercise(
        lambda answer: (
            answer({"tokens": 100, "padding": 50}, {"tokens": 160, "padding": 70}) == 0.25
            and answer({"tokens": 100, "padding": 50}, {"tokens": 100, "padding": 50}) == 0
        ),
        "what both grew by; the share is padding / (padding + tokens)",
        """def answer(before, now):
    tokens, padding = (now[name] - before[name] for name in ("tokens", "padding"))
    return padding / (padding + tokens) if tokens else 0""",
    ),
    "11.2": Exercise(
        _counts,
        "sum what it grew by from each look to the next; after a fall that is the new value",
        """def answer(samples):
    values = [value for _, value in samples]
    grown = sum(b - a if b >= a else b for a, b in zip(values, values[1:]))
    return grown / (samples[-1][0] - samples[0][0])""",
    ),
}
