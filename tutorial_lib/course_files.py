"""Finds the course's own handler, settings and Dockerfile, also if only the wheel is installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
EMBEDDED = _PACKAGE / "embedded"  # the small model that comes with this package
# The wheel has the files beside this one (pyproject.toml lists them); in a checkout they are one folder up.
_ROOTS = (_PACKAGE / "course_files", _PACKAGE.parent)


def course_file(name: str) -> Path:
    """Returns the path of one of the course's files, such as the handler to start from.

    Args:
        name: "handler.py", "index_to_name.json", "model-config.yaml", "sample_input.json", "metrics.yaml",
            "constraints.txt", or a file or folder below "deploy/image".

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
