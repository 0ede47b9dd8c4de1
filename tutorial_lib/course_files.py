"""Finds the course's own handler, settings and Dockerfile, also if only the wheel is installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
EMBEDDED = _PACKAGE / "embedded"  # the small model that comes with this package
# The wheel has the files beside this one (pyproject.toml lists them); in a checkout they are one folder up.
_ROOTS = (_PACKAGE / "course_files", _PACKAGE.parent)

# If Python imports this package from a zip file, only modules can be found there.
IN_A_ZIP = (
    f"tutorial_lib was imported from {_PACKAGE.parent}, which is no folder, so its files can't be used. "
    "Install it with pip, or unpack it."
)


def course_file(name: str) -> Path:
    """Returns the path of one of the course's files, such as the handler to start from.

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
