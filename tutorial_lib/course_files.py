"""Finds the course's own handler, settings and Dockerfile, also where only the wheel is installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
# The wheel carries them beside this file (pyproject.toml lists them); in a checkout they lie one folder up.
_ROOTS = (_PACKAGE / "course_files", _PACKAGE.parent)


def course_file(name: str) -> Path:
    """The path of one of the course's files: a handler to start from, and what belongs around it.

    Args:
        name: "handler.py", "index_to_name.json", "model-config.yaml", "sample_input.json", "metrics.yaml",
            "constraints.txt", or a file or folder below "deploy/image".

    Raises:
        FileNotFoundError: the course has no such file.

    >>> course_file("handler.py").name
    'handler.py'
    """
    for root in _ROOTS:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(
        f"The course has no file {name!r}. It has handler.py, index_to_name.json, model-config.yaml, "
        "sample_input.json, metrics.yaml, constraints.txt and deploy/image."
    )
