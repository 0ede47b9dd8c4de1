"""`make run`: chapters run in order, a book comes out, and a failing cell is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.conftest import ROOT


def write(folder: Path, name: str, *cells: tuple[str, str]) -> None:
    code = [new_code_cell(source, metadata={"tags": [tag] if tag else []}) for tag, source in cells]
    title = new_markdown_cell(f"# {name}")
    folder.mkdir(exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[title, *code], metadata=kernel), folder / f"{name}.ipynb")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "book" / "run.py"), "--notebooks", str(folder)]
    return subprocess.run(
        [*command, "--build", str(folder.parent / "build"), *arguments], capture_output=True, text=True
    )


def test_a_run_leaves_notebooks_a_book_and_the_predictions(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_look", ("parameters", 'MODEL_ID = "embedded"'), ("", "print(MODEL_ID)"))
    write(chapters, "01_say", ("predictions", "print('Positive 0.99')"))
    done = run(chapters, "--model-id", "some/model")
    assert done.returncode == 0, done.stderr
    assert "[1/2] 00_look" in done.stdout and "3 cells" in done.stdout  # one holds the parameters given
    assert done.stdout.rstrip().endswith("Positive 0.99")
    assert "some/model" in (tmp_path / "build/book/00_look.html").read_text()
    executed = nbformat.read(tmp_path / "build/notebooks/01_say.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "Positive 0.99\n"


def test_a_failing_cell_stops_the_run_and_is_named(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_fine", ("", "1 + 1"))
    write(chapters, "01_break", ("", "ready = True"), ("", "print('before')\n1 / 0"))
    write(chapters, "02_never", ("", "open('ran', 'w')"))
    done = run(chapters)
    assert done.returncode == 1
    assert "[2/3] 01_break failed in cell [2]:" in done.stderr
    assert "1 / 0" in done.stderr and "ZeroDivisionError: division by zero" in done.stderr
    assert "Traceback" not in done.stderr and not (chapters / "ran").exists()
    assert "before" in (tmp_path / "build/notebooks/01_break.ipynb").read_text()


def test_chapters_can_be_chosen_and_unknown_ones_are_named(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_one", ("", "print('one')"))
    write(chapters, "01_two", ("", "print('two')"))
    assert "there is no chapter 07; there are 00, 01" in run(chapters, "07").stderr
    done = run(chapters, "--in-place", "01")
    assert done.returncode == 0 and "[1/1] 01_two" in done.stdout
    assert "two" in str(nbformat.read(chapters / "01_two.ipynb", as_version=4).cells[1].outputs)
