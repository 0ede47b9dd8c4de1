"""Finds the course's own handler, settings and Dockerfile, also where only the wheel is installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
# The wheel carries them beside this file (pyproject.toml lists them); in a checkout they lie one folder up.
_ROOTS = (_PACKAGE / "course_files", _PACKAGE.parent)

# Where Python imports from a zip file, nothing but modules can be found.
IN_A_ZIP = (
    f"tutorial_lib was imported from {_PACKAGE.parent}, which is no folder, so its files can't be used. "
    "Install it with pip, or unpack it."
)


def course_file(name: str) -> Path:
    """The path of one of the course's files: a handler to start from, and what belongs around it.

    Args:
        name: "handler.py", "index_to_name.json", "model-config.yaml", "sample_input.json", "metrics.yaml",
            "constraints.txt", or a file or folder below "deploy/image".

    Raises:
        FileNotFoundError: the course has no such file, or this package lies in a zip file.

    >>> course_file("handler.py").name
    'handler.py'
    """
    if not _PACKAGE.is_dir():
        raise FileNotFoundError(IN_A_ZIP)
    for root in _ROOTS:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(
        f"The course has no file {name!r}. It has handler.py, index_to_name.json, model-config.yaml, "
        "sample_input.json, metrics.yaml, constraints.txt and deploy/image."
    )
