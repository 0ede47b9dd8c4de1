"""The fixture `torchserve`, as other people's tests use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import folders

TEST = """
import pytest
from tutorial_lib import TutorialError, build_archive

seen = []


def test_one(torchserve, tmp_path):
    handler = tmp_path / "echo.py"
    handler.write_text("def handle(data, context):\\n    return data and [bytes(r['body']) for r in data]\\n")
    server = torchserve(models={"echo": build_archive("echo", handler=handler, export_path=tmp_path)})
    seen.append(server)
    assert server.inference.predict("echo", b"hi") == "hi"
    raise RuntimeError('a test that fails')


def test_its_server_was_stopped():
    [server] = seen
    with pytest.raises(TutorialError):
        server.pid
"""


def test_a_server_of_the_fixture_answers_and_is_stopped_also_after_a_failure(tmp_path: Path) -> None:
    before = folders()
    (tmp_path / "test_it.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "1 failed, 1 passed" in run.stdout and "a test that fails" in run.stdout, run.stdout
    assert folders() == before
