import json
from collections.abc import Callable
from typing import Any

from course.exercises import Exercise


def _parses(parse: Callable[[dict[str, Any]], Any]) -> bool:
    wanted = ["a", "b"]
    body = {"input": wanted}
    ways: list[dict[str, Any]] = [
        {"body": body},
        {"data": body},
        {"body": json.dumps(body)},
        {"data": json.dumps(body).encode()},
    ]
    return all(parse(request) == wanted for request in ways) and parse({"body": b"no JSON"}) is None


EXERCISES = {
    "03.1": Exercise(
        _parses,
        'take "body", else "data"; json.loads takes str and bytes, and raises ValueError',
        """import json

def answer(request):
    body = request.get("body")
    if body is None:
        body = request.get("data")
    if isinstance(body, (str, bytes, bytearray)):
        try:
            body = json.loads(body)
        except ValueError:
            return None
    return body["input"]""",
    ),
    "03.2": Exercise(
        lambda answer: answer(["a", "b", "c"], [2, 0, 1]) == [["a", "b"], [], ["c"]],
        "an iterator over the labels, and next() as often as each request had texts",
        """def answer(labels, counts):
    rest = iter(labels)
    return [[next(rest) for _ in range(count)] for count in counts]""",
    ),
    "03.3": Exercise(
        lambda answer: (
            [answer({"label": "Neutral", "score": score}) for score in (0.949, 0.95)] == ["Unsure", "Neutral"]
        ),
        'compare best["score"] with 0.95, and return "Unsure" or best["label"]',
        """def answer(best):
    return "Unsure" if best["score"] < 0.95 else best["label"]""",
    ),
}
