"""Runs chapters with papermill, and finds the chapters that need not run again."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
# What chapters read outside their own folder: a newer file there makes them run again.
INPUTS = (
    *("tutorial_lib", "handler.py", "index_to_name.json", "sample_input.json", "model-config.yaml"),
    *("metrics.yaml", "deploy", "benchmarks", "constraints.txt", ".venv/installed"),
)


@dataclass
class ChapterFailed(Exception):
    """A chapter did not run to its end.

    Args:
        chapter: the notebook's name without its suffix.
        reason: the error, in words or as Python reports it.
        source: the code of the failed cell; empty if no cell had begun.
        number: the number that JupyterLab shows beside the failed cell; 0 if no cell had begun.
        index: the position of the failed cell in the executed notebook.
    """

    chapter: str
    reason: str
    source: str = ""
    number: int = 0
    index: int = 0

    @property
    def place(self) -> str:
        """Where the chapter failed, worded to follow the word "failed".

        >>> ChapterFailed("00_look", "ValueError: no", "int('x')", number=3).place
        'in cell [3]'
        """
        return f"in cell [{self.number}]" if self.number else "before its first cell"

    def __str__(self) -> str:
        shown = "".join(f"\n    {line}" for line in self.source.splitlines()[:6])
        return f"{self.chapter} failed {self.place}:{shown}\n{self.reason}"


def find_chapters(folder: Path, numbers: list[str]) -> list[Path]:
    """Returns the chapters of a folder in order: all of them, or those with these numbers.

    Raises:
        ValueError: a number that no chapter has.
    """
    chapters = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if unknown := [number for number in numbers if number not in chapters]:
        raise ValueError(f"there is no chapter {', '.join(unknown)}; there are {', '.join(chapters)}")
    return [path for number, path in chapters.items() if not numbers or number in numbers]


def run_chapter(source: Path, target: Path, parameters: dict[str, Any], title: str) -> Any:
    """Executes a notebook in its own folder, and writes a copy with the outputs.

    Args:
        source: the notebook to run.
        target: the executed copy to write; after a failure it holds the outputs up to the failure.
        parameters: values for the cell tagged `parameters`, where the notebook has one.
        title: the name of this step in the messages.

    Raises:
        ChapterFailed: a cell or the kernel failed.
    """
    started = time.time()
    live = (
        sys.stdout.isatty()
    )  # people see a progress bar; a log gets one line at the start and one at the end
    if not live:
        print(f"{title} …", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a failure must not leave the outputs of an earlier run
    try:
        notebook = papermill.execute_notebook(
            source,
            target,
            parameters if _has_parameters(source) else {},
            cwd=source.parent,
            kernel_name="python3",
            extra_arguments=[
                "--IPKernelApp.log_level=40"
            ],  # hides a warning about TCP, which is harmless on loopback
            progress_bar={
                "desc": title,
                "unit": "cell",
                "file": sys.stdout,
                "leave": False,
                "disable": not live,
            },
        )
    except papermill.PapermillExecutionError as error:
        raise _failure(source.stem, target, f"{error.ename}: {error.evalue}", error.cell_index) from None
    except DeadKernelError:
        reason = "Its Python process died. The usual cause is too little memory; `dmesg` shows that."
        raise _failure(source.stem, target, reason) from None
    except Exception as error:  # whatever the error is, the other chapters still run
        raise _failure(source.stem, target, f"{type(error).__name__}: {error}") from error
    _drop_run_metadata(notebook)
    notebook.metadata["ran_with"] = parameters  # marks a run that reached the end
    nbformat.write(notebook, target)
    os.utime(target, (started, started))  # so a file that changed while the chapter ran is newer
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{title:34} {cells:3} cells {time.time() - started:6.1f} s", flush=True)
    return notebook


def _failure(chapter: str, executed: Path, reason: str, index: int | None = None) -> ChapterFailed:
    cells = load_executed(executed).cells
    if index is None:  # papermill did not name the cell, so it is the last one that papermill started
        started = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
        if not started:
            return ChapterFailed(chapter, reason)
        index = started[-1]
    number = sum(cell.cell_type == "code" for cell in cells[: index + 1])
    return ChapterFailed(chapter, reason, cells[index].source, number, index)


def load_executed(path: Path) -> Any:
    """Reads an executed notebook, without papermill's cells about a failure; empty if there is no file."""
    if not path.exists():
        return nbformat.v4.new_notebook()
    return papermill.execute.remove_error_markers(nbformat.read(path, as_version=4))


def _has_parameters(source: Path) -> bool:
    cells = nbformat.read(source, as_version=4).cells
    return any("parameters" in cell.metadata.get("tags", []) for cell in cells)


def _drop_run_metadata(notebook: Any) -> None:
    """Removes times and interpreter versions, which would change every notebook on every run."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for name in ("execution", "papermill"):
            cell.metadata.pop(name, None)


def save_outputs(notebook: Any, source: Path) -> None:
    """Writes an executed notebook over its source, to commit fresh outputs."""
    notebook.metadata.pop("ran_with", None)
    nbformat.write(notebook, source)


def predictions(notebook: Any) -> str:
    """Returns the output of the cell tagged `predictions`."""
    for cell in notebook.cells:
        if "predictions" in cell.metadata.get("tags", []):
            return "".join(output.get("text", "") for output in cell.outputs).rstrip()
    return ""


def past_runs(notebooks: Path, executed: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns by name the chapters that ran to their end with these parameters and have unchanged inputs."""
    inputs = [ROOT / name for name in INPUTS]
    inputs += [Path(model) for model in parameters.values()]  # a folder's model may have been trained again
    inputs += [file for root in inputs for file in root.rglob("*")]
    inputs += [file for file in notebooks.rglob("*") if file.suffix != ".ipynb"]
    changed = max(
        file.stat().st_mtime for file in inputs if file.is_file() and "__pycache__" not in file.parts
    )
    runs = {}
    for chapter in find_chapters(notebooks, []):
        ran = executed / chapter.name
        if ran.exists() and ran.stat().st_mtime > max(changed, chapter.stat().st_mtime):
            run = nbformat.read(ran, as_version=4)
            if run.metadata.get("ran_with") == parameters:
                runs[chapter.name] = run
    return runs
