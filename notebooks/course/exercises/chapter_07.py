from collections.abc import Callable
from typing import Any

from course.exercises import Exercise

Patient = dict[str, float]


def _finds_the_first(answer: Callable[[Callable[[Patient], float], Patient, float], int | None]) -> bool:
    patient = {"age": 50.0, "bmi": 30.0}

    def predict(asked: Patient) -> float:
        return 4 * asked["bmi"] + asked["age"]

    found = [answer(predict, patient, limit) for limit in (10, 150, 171.5, 250, 1000)]
    return found == [15, 26, 31, None, None] and patient == {"age": 50.0, "bmi": 30.0}


def _answers_with_a_score(best: Callable[[Any], Any]) -> bool:
    import torch

    rows = torch.tensor([[0.0] * 7 + [3.0, 1.0, 0.0], [2.0] + [0.0] * 9])
    return all(
        answer.keys() == {"digit", "score"}
        and (type(answer["digit"]), type(answer["score"])) == (int, float)
        and answer["digit"] == int(row.argmax())
        and abs(answer["score"] - float(row.softmax(dim=0).max())) < 0.01
        for row, answer in ((row, best(row)) for row in rows)
    )


EXERCISES = {
    "07.1": Exercise(
        _finds_the_first,
        '{**patient, "bmi": bmi} is a copy with another bmi; range(15, 51) has the whole numbers',
        """def answer(predict, patient, limit):
    return next((bmi for bmi in range(15, 51) if predict({**patient, "bmi": bmi}) > limit), None)""",
    ),
    "07.2": Exercise(
        _answers_with_a_score,
        "row.softmax(dim=0) gives probabilities; an answer must be plain Python: int(…), float(…)",
        """def answer(row):
    shares = row.softmax(dim=0)
    return {"digit": int(shares.argmax()), "score": float(shares.max())}""",
    ),
}
