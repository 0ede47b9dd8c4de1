"""What chapters work with: a folder of their own, the sample request, the course's archive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from course.labels import label_map
from tutorial_lib import build_archive
from tutorial_lib.course_files import course_file


def new_folder(name: str) -> Path:
    """Makes an empty folder `build/<name>`, and removes what an earlier run left there."""
    folder = Path("build", name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def sample_request() -> dict[str, list[str]]:
    """Returns the course's sample request, `sample_input.json`.

    >>> list(sample_request())
    ['input']
    """
    request: dict[str, list[str]] = json.loads(course_file("sample_input.json").read_text())
    return request


def course_archive(model_dir: Path, name: str = "BERTweetSentimentAnalysis", **options: Any) -> Path:
    """Builds the archive of chapter 04: the handler, an exported model, its label map, and the settings.

    Args:
        model_dir: the exported model.
        name: the archive's name.
        options: arguments of `build_archive` that differ from chapter 04's.

    Returns:
        the archive, in `model_store` unless `export_path` is another folder.
    """
    usual: dict[str, Any] = {
        "handler": "handler.py",
        "model_dir": model_dir,
        "extra_files": [label_map(model_dir)],
        "config_file": "model-config.yaml",
        "export_path": "model_store",
    }
    return build_archive(name, **{**usual, **options})
