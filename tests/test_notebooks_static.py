"""The committed notebooks, without running them: order, outputs, form, and nothing that leaks."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from tests.conftest import ROOT

CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LEAKS = re.compile(r"/(home|root|opt|work|tmp|Users)/|[A-Z]:\\|Bearer [A-Za-z0-9]{6}|127\.0\.0\.1:\d")


def read(chapter: Path) -> Any:
    notebook = nbformat.read(chapter, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(chapter: Path) -> list[Any]:
    return [cell for cell in read(chapter).cells if cell.cell_type == "code"]


def test_chapters_are_numbered_from_zero() -> None:
    assert [chapter.name[:2] for chapter in CHAPTERS] == [f"{i:02}" for i in range(len(CHAPTERS))]
    assert len(CHAPTERS) >= 6


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_ran_in_order_with_no_error_and_no_leak(chapter: Path) -> None:
    cells = code_cells(chapter)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert len(cell.source.splitlines()) <= 36
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr" or "stderr" in cell.metadata.get("tags", [])
            assert not LEAKS.search(str(output)), f"{chapter.name}: {output}"
            assert "Not so in this run" not in str(output), f"{chapter.name}: a claim that was not measured"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_opens_and_closes_as_chapters_do(chapter: Path) -> None:
    text = [cell.source for cell in read(chapter).cells if cell.cell_type == "markdown"]
    for part in ("**What you'll do.**", "**What you'll learn.**", "**What you need.**"):
        assert part in text[0]
    whole = "\n".join(text)
    for part in ("## Recap", "## Exercises", "## If it failed"):
        assert part in whole
    for link in re.findall(r"\]\(([^)#:]+)\)", whole):
        assert (chapter.parent / link).exists(), link


def test_outputs_are_of_the_settings_that_are_committed() -> None:
    """A cheap sign of stale outputs: chapter 02 prints the settings that its server read."""
    chapter = next(chapter for chapter in CHAPTERS if chapter.name.startswith("02_"))
    printed = "".join(output.get("text", "") for cell in code_cells(chapter) for output in cell.outputs)
    (shown,) = re.findall(r"Settings: (\{.*\})", printed)
    settings = yaml.safe_load((ROOT / "model-config.yaml").read_text())
    assert ast.literal_eval(shown) == settings, "run `make outputs`, and commit what it changed"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_model_id_is_a_parameter(chapter: Path) -> None:
    for cell in code_cells(chapter):
        if "MODEL_ID = " in cell.source:
            assert cell.metadata["tags"] == ["parameters"]


def functions(source: str) -> dict[str, str]:
    """By their code, the names of the functions that a cell defines; exercises' are empty."""
    if source.startswith("%%") or "course.exercises" in source or "check(" in source.splitlines()[-1]:
        return {}
    lines = [line for line in source.splitlines() if not line.startswith(("!", "%"))]
    tree = ast.parse("\n".join(lines))
    return {ast.dump(node): node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_what_only_chapters_use_is_defined_once() -> None:
    """In notebooks/course, then; a chapter's cells are for its lesson."""
    seen: dict[str, str] = {}
    for chapter in CHAPTERS:
        for cell in code_cells(chapter):
            for code, name in functions(cell.source).items():
                assert code not in seen, f"{name} of {chapter.name} is in {seen[code]} too: notebooks/course"
                seen[code] = chapter.name
            for plumbing in ("def free_port", "def raw_server", "for _ in range(5)]\nports"):
                assert plumbing not in cell.source, f"{chapter.name}: notebooks/course has this"
