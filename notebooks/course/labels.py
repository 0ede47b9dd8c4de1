"""The label map that fits a model, so that the chapters run with any classifier."""

from __future__ import annotations

import json
from pathlib import Path

from tutorial_lib.archives.model_files import read_labels
from tutorial_lib.course_files import course_file

COURSE_MAP = course_file("index_to_name.json")


def label_map(model_dir: Path) -> Path:
    """Returns a model's index_to_name.json: the course's where it fits, else one of the model's own labels.

    The course's map names Negative, Neutral and Positive. It fits a model whose own labels are these names
    or their beginnings, such as NEG, NEU and POS, in the same order. Three labels alone are not enough: the
    labels of another task would get wrong names.

    Args:
        model_dir: the exported model. A map that is made for it goes into a folder beside it.

    Returns:
        the file, to archive as an extra file; its path is relative to this folder if it lies below.

    Raises:
        ArchiveError: the folder has no config.json, or one that was cut off.

    >>> from tutorial_lib.export import EMBEDDED
    >>> label_map(EMBEDDED).name
    'index_to_name.json'
    """
    own = {str(index): label for index, label in sorted(read_labels(model_dir).items())}
    course: dict[str, str] = json.loads(COURSE_MAP.read_text())
    if own.keys() == course.keys() and all(course[i].lower().startswith(own[i].lower()) for i in own):
        # In a chapter the path is relative: a shell cell gets it, and the course's folder may have any name.
        return COURSE_MAP.relative_to(Path.cwd()) if COURSE_MAP.is_relative_to(Path.cwd()) else COURSE_MAP
    made = model_dir.with_name(f"{model_dir.name}-labels") / COURSE_MAP.name
    made.parent.mkdir(exist_ok=True)
    made.write_text(json.dumps(own, indent=4) + "\n")
    return made
