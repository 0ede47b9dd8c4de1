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


EXERCISES = {
    "04.1": Exercise(
        lambda answer: sorted(_makes_mar({"a": "", "b": ""}, answer)) == ["a", "b"],
        "a .mar is a zip: zipfile.ZipFile(mar).namelist()",
        """import zipfile

def answer(mar):
    return zipfile.ZipFile(mar).namelist()""",
    ),
    "04.2": Exercise(
        lambda answer: answer({"0": "bad", "1": "good"}, {"bad": "malo"}) == {"0": "malo", "1": "good"},
        "names.get(label, label) is the new name, or the old one where there is none",
        """def answer(labels, names):
    return {index: names.get(label, label) for index, label in labels.items()}""",
    ),
}
