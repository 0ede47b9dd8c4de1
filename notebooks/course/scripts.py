"""Runs a Python file as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_script(file: Path, *arguments: object, **variables: str) -> str:
    """Runs a Python file with these arguments and environment variables, and returns what it prints.

    Raises:
        RuntimeError: the program failed; the message has what it wrote to stderr.
    """
    command = [sys.executable, str(file), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{file.name} failed with exit status {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
