"""Every exercise has a solution, and its check takes that one and nothing empty."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from course import exercises

from tests.conftest import ROOT

NUMBERS = [
    number
    for module in sorted((ROOT / "notebooks" / "course" / "exercises").glob("chapter_*.py"))
    for number in import_module(f"course.exercises.{module.stem}").EXERCISES
]


@pytest.mark.parametrize("number", NUMBERS)
def test_solution_passes_its_check(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    exercises.solution(number)
    names: dict[str, Any] = {}
    exec(capsys.readouterr().out, names)
    exercises.check(number, names["answer"])
    assert capsys.readouterr().out == f"Exercise {number}: right.\n"
    for wrong in (None, "wrong", lambda *_: "wrong"):
        exercises.check(number, wrong)
        assert "Hint: " in capsys.readouterr().out
