"""Chapters in a copy of the course in which nothing is built yet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

from tests.conftest import ROOT


def run_chapters(chapters: str, folder: Path, model_id: str | Path, **variables: str) -> Any:
    """Copies the course into a folder, runs chapters there, and returns the first one, executed.

    Args:
        chapters: their numbers, as "01 05".
        folder: where to; it must not exist.
        model_id: the model of the chapters.
        variables: of the environment that they run in.
    """
    for name in ("notebooks", "benchmarks", "deploy"):
        shutil.copytree(ROOT / name, folder / name)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    command = [sys.executable, str(ROOT / "book" / "run.py"), "--in-place", *chapters.split()]
    command += ["--notebooks", "notebooks", "--build", "build", "--model-id", str(model_id)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (first,) = (folder / "notebooks").glob(f"{chapters[:2]}_*.ipynb")
    return nbformat.read(first, as_version=4)
