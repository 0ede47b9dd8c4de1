"""The exercises' self-checks and solutions, one module a chapter.

check("03.1", parse)      says whether an answer is right, and gives a hint where it is not
solution("03.1")          prints one that is; tests/test_exercises.py holds that it is
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """A check of the reader's answer, a hint, and source code that defines a right `answer`."""

    check: Callable[[Any], bool]
    hint: str
    solution: str


def check(number: str, answer: Any) -> None:
    """Prints whether the answer to an exercise is right; never raises, so a notebook runs on."""
    exercise = _find(number)
    if answer is None or answer is ...:
        print(f"Exercise {number}: yours to fill in. Hint: {exercise.hint}")
        return
    try:
        right = exercise.check(answer)
    except Exception as error:
        print(f"Exercise {number}: not yet, it raised {type(error).__name__}: {error}. Hint: {exercise.hint}")
        return
    print(f"Exercise {number}: right." if right else f"Exercise {number}: not yet. Hint: {exercise.hint}")


def solution(number: str) -> None:
    """Prints a right answer's source code."""
    print(_find(number).solution)


def _find(number: str) -> Exercise:
    found: Exercise = import_module(f"course.exercises.chapter_{number[:2]}").EXERCISES[number]
    return found
