"""`make run`: chapters run in order, a book comes out, and a failing cell is named."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.conftest import ROOT


def write(folder: Path, name: str, *cells: tuple[str, str], title: str = "A chapter") -> None:
    code = [new_code_cell(source, metadata={"tags": [tag] if tag else []}) for tag, source in cells]
    head = new_markdown_cell(f"# {title}")
    folder.mkdir(exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[head, *code], metadata=kernel), folder / f"{name}.ipynb")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "book" / "run.py"), "--notebooks", str(folder)]
    return subprocess.run(
        [*command, "--build", str(folder.parent / "build"), *arguments], capture_output=True, text=True
    )


def test_a_run_leaves_notebooks_a_book_and_the_predictions(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_look", ("parameters", 'MODEL_ID = "embedded"'), ("", "print(MODEL_ID)"))
    links = "A\n\n[c](../tutorial_lib/embedded/README.md), [file](../deploy/compose.yaml), [](00_look.ipynb)"
    write(chapters, "01_say", ("predictions", "print('Positive 0.99')"), title=links)
    done = run(chapters, "--model-id", "some/model")
    assert done.returncode == 0, done.stderr
    assert "[1/2] 00_look …" in done.stdout.splitlines()[0]  # said at its start; a chapter takes a while
    assert "[1/2] 00_look" in done.stdout and "3 cells" in done.stdout  # one holds the parameters given
    assert done.stdout.rstrip().endswith("Positive 0.99")
    assert "some/model" in (tmp_path / "build/book/00_look.html").read_text()
    book = tmp_path / "build" / "book"
    found = re.findall(r'href="([^"#:?]+)', (book / "01_say.html").read_text())
    assert {"tutorial_lib/embedded/README.html", "00_look.html"} <= set(found)
    assert any(link.endswith("compose.yaml") for link in found)
    assert [link for link in found if not (book / link).exists()] == []
    executed = nbformat.read(tmp_path / "build/notebooks/01_say.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "Positive 0.99\n"


def test_a_link_that_leads_nowhere_is_an_error_of_the_whole_book_alone(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_look", ("", "1"), title="Look\n\n[next](01_next.ipynb)")
    dead = run(chapters)
    assert dead.returncode == 1 and "01_next" in dead.stderr
    assert run(chapters, "00").returncode == 0  # the next chapter was not asked for


def test_the_chapters_as_committed_make_a_whole_book(tmp_path: Path) -> None:
    executed = tmp_path / "notebooks"
    executed.mkdir()
    for chapter in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        shutil.copy(chapter, executed)
    bind = runpy.run_path(str(ROOT / "book" / "run.py"))["bind"]
    assert bind(executed, tmp_path / "book") == tmp_path / "book" / "index.html"
    pages = {page.stem for page in (tmp_path / "book").glob("[0-9][0-9]_*.html")}
    assert pages == {chapter.stem for chapter in executed.glob("[0-9][0-9]_*.ipynb")}


def test_a_kernel_that_dies_is_named(tmp_path: Path) -> None:
    write(tmp_path / "chapters", "00_die", ("", "1 + 1"), ("", "import os\nos._exit(9)"))
    done = run(tmp_path / "chapters")
    assert done.returncode == 1
    assert "[1/1] 00_die failed: its Python process died" in done.stderr and "os._exit(9)" in done.stderr
    assert "Traceback" not in done.stderr


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


def outputs(folder: Path) -> dict[str, str]:
    """What the first code cell of each executed chapter printed."""
    found = sorted((folder / "build/notebooks").glob("*.ipynb"))
    return {
        file.stem: next(
            str(cell.outputs) for cell in nbformat.read(file, as_version=4).cells if cell.get("outputs")
        )
        for file in found
    }


def test_a_second_run_goes_on_where_the_first_failed(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    now = "import time\nprint(time.time_ns())"
    write(chapters, "00_fine", ("parameters", 'MODEL_ID = "embedded"'), ("predictions", now))
    write(chapters, "01_break", ("", now + "\n1 / 0"))
    assert run(chapters).returncode == 1
    first = outputs(tmp_path)
    write(chapters, "01_break", ("", now))
    again = run(chapters)
    second = outputs(tmp_path)
    assert again.returncode == 0 and second["00_fine"] == first["00_fine"]
    assert "[1/2] 00_fine" in again.stdout and "has run, and nothing is newer" in again.stdout
    assert again.stdout.rstrip().splitlines()[-1] in first["00_fine"]  # predictions all the same
    assert "ran_with" not in (chapters / "00_fine.ipynb").read_text()

    assert run(chapters, "01").returncode == 0  # asked for by its number, it runs
    third = outputs(tmp_path)
    assert third["00_fine"] == second["00_fine"] and third["01_break"] != second["01_break"]
    assert run(chapters, "--model-id", "some/model").returncode == 0
    fourth = outputs(tmp_path)
    assert fourth["00_fine"] != third["00_fine"]
    (chapters / "helper.py").write_text("a newer one")
    assert run(chapters, "--model-id", "some/model").returncode == 0
    assert not outputs(tmp_path).items() & fourth.items()


def test_chapters_can_be_chosen_and_unknown_ones_are_named(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_one", ("", "print('one')"))
    write(chapters, "01_two", ("", "print('two')"))
    assert "there is no chapter 07; there are 00, 01" in run(chapters, "07").stderr
    done = run(chapters, "--in-place", "01")
    assert done.returncode == 0 and "[1/1] 01_two" in done.stdout
    assert "two" in str(nbformat.read(chapters / "01_two.ipynb", as_version=4).cells[1].outputs)
