"""`make run`: chapters run in order, a book is built also after a failure, and the failing cell is named."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from run import main

import tutorial_lib
from tests.conftest import ROOT, eventually

# Their docstring is the whole documentation: a TypedDict describes an answer's fields, a plain error has no
# behaviour of its own. Each of them is shown by the example of the function that returns or raises it.
NEED_NO_EXAMPLE = (dict, Exception)
# An example of these would need a container engine, or a server that somebody else started.
NEED_A_SERVER = {"ConnectedServer", "find_engine", "load_test"}


def write(folder: Path, name: str, *cells: tuple[str, str], title: str = "A chapter") -> None:
    """Writes a chapter; a cell is its tag ("" for none) and its code."""
    code = [new_code_cell(source, metadata={"tags": [tag] if tag else []}) for tag, source in cells]
    head = new_markdown_cell(f"# {title}")
    folder.mkdir(exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[head, *code], metadata=kernel), folder / f"{name}.ipynb")


def command(folder: Path, *arguments: str) -> list[str]:
    start = [sys.executable, str(ROOT / "book" / "run.py"), "--notebooks", str(folder)]
    return [*start, "--build", str(folder.parent / "build"), "--no-reference", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True)


def run_here(folder: Path, *arguments: str) -> int:
    """Runs chapters in this process and builds no book: for what shows without one. Returns the status."""
    return main([*command(folder, *arguments)[2:], "--no-book"])


def outputs(folder: Path) -> dict[str, str]:
    """The outputs of the first cell that has some, for each executed chapter."""
    found = sorted((folder / "build/notebooks").glob("*.ipynb"))
    return {
        file.stem: next(
            str(cell.outputs) for cell in nbformat.read(file, as_version=4).cells if cell.get("outputs")
        )
        for file in found
    }


def test_a_run_leaves_notebooks_a_book_and_the_predictions(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_look", ("parameters", 'MODEL_ID = "embedded"'), ("", "print(MODEL_ID)"))
    links = (
        "A\n\n[c](../tutorial_lib/embedded/README.md), [file](../deploy/image/serve.sh), [](00_look.ipynb)"
    )
    write(chapters, "01_say", ("predictions", "print('Positive 0.99')"), title=links)
    done = run(chapters, "--model-id", "some/model")
    assert done.returncode == 0, done.stderr
    assert "[1/2] 00_look …" in done.stdout.splitlines()[0]  # printed at its start; a chapter takes a while
    assert "[1/2] 00_look" in done.stdout and "3 cells" in done.stdout  # one holds the parameters given
    assert done.stdout.rstrip().endswith("Positive 0.99")
    assert "some/model" in (tmp_path / "build/book/00_look.html").read_text()
    book = tmp_path / "build" / "book"
    found = re.findall(r'href="([^"#:?]+)', (book / "01_say.html").read_text())
    assert {"tutorial_lib/embedded/README.html", "00_look.html"} <= set(found)
    assert any(link.endswith("serve.sh") for link in found)
    assert [link for link in found if not (book / link).exists()] == []
    executed = nbformat.read(tmp_path / "build/notebooks/01_say.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "Positive 0.99\n"


def test_dead_links_and_wrong_formulas_are_reported_and_the_book_is_there(tmp_path: Path) -> None:
    chapters, link = tmp_path / "chapters", "[next](01_next.ipynb)"
    write(chapters, "00_look", ("", "1"), title=f"Look\n\n{link}, [](../deploy/no_such_file), $\\nosuch$")
    wrong = run(chapters)
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert "01_next.ipynb" in wrong.stderr and "deploy/no_such_file" in wrong.stderr
    assert "This formula can't be shown: Unknown LaTeX command" in wrong.stderr
    assert (tmp_path / "build/book/00_look.html").exists()
    write(chapters, "00_look", ("", "1"), title=f"Look\n\n{link}")
    assert run(chapters, "00").returncode == 0  # the next chapter was not asked for


def test_a_failed_chapter_stops_no_other_and_has_a_page_that_says_how_it_failed(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_fine", ("", "1 + 1"), title="Fine")
    bad = "print('before')\nraise ValueError('```no [link](x.md)\\nsecond line')"
    write(chapters, "01_break", ("", "ready = True"), ("", bad), ("", "open('ran', 'w')"), title="Break")
    write(chapters, "02_die", ("", "1 + 1"), ("", "import os\nos._exit(9)"), title="Die")
    (chapters / "03_garbled.ipynb").write_text("{}")
    write(chapters, "04_last", ("predictions", "print('Positive')"), title="Last")
    done = run(chapters)
    assert done.returncode == 1 and "Traceback" not in done.stderr and not (chapters / "ran").exists()
    for said in (
        "01_break failed in cell [2]:\n    print('before')",
        "ValueError: ```no [link](x.md)",
        "02_die failed in cell [2]:\n    import os\n    os._exit(9)\nIts Python process died.",
        "03_garbled failed before its first cell:\n",
        "2 of 5 chapters ran, 3 failed:\n  01_break in cell [2]: ValueError: ",
    ):
        assert said in done.stderr
    assert "Sphinx found faults" not in done.stderr and "Positive" in done.stdout
    book = tmp_path / "build/book"
    index, broken = (book / "index.html").read_text(), (book / "01_break.html").read_text()
    for title in ("Fine", "Break (failed)", "Die (failed)", "03 garbled (failed)", "Last"):
        assert f">{title}</a>" in index
    for shown in ("ValueError: ```no", "before", "skips those that ran", "second line"):
        assert shown in broken
    assert 'href="#failed-cell"' in broken and 'id="failed-cell"' in broken
    assert "papermill" not in broken
    assert "Its Python process died" in (book / "02_die.html").read_text()

    for chapter in ("02_die", "03_garbled"):
        (chapters / f"{chapter}.ipynb").unlink()
    write(chapters, "01_break", ("", "1 + 1"), title="Break")
    assert run(chapters).returncode == 0
    assert "(failed)" not in (book / "index.html").read_text()


def test_a_second_run_repeats_only_what_failed_or_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapters = tmp_path / "chapters"
    now = "import time\nprint(time.time_ns())"
    write(chapters, "00_fine", ("parameters", 'MODEL_ID = "embedded"'), ("predictions", now))
    write(chapters, "01_break", ("", f"{now}\nimport os\nassert os.path.exists('{tmp_path / 'fixed'}')"))
    assert run_here(chapters) == 1
    first = outputs(tmp_path)
    (tmp_path / "fixed").touch()
    capsys.readouterr()
    assert run_here(chapters) == 0
    again, second = capsys.readouterr().out, outputs(tmp_path)
    assert {name for name in first if first[name] != second[name]} == {"01_break"}
    assert again.count("skipped: its inputs have not changed") == 1
    assert again.rstrip().splitlines()[-1] in first["00_fine"]  # predictions all the same
    assert "ran_with" not in (chapters / "00_fine.ipynb").read_text()

    assert run_here(chapters, "01") == 0  # asked for by its number, it runs
    third = outputs(tmp_path)
    assert third["00_fine"] == second["00_fine"] and third["01_break"] != second["01_break"]
    assert run_here(chapters, "--model-id", "some/model") == 0
    fourth = outputs(tmp_path)
    assert fourth["00_fine"] != third["00_fine"]
    (chapters / "helper.py").write_text("a newer one")
    assert run_here(chapters, "--model-id", "some/model") == 0
    assert not outputs(tmp_path).items() & fourth.items()


def test_an_input_that_changes_while_a_chapter_runs_makes_it_run_again(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_edit", ("", "open('helper.py', 'w').close()\nimport time\nprint(time.time_ns())"))
    assert run_here(chapters) == 0
    first = outputs(tmp_path)
    assert run_here(chapters) == 0
    assert outputs(tmp_path) != first


def test_an_interrupt_stops_the_run_at_once_and_leaves_no_kernel(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    wait = f"import os, time\nopen('{tmp_path / 'pid'}', 'w').write(str(os.getpid()))\ntime.sleep(300)"
    write(chapters, "00_wait", ("", wait))
    write(chapters, "01_never", ("", "1"))
    running = subprocess.Popen(
        command(chapters),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a script starts with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    running.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and time.monotonic() - started < 20
    assert "Interrupted. `make run` goes on with the chapter" in err
    assert "book/run.py" not in err  # no traceback of ours; a kernel that is stopped may print its own
    assert "01_never" not in out
    eventually(lambda: not psutil.pid_exists(pid))


def test_chapters_can_be_chosen_and_unknown_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapters = tmp_path / "chapters"
    write(chapters, "00_one", ("", "print('one')\n1 / 0"))
    write(chapters, "01_two", ("", "print('two')"))
    with pytest.raises(SystemExit):
        run_here(chapters, "07")
    assert "there is no chapter 07; there are 00, 01" in capsys.readouterr().err
    before = (chapters / "00_one.ipynb").read_text()
    assert run_here(chapters, "--in-place") == 1 and "[2/2] 01_two" in capsys.readouterr().out
    assert (chapters / "00_one.ipynb").read_text() == before  # a failed chapter keeps its outputs
    assert "two" in str(nbformat.read(chapters / "01_two.ipynb", as_version=4).cells[1].outputs)


@pytest.mark.parametrize("name", [name for name in tutorial_lib.__all__ if name != "__version__"])
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    value = getattr(tutorial_lib, name)
    assert value.__doc__
    if name not in NEED_A_SERVER and not (isinstance(value, type) and issubclass(value, NEED_NO_EXAMPLE)):
        methods = [method.__doc__ or "" for method in vars(value).values() if callable(method)]
        assert ">>>" in "\n".join([value.__doc__, *methods])
