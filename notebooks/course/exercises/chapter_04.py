import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from course.exercises import Exercise


def _makes_mar(files: dict[str, str], use: Callable[[Path], Any]) -> Any:
    with TemporaryDirectory() as folder:
        mar = Path(folder) / "some.mar"
        with zipfile.ZipFile(mar, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return use(mar)


_MANIFEST = json.dumps({"model": {"modelName": "m", "serializedFile": "w.safetensors"}})

EXERCISES = {
    "04.1": Exercise(
        lambda answer: sorted(_makes_mar({"a": "", "b": ""}, answer)) == ["a", "b"],
        "a .mar is a zip: zipfile.ZipFile(mar).namelist()",
        """import zipfile

def answer(mar):
    return zipfile.ZipFile(mar).namelist()""",
    ),
    "04.2": Exercise(
        lambda answer: _makes_mar({"MAR-INF/MANIFEST.json": _MANIFEST}, answer) == "w.safetensors",
        'the manifest is MAR-INF/MANIFEST.json; the name is under "model", "serializedFile"',
        """from tutorial_lib import read_manifest

def answer(mar):
    return read_manifest(mar)["model"]["serializedFile"]""",
    ),
}
