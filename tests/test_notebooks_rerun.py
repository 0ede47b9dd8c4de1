"""Every cell of a chapter can be run twice in a row.

make rerun                            all chapters: 18 minutes on 2 cores
make rerun COURSE_CHAPTERS="05 11"    some of them
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_notebooks_static import CHAPTERS, read

ASKED_FOR = tuple(os.environ.get("COURSE_CHAPTERS", "").split()) or ("",)


@pytest.mark.rerun
@pytest.mark.parametrize(
    "chapter",
    [chapter for chapter in CHAPTERS if chapter.name.startswith(ASKED_FOR)],
    ids=lambda chapter: chapter.stem,
)
@pytest.mark.timeout(900)
def test_each_cell_runs_twice_in_a_row(chapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_QUICK", "1")
    notebook = read(chapter)
    twice = [cell for cell in notebook.cells for _ in range(2 if cell.cell_type == "code" else 1)]
    notebook.cells = [
        nbformat.from_dict({**cell, "id": f"cell-{number}", "outputs": []})  # as after Clear All Outputs
        if cell.cell_type == "code"
        else cell
        for number, cell in enumerate(twice)
    ]
    resources = {"metadata": {"path": str(chapter.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
