"""Runs the course: each chapter with papermill, then builds one HTML book of their outputs.

python book/run.py                        executed copies in build/notebooks, the book in build/book
python book/run.py --model-id OWNER/NAME  the same with another model, from the hub or a folder
python book/run.py 00 01                  only these chapters
python book/run.py --in-place             only refresh the outputs of the notebooks themselves

Chapters whose inputs have not changed since they ran are skipped, unless asked for by number. After a failed
chapter the others still run. The page of the failed one says how it failed, and the next run repeats it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from chapters import ROOT, ChapterFailed, find_chapters, past_runs, predictions, run_chapter, save_outputs
from pages import BookFailed, build_book


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs the course.")
    parser.add_argument("chapters", nargs="*", help="numbers, as 00 05 (default: all)")
    parser.add_argument("--model-id", help="the model of every chapter: a name on the hub or a folder")
    parser.add_argument("--in-place", action="store_true", help="refresh the notebooks' own outputs")
    parser.add_argument("--no-book", action="store_true", help="only run the chapters")
    parser.add_argument(
        "--no-reference", action="store_true", help="leave the library reference out of the book"
    )
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="the chapters' folder")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where the results go")
    args = parser.parse_args(arguments)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        find_chapters(args.notebooks, args.chapters)
    except ValueError as error:
        parser.error(str(error))
    try:
        return run_course(args)
    except KeyboardInterrupt:
        print("\nInterrupted. `make run` goes on with the chapter that was running.", file=sys.stderr)
        return 130


def run_course(args: argparse.Namespace) -> int:
    """Runs the chapters that were asked for, builds the book, and returns the exit status."""
    chapters = find_chapters(args.notebooks, args.chapters)
    parameters = {"MODEL_ID": absolute(args.model_id)} if args.model_id else {}
    executed = args.build / "notebooks"
    runs = {} if args.in_place else past_runs(args.notebooks, executed, parameters)
    for old in executed.glob("*.ipynb"):
        if old.name not in runs:  # otherwise it would become a page of the book
            old.unlink()
    failures: list[ChapterFailed] = []
    answers = ""
    for number, chapter in enumerate(chapters, start=1):
        title = f"[{number}/{len(chapters)}] {chapter.stem}"
        if chapter.name in runs and not args.chapters:
            notebook = runs[chapter.name]
            print(f"{title:34} skipped: its inputs have not changed since it ran")
        else:
            try:
                notebook = run_chapter(chapter, executed / chapter.name, parameters, title)
            except ChapterFailed as failure:
                print(failure, file=sys.stderr, flush=True)
                failures.append(failure)
                continue
        answers = predictions(notebook) or answers
        if args.in_place:
            save_outputs(notebook, chapter)
    book = args.in_place or args.no_book or report_book(executed, args, failures)
    if answers and not args.in_place:
        print(f"\nThe served model's answers:\n{answers}")
    if failures:
        print(summary(failures, len(chapters)), file=sys.stderr)
    return 0 if book and not failures else 1


def absolute(model_id: str) -> str:
    """Makes a folder's path absolute, since chapters run in another folder; a name on the hub stays."""
    is_folder = model_id != "embedded" and Path(model_id).expanduser().is_dir()
    return str(Path(model_id).expanduser().resolve()) if is_folder else model_id


def report_book(executed: Path, args: argparse.Namespace, failures: list[ChapterFailed]) -> bool:
    """Builds the book, prints where it is, and returns whether Sphinx found no fault."""
    try:
        page = build_book(
            executed,
            args.build,
            failures=failures,
            whole=not args.chapters,
            reference=not args.no_reference,
        )
    except BookFailed as error:
        print(error, file=sys.stderr)
        return False
    print(f"\nThe book of this run: {page}")
    return True


def summary(failures: list[ChapterFailed], asked: int) -> str:
    """Says which chapters failed, where and how, and what to do."""
    lines = [f"\n{asked - len(failures)} of {asked} chapters ran, {len(failures)} failed:"]
    lines += [f"  {f.chapter} {f.place}: {(f.reason.splitlines() or [''])[0]}" for f in failures]
    return "\n".join([*lines, "Fix the cause and run `make run` again: it runs the failed chapters only."])


if __name__ == "__main__":
    sys.exit(main())
