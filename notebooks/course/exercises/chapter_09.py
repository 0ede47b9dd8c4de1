from collections.abc import Callable

from course.exercises import Exercise


def _padding(answer: Callable[[list[int], int], float]) -> bool:
    cases = [([4, 4], 2, 0.0), ([2, 8], 2, 6 / 16), ([8, 2, 8, 2], 2, 0.0), ([3, 1, 5], 2, 2 / 11)]
    return all(abs(answer(lengths, size) - wanted) < 1e-9 for lengths, size, wanted in cases)


def _best_size(answer: Callable[[list[int], list[int], float, float], int]) -> bool:
    lengths = [5, 40, 6, 38, 7, 36, 8, 34]
    cases = [(1.0, 0.1, 4), (0.0, 0.1, 1), (1000.0, 0.1, 8)]
    return all(answer(lengths, [1, 4, 8], fixed, slot) == wanted for fixed, slot, wanted in cases)


EXERCISES = {
    "09.1": Exercise(
        _padding,
        "a pass has as many slots as its number of texts times its longest one",
        """def answer(lengths, size):
    ordered = sorted(lengths)
    passes = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    slots = sum(len(one) * max(one) for one in passes)
    return 1 - sum(lengths) / slots""",
    ),
    "09.2": Exercise(
        _best_size,
        "for each size, count passes and slots, and add up what they cost",
        """def answer(lengths, sizes, pass_ms, slot_ms):
    def cost(size):
        ordered = sorted(lengths)
        passes = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        return sum(pass_ms + slot_ms * len(one) * max(one) for one in passes)

    return min(sizes, key=cost)""",
    ),
}
