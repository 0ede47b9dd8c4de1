"""What chapters work with: a folder of their own, the sample request, the exported model, its archive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tutorial_lib
from course.labels import label_map
from tutorial_lib import build_archive
from tutorial_lib.course_files import EMBEDDED, course_file


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


def exported_model(model_id: str) -> Path:
    """Returns `build/my_model`, the export of chapter 01; exports the model if the folder is not that.

    A file beside the folder says what was exported, and which files came of it. A file that has changed on
    either side since, another model, and another export there make a new export.

    Args:
        model_id: as for `export_model`.

    Raises:
        ExportError: as for `export_model`.
    """
    folder, note = Path("build/my_model"), Path("build/my_model.json")

    def state() -> str:
        source = EMBEDDED if model_id == "embedded" else Path(model_id)
        return json.dumps([model_id, _files(source), _files(folder)])

    if not (note.is_file() and note.read_text() == state()):
        tutorial_lib.export_model(model_id, folder)  # imports torch
        note.write_text(state())
    return folder


def _files(folder: Path) -> list[list[Any]]:
    """Describes a folder's files by size and time; a model on the hub has none here."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


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
