"""Every cell of a chapter can be run twice in a row.

pytest tests/test_notebooks_rerun.py -m rerun -k 05    one of the chapters that take longer
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_notebooks_static import CHAPTERS, read

CHEAP = ("00", "01")  # seconds; the others take minutes


@pytest.mark.parametrize(
    "chapter",
    [
        pytest.param(chapter, marks=[] if chapter.name.startswith(CHEAP) else pytest.mark.rerun)
        for chapter in CHAPTERS
    ],
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
