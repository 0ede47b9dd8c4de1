"""Runs the course: each chapter with papermill, then one HTML book of what they printed.

python book/run.py                        executed copies in build/notebooks, the book in build/book
python book/run.py --model-id OWNER/NAME  the same with another model
python book/run.py 00 01                  only these chapters
python book/run.py --in-place             only refresh the outputs of the notebooks themselves

Run again, it goes on where it failed: as with make, a chapter runs if something is newer than its last run,
or if it is asked for by its number.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
# Pages of every book, beside the chapters; index.md lists them.
PAGES = ("tutorial_lib/embedded/README.md", "benchmarks/results.md")
# What chapters read, beside the folder that they lie in.
SOURCES = (
    *("tutorial_lib", "handler.py", "index_to_name.json", "sample_input.json", "model-config.yaml"),
    *("metrics.yaml", "deploy", "benchmarks", "constraints.txt", ".venv/installed"),
)


class ChapterFailed(Exception):
    """A cell failed; the message says which, and how."""


def find_chapters(folder: Path, numbers: list[str]) -> list[Path]:
    """The chapters of a folder in order: all of them, or those with these numbers.

    Raises:
        ValueError: a number that no chapter has.
    """
    chapters = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if unknown := [number for number in numbers if number not in chapters]:
        raise ValueError(f"there is no chapter {', '.join(unknown)}; there are {', '.join(chapters)}")
    return [path for number, path in chapters.items() if not numbers or number in numbers]


def run_chapter(source: Path, target: Path, parameters: dict[str, Any], title: str) -> Any:
    """Executes one notebook in the folder that it lies in, and writes it with its outputs.

    Raises:
        ChapterFailed: a cell failed; what ran until then is written too.
    """
    started = time.monotonic()
    live = sys.stdout.isatty()  # a bar for people; a log gets a line at a chapter's start and at its end
    if not live:
        print(f"{title} …", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        notebook = papermill.execute_notebook(
            source,
            target,
            parameters if _has_parameters(source) else {},
            cwd=source.parent,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=40"],  # its warning on TCP is no news on loopback
            progress_bar={
                "desc": title,
                "unit": "cell",
                "file": sys.stdout,
                "leave": False,
                "disable": not live,
            },
        )
    except papermill.PapermillExecutionError as error:
        head = "\n    ".join(error.source.splitlines()[:6])
        raise ChapterFailed(
            f"{title} failed in cell [{error.exec_count}]:\n    {head}\n{error.ename}: {error.evalue}"
        ) from None
    except DeadKernelError:
        raise ChapterFailed(
            f"{title} failed: its Python process died in this cell:\n    {_last_begun(target)}\n"
            "Out of memory is the usual cause; `dmesg` says so."
        ) from None
    _drop_run_metadata(notebook)
    if source != target:
        notebook.metadata["ran_with"] = parameters  # and ran to its end
    nbformat.write(notebook, target)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{title:34} {cells:3} cells {time.monotonic() - started:6.1f} s", flush=True)
    return notebook


def _last_begun(notebook: Path) -> str:
    """The first lines of the last cell that was begun, in a notebook that papermill left."""
    cells = nbformat.read(notebook, as_version=4).cells
    # Its number comes from the kernel, which may have died first; its start is papermill's own.
    begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    source = begun[-1].source if begun else "(it had begun none)"
    return "\n    ".join(source.splitlines()[:6])


def _has_parameters(source: Path) -> bool:
    cells = nbformat.read(source, as_version=4).cells
    return any("parameters" in cell.metadata.get("tags", []) for cell in cells)


def _drop_run_metadata(notebook: Any) -> None:
    """Times and interpreter versions of a run would change every notebook on every run."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for name in ("execution", "papermill"):
            cell.metadata.pop(name, None)


def bind(executed: Path, book: Path, *, whole: bool = True) -> Path:
    """One HTML book of the executed chapters; returns its first page.

    Args:
        executed: the folder of the executed chapters; what they link to is copied into it.
        book: the folder to write.
        whole: all chapters are there, so a link that leads nowhere is an error.

    Raises:
        ChapterFailed: Sphinx refused; the message is what it said.
    """
    for page in (ROOT / "book/conf.py", ROOT / "book/index.md", *(ROOT / "notebooks").glob("*.svg")):
        shutil.copyfile(page, executed / page.name)
    for path in PAGES:
        _bring(path, executed)
    _bring_linked_files(executed)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(executed), str(book)]
    if not whole:
        command += ["-D", "suppress_warnings=mystnb.unknown_mime_type,myst.xref_missing"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise ChapterFailed(f"The book could not be bound:\n{run.stderr}")
    return book / "index.html"


def _bring_linked_files(executed: Path) -> None:
    """A chapter links to ../deploy/compose.yaml; the book has no "..", so the file and the link move in."""
    for chapter in executed.glob("*.ipynb"):
        text = chapter.read_text(encoding="utf-8")
        for path in set(re.findall(r"\]\(\.\./([^)#]+)\)", text)):
            _bring(path, executed)
        chapter.write_text(text.replace("](../", "]("), encoding="utf-8")


def _bring(path: str, executed: Path) -> None:
    (executed / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, executed / path)


def predictions(notebook: Any) -> str:
    """What the cell tagged `predictions` printed."""
    for cell in notebook.cells:
        if "predictions" in cell.metadata.get("tags", []):
            return "".join(output.get("text", "") for output in cell.outputs).rstrip()
    return ""


def past_runs(notebooks: Path, executed: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """By name, the chapters that ran to their end with these parameters, and read nothing that is newer."""
    read = [ROOT / name for name in SOURCES]
    read += [file for root in read for file in root.rglob("*")]
    read += [file for file in notebooks.rglob("*") if file.suffix != ".ipynb"]
    changed = max(file.stat().st_mtime for file in read if file.is_file() and "__pycache__" not in file.parts)
    runs = {}
    for chapter in find_chapters(notebooks, []):
        ran = executed / chapter.name
        if ran.exists() and ran.stat().st_mtime > max(changed, chapter.stat().st_mtime):
            run = nbformat.read(ran, as_version=4)
            if run.metadata.get("ran_with") == parameters:
                runs[chapter.name] = run
    return runs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs the course.")
    parser.add_argument("chapters", nargs="*", help="numbers, as 00 05 (default: all)")
    parser.add_argument("--model-id", help="the model to take down the road (default: the notebooks')")
    parser.add_argument("--in-place", action="store_true", help="refresh the notebooks' own outputs")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="the chapters' folder")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where the results go")
    args = parser.parse_args(arguments)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    try:
        chapters = find_chapters(args.notebooks, args.chapters)
    except ValueError as error:
        parser.error(str(error))
    parameters = {"MODEL_ID": args.model_id} if args.model_id else {}
    executed = args.notebooks if args.in_place else args.build / "notebooks"
    runs = {}
    if not args.in_place:
        runs = past_runs(args.notebooks, executed, parameters)
        for old in executed.glob("*.ipynb"):
            if old.name not in runs:  # it would be a page of the book
                old.unlink()
    answers = ""
    try:
        for number, chapter in enumerate(chapters, start=1):
            title = f"[{number}/{len(chapters)}] {chapter.stem}"
            if chapter.name in runs and not args.chapters:
                notebook = runs[chapter.name]
                print(f"{title:34} has run, and nothing is newer")
            else:
                notebook = run_chapter(chapter, executed / chapter.name, parameters, title)
            answers = predictions(notebook) or answers
        if args.in_place:
            return 0
        page = bind(executed, args.build / "book", whole=not args.chapters)
    except ChapterFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\nThe book of this run: {page}")
    print(f"\nWhat the served model said:\n{answers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
