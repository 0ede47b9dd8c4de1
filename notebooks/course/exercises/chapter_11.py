from collections.abc import Callable

from course.exercises import Exercise

_PARSED = [{"texts": ["Why?", "Yes."]}, {"error": "Why? It is no JSON."}, {"texts": ["Who? Me", "You?", "?"]}]


def _counts(rate: Callable[[list[tuple[float, float]]], float]) -> bool:
    grows = rate([(0, 10), (10, 30), (20, 50)]) == 2
    starts_again = rate([(0, 90), (10, 100), (20, 5), (30, 20)]) == 1
    return grows and starts_again


EXERCISES = {
    "11.1": Exercise(
        lambda answer: answer(_PARSED) == 3 and answer([]) == 0,
        'item.get("texts", ()) of each item: a request that is refused has no texts',
        """def answer(parsed):
    return sum(text.endswith("?") for item in parsed for text in item.get("texts", ()))""",
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
