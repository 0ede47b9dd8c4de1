"""check_handler: planted faults that are easily missed, and sound handlers that are easily suspected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_handler_report import SAMPLES, SOUND, TABLE, failed, report_of
from tutorial_lib.errors import PackageMissing
from tutorial_lib.testing import HandlerReport, Request, check_handler

pytestmark = pytest.mark.faults

Rows = dict[str, tuple[bool | None, str]]


def rows_of(report: HandlerReport) -> Rows:
    return {check.name: (check.ok, check.found) for check in report.checks}


def config(folder: Path, text: str = "batchSize: 8\n") -> Path:
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


# Answers rightly, and leaves traces everywhere.
STRAYING = """
import subprocess, sys, tempfile, threading, time
import torch

KEPT = torch.zeros((), requires_grad=True)


class Straying:
    def initialize(self, context):
        threading.Thread(target=time.sleep, args=(1000,)).start()
        subprocess.Popen(["sleep", "1000"])
        open(CACHE).read()

    def handle(self, data, context):
        global KEPT
        print("got", data)
        KEPT = KEPT + 1
        tempfile.NamedTemporaryFile(delete=False).close()
        time.sleep(0.01 * len(data))
        return [sum(row["body"]["x"]) for row in data]
"""


def test_what_a_handler_does_beside_answering_is_seen(tmp_path: Path) -> None:
    cache, project = tmp_path / "cache", tmp_path / "project"
    cache.mkdir()
    project.mkdir()
    (cache / "weights").write_text("")
    source = STRAYING.replace("CACHE", repr(str(cache / "weights")))
    report = report_of(project, source, config_file=config(tmp_path))
    rows = rows_of(report)
    assert rows["same answer in a batch"] == (True, "up to 8 requests, in several orders")
    assert rows["memory"][0] is False and "gradients" in rows["memory"][1]
    assert rows["files"][0] is None and str(cache / "weights") in rows["files"][1]
    assert rows["files left"][0] is False and "the temporary folder's" in rows["files left"][1]
    assert rows["log"] == (None, "has the bodies of requests")
    assert rows["threads and processes"] == (None, "2 threads, 2 processes: what they do was not checked")
    assert rows["time by batch size"][0] is None and "a batch saves little" in rows["time by batch size"][1]
    assert "Prediction failed: KeyError: 'x' (its_handler.py, line " in rows["bad requests"][1]


@pytest.mark.parametrize(
    ("answers", "row", "found"),
    [
        ("assert len(rows) < 7, 'too many'; return sums", "same answer in a batch", "too many"),
        ("open('state', 'a').write('x'); return sums", "files left", "change or remove state"),
        ("return [sum(row) / 0 for row in rows]", "answers the samples", "ZeroDivisionError: float division"),
        ("os._exit(0)", "stays alive", "exit status 0"),
        ("os.kill(os.getpid(), 9)", "stays alive", "killed by SIGKILL"),
        ("return ['at %s' % time.time() for row in rows]", "same answer again", ", then 200"),
        ("return [os.urandom(4).hex() for row in rows]", "same answer again", ", then 200"),
        ("random.seed(time.time()); return [random.random()] * len(rows)", "same answer again", ", then 200"),
        ("threading.Thread(target=time.sleep, args=(99,)).start(); return sums",
         "threads and processes", "requests leave"),
        ("self.drop = self.drop or torch.nn.Dropout(); return sums", "same answer again", "Dropout"),
    ],
)  # fmt: skip
def test_a_planted_fault_fails_its_row(answers: str, row: str, found: str, tmp_path: Path) -> None:
    answers = answers.replace("sums", "list(map(sum, rows))")
    source = "import os, random, threading, time, torch\n" + TABLE.replace("ANSWERS", answers)
    source = source.replace("self.seen = []", "self.drop = None; open('state', 'w').close()")
    report = report_of(tmp_path, source, config_file=config(tmp_path))
    assert row in failed(report), report
    assert found in rows_of(report)[row][1], report


BACKGROUND = """
import threading

SCALE, STARTED = [1], threading.Event()


def change():
    STARTED.wait()
    SCALE[0] = 2


def handle(data, context):
    if data is None:
        threading.Thread(target=change).start()
        return None
    if data[0]["body"] == {"x": [5, 6]}:
        STARTED.set()
    return [SCALE[0] * sum(row["body"]["x"]) for row in data]
"""


def test_a_thread_that_changes_the_model_is_found(tmp_path: Path) -> None:
    report = report_of(tmp_path, BACKGROUND)
    assert failed(report) & {"same answer again", "loads a second time", "threads and processes"}, report


def test_an_order_that_cannot_be_seen_is_not_claimed(tmp_path: Path) -> None:
    source = TABLE.replace("ANSWERS", "return [len(row) for row in rows]")
    row = rows_of(report_of(tmp_path, source, config_file=config(tmp_path)))["same answer in a batch"]
    assert row[0] and "order was not checked" in row[1]


@pytest.mark.parametrize(
    ("sample", "expression", "kind"),
    [("a text", "row['body'].upper()", "a JSON object"), (b"\x89PNG", "row['body'].hex()", "a text")],
)
def test_bodies_of_other_kinds_are_sent(sample: Any, expression: str, kind: str, tmp_path: Path) -> None:
    source = f"def handle(data, context):\n    return data and [{expression} for row in data]\n"
    row = rows_of(report_of(tmp_path, source, [sample]))["bad requests"]
    assert row[0] is False and "AttributeError" in row[1] and kind in row[1]


SAMPLING = """
import random
import numpy
import torch


class Sampling:
    def initialize(self, context):
        self.own = torch.Generator()
        self.chance, self.rng = random.Random(), numpy.random.default_rng()

    def handle(self, data, context):
        drawn = torch.multinomial(torch.ones(len(data), 50), 4, replacement=True).tolist()
        own = torch.rand(len(data), generator=self.own).tolist()
        return [[*row, x, self.chance.random(), self.rng.random()] for row, x in zip(drawn, own)]
"""
ONE = """
import json


def handle(data, context):
    if data is None:
        return None
    body = data[0].get("body") or data[0].get("data")
    try:
        body = body if isinstance(body, dict) else json.loads(body)
        return [body["x"][0]]
    except Exception:
        context.set_response_status(code=400, phrase="Bad Request", idx=0)
        return ["no"]
"""
PARTS = """
def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        if set(row) != {"image", "caption"}:
            context.set_response_status(code=400, phrase="Bad Request", idx=index)
            answers.append("no")
            continue
        kind = context.get_request_header(index, "X-Kind")
        answers.append([len(row["image"]), bytes(row["caption"]).decode(errors="replace"), kind])
    return answers
"""
PARTED = [Request({"caption": c}, {"image": c.encode()}, {"X-Kind": c}) for c in ("a cat", "a bird")]


@pytest.mark.parametrize(
    ("source", "samples", "settings"),
    [
        (SAMPLING, ["a prompt", "another one"], "batchSize: 8\n"),
        (ONE, SAMPLES, None),
        (PARTS, PARTED, "batchSize: 4\n"),
    ],
)
def test_a_sound_handler_has_no_failed_row(
    source: str, samples: Any, settings: str | None, tmp_path: Path
) -> None:
    options = {"config_file": config(tmp_path, settings)} if settings else {}
    report = report_of(tmp_path, source, samples, **options)
    assert not failed(report), report


BEHIND_BODY = "def handle(data, context):\n    return data and [sum(row['x']) for row in data]\n"
BEHIND_V2 = "def handle(data, context):\n    return data and [sum(row['data']) for row in data]\n"
INSTANCES = [{"instances": [{"x": [1, 2]}, {"x": [3]}]}, {"instances": [{"x": [4]}]}]
V2 = [{"inputs": [{"name": "a", "shape": [2], "datatype": "INT64", "data": [n, 2]}]} for n in (1, 5)]


@pytest.mark.parametrize(
    ("envelope", "source", "samples"),
    [
        ("body", BEHIND_BODY, SAMPLES),
        ("json", BEHIND_BODY, INSTANCES),
        ("kserve", BEHIND_BODY, INSTANCES),
        ("kservev2", BEHIND_V2, V2),
    ],
)
def test_a_handler_behind_an_envelope_is_not_blamed_for_it(
    envelope: str, source: str, samples: Any, tmp_path: Path
) -> None:
    report = report_of(tmp_path, source, samples, envelope=envelope, config_file=config(tmp_path))
    assert not failed(report), report


def test_a_user_without_a_name_can_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is started with a number as its user."""
    nameless = (
        "import pwd\n\ndef getpwuid(uid):\n    raise KeyError('uid not found')\n\npwd.getpwuid = getpwuid\n"
    )
    (tmp_path / "sitecustomize.py").write_text(nameless)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("HOME", raising=False)
    report = report_of(tmp_path, TABLE.replace("ANSWERS", SOUND))
    assert not failed(report) and "getpwuid" not in report.log, report


def test_threads_are_those_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tutorial_lib.handlers.check_handler.usable_cores", lambda: 6)
    report = report_of(
        tmp_path,
        TABLE.replace("ANSWERS", SOUND),
        config_file=config(tmp_path, "minWorkers: 2\nbatchSize: 2\n"),
    )
    assert "(3 threads)" in rows_of(report)["time by batch size"][1], report


def test_a_missing_extra_is_no_fault_of_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ts", None)
    monkeypatch.setattr("tutorial_lib.extras.find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match="check_handler needs the package ts"):
        check_handler("handler.py", SAMPLES)
