"""check_handler: each fault is found in its row, and sound handlers of every kind pass."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tests import handlers
from tutorial_lib import ArchiveError, build_archive
from tutorial_lib.handlers.check_handler import main
from tutorial_lib.testing import check_handler

pytestmark = pytest.mark.faults

SAMPLES = [{"x": [1, 2]}, {"x": [5, 6]}]

# A sound handler of a table, but for what a case puts in place of ANSWERS and other lines.
TABLE = """
import json


class Table:
    def initialize(self, context):
        self.seen = []

    def handle(self, data, context):
        rows = [self.read(row, index, context) for index, row in enumerate(data)]
        ANSWERS

    def read(self, row, index, context):
        body = row.get("body") or row.get("data")
        try:
            body = json.loads(body) if isinstance(body, (str, bytes, bytearray)) else body
            return [float(value) for value in body["x"]]
        except (ValueError, TypeError, KeyError):
            context.set_response_status(code=400, phrase="Bad Request", idx=index)
            return []
"""
SOUND = "return [sum(row) for row in rows]"

DECLARED = """
ts_metrics: {}
model_metrics:
  counter:
    - {name: Others, unit: count, dimensions: [ModelName, Level]}
"""
# Sound in its answers alone.
CARELESS = """
import os

KEPT, LOADED = [], []


def handle(data, context):
    if data is None:
        if LOADED:
            raise RuntimeError("loaded already")
        LOADED.append(1)
        open(PATH).read()
        return None
    KEPT.append("x" * 10_000)
    context.metrics.add_metric("Rows", 1, unit="count")
    return [sum(row["body"]["x"]) for row in data]
"""


def report_of(folder: Path, source: str, samples: Any = SAMPLES, **arguments: Any) -> Any:
    (folder / "its_handler.py").write_text(source)
    return check_handler(folder / "its_handler.py", samples, **arguments)


def failed(report: Any) -> set[str]:
    assert all(check.fix for check in report.checks if check.ok is False), report
    return {check.name for check in report.checks if check.ok is False}


@pytest.mark.parametrize(
    ("answers", "row", "found"),
    [
        (
            "return [sum(row) + max(map(sum, rows)) for row in rows]",
            "same answer in a batch",
            "in a batch of",
        ),
        ("return [sum(row) for row in rows[::-1]]", "same answer in a batch", "alone 3.0"),
        ("return [sum(row) for row in rows][:3]", "same answer in a batch", "mismatched"),
        ("self.seen += rows[:3]; return [len(self.seen)] * len(rows)", "same answer again", ", then "),
        ("return [{1, 2} for row in rows]", "answers the samples", "Unsupported model output"),
        ("return [float('nan') for row in rows]", "answers the samples", "NaN"),
        ("raise SystemExit(3)", "answers the samples", "Worker died: SystemExit: 3"),
        ("import os; os._exit(3)", "stays alive", "exit status 3"),
    ],
)
def test_a_fault_is_found_in_its_row(answers: str, row: str, found: str, tmp_path: Path) -> None:
    source = TABLE.replace("ANSWERS", answers)
    (tmp_path / "config.yaml").write_text("batchSize: 8\n")
    report = report_of(tmp_path, source, config_file=tmp_path / "config.yaml")
    assert not report.ok and failed(report) >= {row}, report
    assert found in next(check.found for check in report.checks if check.name == row), report
    assert "[FAIL]" in str(report) and "[FAIL]" in report._repr_html_()


def test_careless_handling_is_found_in_every_row(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("beside the handler, and not in the archive")
    (tmp_path / "metrics.yaml").write_text(DECLARED)
    source = CARELESS.replace("PATH", repr(str(tmp_path / "words.txt")))
    report = report_of(tmp_path, source, extra_files=[tmp_path / "metrics.yaml"])
    rows = {check.name: check.found for check in report.checks}
    assert failed(report) == {
        *("every form of a body", "bad requests", "loads a second time", "memory", "metrics", "files"),
    }, report
    assert "503 Prediction failed: TypeError: string indices" in rows["every form of a body"]
    assert "(its_handler.py, line " in rows["every form of a body"]
    assert "their neighbours lose their answers: an empty body" in rows["bad requests"]
    assert rows["metrics"].endswith("drops them: Rows") and str(tmp_path / "words.txt") in rows["files"]
    assert "loaded already" in rows["loads a second time"] and "loaded already" in report.log


@pytest.mark.parametrize(
    ("source", "row", "fix"),
    [
        ("import no_such_package\n", "loads", "Install no_such_package"),
        ("def handle(data, context):\n    open('weights')\n", "loads", "extra_files"),
        ("def handle(data context):\n", "loads", ".log has the traceback"),
        ("import time\ntime.sleep(100)\n", "ends in time", "timeout="),
    ],
)
def test_a_handler_that_does_not_load(source: str, row: str, fix: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, source, timeout=6 if "sleep" in source else 300)
    assert failed(report) == {row}, report
    assert fix in report.checks[-1].fix


GENERATOR = """
import torch
from ts.handler_utils.utils import send_intermediate_predict_response


class Generator:
    def initialize(self, context):
        self.words = ["one ", "two ", "three "]

    def handle(self, data, context):
        for _ in range(2):
            words = [self.words[int(torch.randint(3, ()))]] * len(data)
            send_intermediate_predict_response(words, context.request_ids, "part", 200, context)
        return ["end"] * len(data)
"""
PICTURE = """
import io

from PIL import Image


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        try:
            answers.append(Image.open(io.BytesIO(row.get("body") or row.get("data"))).size)
        except (OSError, TypeError):
            context.set_response_status(code=400, phrase="Bad Request", idx=index)
            answers.append("Send a picture.")
    return answers
"""


def test_sound_handlers_pass(tmp_path: Path) -> None:
    from PIL import Image

    png = io.BytesIO()
    Image.new("L", (8, 4)).save(png, "png")
    table = TABLE.replace("ANSWERS", SOUND)
    for source, samples in ((table, SAMPLES), (GENERATOR, ["a prompt"]), (PICTURE, [png.getvalue()])):
        report = report_of(tmp_path, source, samples)
        assert report.ok, report
        assert report.checks[-1].name == "time by batch size" and "8: " in report.checks[-1].found


def test_a_file_that_is_found_from_one_working_directory_only_is_noted(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("good")
    report = report_of(tmp_path, handlers.TEXT, ["a good day"], extra_files=[tmp_path / "words.txt"])
    [row] = [check for check in report.checks if check.name == "files"]
    assert row.ok is None and "words.txt only because" in row.found


def test_a_handler_behind_an_envelope_is_checked_as_it_is_served(tmp_path: Path) -> None:
    """base_handler reads rows of numbers, which a server with service_envelope=json takes out of the body."""
    model_file, weights = handlers.write_model(tmp_path, "image", handlers.IMAGE_MODEL)
    files: dict[str, Any] = {"model_file": model_file, "serialized_file": weights}
    pictures = [[[[float(i)] * 8] * 8] for i in (1, 2)]
    samples = [{"instances": pictures}, {"instances": pictures[:1]}]
    report = check_handler("base_handler", samples, **files, envelope="json")
    assert report.ok, report
    rows = {check.name: check for check in report.checks}
    assert rows["same answer in a batch"].ok
    assert rows["every form of a body"].ok is None and "text" in rows["every form of a body"].found
    assert not check_handler("base_handler", samples, **files).ok


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.py").write_text(TABLE.replace("ANSWERS", SOUND))
    (tmp_path / "sample.json").write_text('{"x": [1]}')
    assert (
        main(["check-handler", str(tmp_path / "table.py"), f"@{tmp_path / 'sample.json'}", '{"x": [2]}']) == 0
    )
    assert "[OK]   answers the samples" in capsys.readouterr().out
    assert main(["check-handler", str(tmp_path / "table.py"), "a text, not JSON"]) == 1
    assert "[FAIL] answers the samples" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["check-handler", "gone.py", "7"])
    assert "There is no handler file gone.py" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["check-handler", str(tmp_path / "table.py"), str(tmp_path / "sample.json")])
    assert f"Did you mean @{tmp_path / 'sample.json'}?" in capsys.readouterr().err


def test_an_archive_and_a_handler_of_torchserves_are_checked(tmp_path: Path) -> None:
    (model_file, weights), extra = handlers.write_classifier(tmp_path)
    report = check_handler(
        "text_classifier", ["good day"], model_file=model_file, serialized_file=weights, extra_files=extra
    )
    assert report.ok, report
    (tmp_path / "table.py").write_text(TABLE.replace("ANSWERS", SOUND))
    mar = build_archive("m", handler=tmp_path / "table.py", export_path=tmp_path / "store")
    report = check_handler(mar, SAMPLES)
    assert report.ok, report
    with pytest.raises(ArchiveError, match="Give no others with it"):
        check_handler(mar, SAMPLES, extra_files=extra)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([], "There are 0 samples"),
        ({"x": 1}, "Give a list"),
        ("a text", "Give a list"),
        ([{1, 2}], "neither JSON, nor text, nor bytes"),
        ([float("nan")], "neither JSON"),
    ],
)
def test_samples_that_are_none(samples: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_handler("handler.py", samples)
