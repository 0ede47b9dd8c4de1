from collections.abc import Callable

from course.exercises import Exercise


def _first_batches(answer: Callable[[list[int], int, int], int]) -> bool:
    cases = [
        ([0], 8, 20, 1),
        ([0, 5, 19, 40], 8, 20, 3),
        ([0, 1, 2, 3], 3, 20, 3),
        ([100, 110, 130], 8, 20, 2),
    ]
    return all(answer(arrivals, size, delay) == wanted for arrivals, size, delay, wanted in cases)


EXERCISES = {
    "08.1": Exercise(
        _first_batches,
        "count those that arrive less than `delay` after the first one, and stop at `size`",
        """def answer(arrivals, size, delay):
    in_time = [arrival for arrival in arrivals if arrival - arrivals[0] < delay]
    return min(size, len(in_time))""",
    ),
    "08.2": Exercise(
        lambda answer: (
            answer(1, 0.5, 1, 2) == 4 and answer(8, 0.25, 2, 1) == 64 and answer(4, 0.3, 1, 1) == 12
        ),
        "how many whole batches does one worker finish while someone is patient, and how many do all?",
        """def answer(batch_size, batch_seconds, workers, patience):
    return int(patience / batch_seconds) * workers * batch_size""",
    ),
}
