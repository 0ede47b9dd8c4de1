"""Every exercise has a solution, and its check takes that one and nothing empty."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from course import exercises

from tests.conftest import ROOT
from tests.test_notebooks_static import CHAPTERS, read

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
        (said,) = capsys.readouterr().out.splitlines()
        assert not said.endswith("right.")
        assert said.endswith(f'For a hint: exercises.hint("{number}")')


@pytest.mark.parametrize("number", NUMBERS)
def test_hints_are_shown_when_asked_for(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    exercises.hint(number)
    hint = capsys.readouterr().out.strip()
    assert hint
    exercises.check(number, None)
    assert hint not in capsys.readouterr().out


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_each_chapter_says_where_hints_and_solutions_are(chapter: Path) -> None:
    text = "\n".join(cell.source for cell in read(chapter).cells if cell.cell_type == "markdown")
    number = f"{chapter.name[:2]}.1"
    assert f'exercises.hint("{number}")' in text and f'exercises.solution("{number}")' in text
