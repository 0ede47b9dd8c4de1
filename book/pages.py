"""Builds the HTML book from executed chapters, the pages of failed ones, and the library reference."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import nbformat
from chapters import ROOT, ChapterFailed, load_executed
from nbformat.v4 import new_markdown_cell
from reference import write_reference

# Pages that every book has beside the chapters; index.md lists them.
PAGES = ("book/handbook.md", "tutorial_lib/embedded/README.md", "benchmarks/results.md")
ADVICE = (
    "The cells below the failed one did not run. Read the traceback below the failed cell, fix its cause, "
    "and run `make run` again: it runs this chapter and skips those that ran. The chapter's last section, "
    "*If it failed*, lists usual causes. `make lab` opens the chapter to go through it by hand."
)

REFERENCE_PART = """
```{toctree}
:maxdepth: 2
:caption: Library reference

reference/index
```
"""


class BookFailed(Exception):
    """Sphinx failed or warned; the message is what Sphinx reported."""


def build_book(
    executed: Path,
    build: Path,
    *,
    failures: Collection[ChapterFailed] = (),
    whole: bool = True,
    reference: bool = True,
) -> Path:
    """Builds one HTML book of the executed chapters; returns its first page.

    Args:
        executed: the folder of the executed chapters.
        build: the folder that gets the book's sources, in `pages`, and the book, in `book`.
        failures: chapters that failed; each gets a page in its place that says how it failed.
        whole: all chapters are there, so a link that leads nowhere is an error.
        reference: add the library reference, for which Sphinx imports the whole library.

    Raises:
        BookFailed: Sphinx failed, or warned about a page. After a warning the book is still there.
    """
    pages, book = build / "pages", build / "book"
    for folder in (pages, book):  # otherwise pages of an earlier book would stay
        shutil.rmtree(folder, ignore_errors=True)
    pages.mkdir(parents=True)
    for picture in (ROOT / "notebooks").glob("*.svg"):
        shutil.copy(picture, pages)
    for path in PAGES:
        _copy_into(pages, path)
    for chapter in executed.glob("[0-9][0-9]_*.ipynb"):
        _write_page(pages / chapter.name, chapter.read_text(encoding="utf-8"))
    for failure in failures:
        page = _failed_page(failure, executed / f"{failure.chapter}.ipynb")
        _write_page(pages / f"{failure.chapter}.ipynb", page)
    if any(pages.glob("07_*.ipynb")):
        (pages / "my_own_model.md").write_text(_own_model_page(), encoding="utf-8")
    index = _index_of(pages)
    if reference:
        write_reference(pages / "reference")
        index += REFERENCE_PART
    (pages / "index.md").write_text(index, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-c", str(ROOT / "book")]
    command += ["-d", str(build / "doctrees"), str(pages), str(book)]
    if not whole:
        command += ["-D", "suppress_warnings=mystnb.unknown_mime_type,myst.xref_missing"]
    run = subprocess.run(command, capture_output=True, text=True)
    for chapter in executed.glob("[0-9][0-9]_*.ipynb"):
        # A page offers this notebook as its download: its links work in the notebooks' folder.
        if (book / "_sources" / chapter.name).exists():
            shutil.copy(chapter, book / "_sources")
    if run.returncode:
        raise BookFailed(f"Sphinx found faults in the book:\n{run.stderr}")
    return book / "index.html"


def _write_page(page: Path, notebook: str) -> None:
    """Writes a page. A book has no "..", so files linked as ../… are copied in and the links shortened."""
    for path in set(re.findall(r"\]\(\.\./([^)#]+)\)", notebook)):
        if (ROOT / path).is_file():  # otherwise Sphinx reports the link
            _copy_into(page.parent, path)
    page.write_text(notebook.replace("](../", "]("), encoding="utf-8")


def _index_of(pages: Path) -> str:
    """Returns the landing page without the patterns that no page matches: Sphinx would warn about them."""
    lines = (ROOT / "book/index.md").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.endswith("*\n") or any(pages.glob(line.strip())))


def _own_model_page() -> str:
    """Returns README's section for readers who bring a model; it needs chapter 07, since it links there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## I have my own model")[2].partition("\n## ")[0]
    return f"# I have my own model{section}".replace("](notebooks/", "](")


def _copy_into(pages: Path, path: str) -> None:
    (pages / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, pages / path)


def _failed_page(failure: ChapterFailed, executed: Path) -> str:
    """Returns the chapter as far as it ran, with a box below its title that says where it failed, and why."""
    notebook = load_executed(executed)
    if not notebook.cells:
        notebook.cells = [new_markdown_cell(f"# {failure.chapter.replace('_', ' ')}")]
    head = notebook.cells[0]
    title, _, rest = head.source.partition("\n")
    where = failure.place
    if failure.number:
        where = f'<a href="#failed-cell">{where}</a>'
        notebook.cells.insert(
            failure.index, new_markdown_cell('<a id="failed-cell"></a>\n\n**Failed here:**')
        )
    shown = [_fenced("python", failure.source)] if failure.source else []
    shown += [_fenced("text", failure.reason), ADVICE]
    box = _fenced(f"{{admonition}} This chapter failed {where}", "\n\n".join([":class: danger", *shown]))
    head.source = f"{title} (failed)\n\n{box}\n\n{rest}"
    return str(nbformat.writes(notebook))


def _fenced(kind: str, text: str) -> str:
    """Returns a block of Markdown; its fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{kind}\n{text}\n{fence}"
