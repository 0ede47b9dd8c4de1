"""The workflows of GitHub Actions and .ci/run, as far as their files show; nothing here runs on GitHub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[Any, Any]:
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return workflow


def test_the_workflows_are_those_that_are_meant() -> None:
    assert [path.stem for path in WORKFLOWS] == ["book", "ci", "weekly"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_job_is_limited_and_each_action_is_one_commit(path: Path) -> None:
    workflow = load(path)
    assert workflow["name"] and workflow[True]  # YAML reads the key "on" as true
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest" and 0 < job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
    text = path.read_text(encoding="utf-8")
    assert "secrets." not in text
    for action in re.findall(r"uses: (.*)", text):  # a tag can be moved to other code
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize(("workflow", "job", "pins"), [("ci", "test", ""), ("weekly", "newest", "PINS= ")])
def test_the_tests_run_on_each_supported_python(workflow: str, job: str, pins: str) -> None:
    runs = load(ROOT / f".github/workflows/{workflow}.yml")["jobs"][job]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert runs["strategy"]["matrix"]["python"] == supported
    assert runs["steps"][-1]["run"] == "make PYTHON=python${{ matrix.python }} " + pins + "test"


def test_a_commit_is_tested_once() -> None:
    """With `push` on all branches, each commit of a pull request was tested twice."""
    assert load(ROOT / ".github/workflows/ci.yml")[True] == {
        "push": {"branches": ["main"]},
        "pull_request": None,
    }


def test_the_weekly_run_starts_by_the_clock_and_by_hand() -> None:
    triggers = load(ROOT / ".github/workflows/weekly.yml")[True]
    assert triggers.keys() == {"schedule", "workflow_dispatch"}
    minute, hour, *days = triggers["schedule"][0]["cron"].split()
    assert days == ["*", "*", "1"] and int(hour) < 24 and 0 < int(minute) < 60  # at full hours GitHub is busy


@pytest.mark.parametrize(
    ("pins", "shown"), [((), "-c constraints.txt -e"), (("PINS=",), "--progress-bar off -e")]
)
def test_setup_leaves_the_pins_out_if_asked_to(pins: tuple[str, ...], shown: str) -> None:
    command = ["make", "--dry-run", "--always-make", *pins, f"PYTHON={sys.executable}", "setup"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert re.search(rf"pip install .*{shown} ", " ".join(done.stdout.split())), done.stderr


def test_dependabot_watches_actions_and_pins() -> None:
    settings = load(ROOT / ".github" / "dependabot.yml")
    watched = {entry["package-ecosystem"]: entry["directory"] for entry in settings["updates"]}
    assert settings["version"] == 2 and watched == {"github-actions": "/", "pip": "/"}
    assert (ROOT / "constraints.txt").is_file()  # in the folder that is watched


def test_the_published_folder_is_the_one_that_make_run_writes() -> None:
    jobs = load(ROOT / ".github/workflows/book.yml")["jobs"]
    *_, run, upload = jobs["build"]["steps"]
    assert run["run"].endswith(" run") and upload["uses"].startswith("actions/upload-pages-artifact@")
    assert upload["with"]["path"] == "build/book"  # tests/test_book.py holds that run.py writes there
    publish = jobs["publish"]
    assert publish["needs"] == "build" and publish["environment"]["name"] == "github-pages"
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert publish["steps"][-1]["uses"].startswith("actions/deploy-pages@")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_make_target_that_a_workflow_runs_is_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    runs = [step["run"] for job in load(path)["jobs"].values() for step in job["steps"] if "run" in step]
    for command in runs:
        if command.startswith("make "):
            assert command.split()[-1] in targets
        elif not command.startswith(".venv/bin/python "):
            assert (ROOT / command.removeprefix("bash ")).is_file()


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="the bare PATH is made of Debian's packages")
def test_ci_runs_the_tests_first_with_what_a_bare_debian_has(tmp_path: Path) -> None:
    steps = re.findall(r"(?m)^(?!#).*\bmake \w+.*", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert steps[0].startswith(".ci/bare-path make test")
    there, absent = (
        "sh make python3 kill awk tar",
        "java podman docker chromium prometheus node npm pyenv git",
    )
    asked = (
        f'for program in {there} {absent}; do command -v "$program"; done; echo "${{JAVA_HOME-none}}"; exit 3'
    )
    done = subprocess.run(
        [ROOT / ".ci" / "bare-path", "sh", "-c", asked],
        env={**os.environ, "JAVA_HOME": "/usr/lib/jvm/any", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    *programs, java_home = done.stdout.splitlines()
    assert [Path(program).name for program in programs] == there.split(), done.stderr
    assert (java_home, done.returncode, list(tmp_path.iterdir())) == ("none", 3, [])
