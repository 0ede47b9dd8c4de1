"""The exercises' self-checks and solutions, one module per chapter.

check("03.1", parse)      prints whether an answer is right
hint("03.1")              prints a hint
solution("03.1")          prints a right answer; tests/test_exercises.py runs it
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
    print(f"Exercise {number}: {_verdict(number, answer)}")


def hint(number: str) -> None:
    """Prints a hint."""
    print(_find(number).hint)


def solution(number: str) -> None:
    """Prints a right answer's source code."""
    print(_find(number).solution)


def _verdict(number: str, answer: Any) -> str:
    more = f'For a hint: exercises.hint("{number}")'
    if answer is None or answer is ...:
        return f"yours to fill in. {more}"
    try:
        right = _find(number).check(answer)
    except Exception as error:
        return f"not yet, it raised {type(error).__name__}: {error}. {more}"
    return "right." if right else f"not yet. {more}"


def _find(number: str) -> Exercise:
    found: Exercise = import_module(f"course.exercises.chapter_{number[:2]}").EXERCISES[number]
    return found
