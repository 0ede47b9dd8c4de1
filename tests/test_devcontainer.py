"""The dev container and Binder's files: their form, and the commands they name.

Not run: VS Code, Codespaces, mybinder.org and their images. `make setup` is only printed, and pip is a fake.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.conftest import ROOT

PORT = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "onAutoForward": {"enum": ["notify", "openBrowser", "openPreview", "silent", "ignore"]},
    },
    "additionalProperties": False,
}
SIZE = {"type": "string", "pattern": r"^\d+[tgmk]b$"}
# The properties that this repository uses, as the Dev Container specification (containers.dev) defines them.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string"},
        "hostRequirements": {
            "type": "object",
            "properties": {"cpus": {"type": "integer", "minimum": 1}, "memory": SIZE, "storage": SIZE},
            "additionalProperties": False,
        },
        "postCreateCommand": {"type": "string"},
        "forwardPorts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 65535}},
        "portsAttributes": {"type": "object", "additionalProperties": PORT},
        "otherPortsAttributes": PORT,
        "customizations": {
            "type": "object",
            "properties": {
                "vscode": {
                    "type": "object",
                    "properties": {
                        "extensions": {
                            "type": "array",
                            "items": {"type": "string", "pattern": r"^[\w-]+\.[\w-]+$"},
                        },
                        "settings": {"type": "object"},
                    },
                    "additionalProperties": False,
                }
            },
        },
    },
}
BIN = Path(sys.executable).parent
FIRST_CHAPTER = "/lab/tree/notebooks/00_check_your_machine.ipynb"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture
def container() -> dict[str, Any]:
    """The settings without their comments, which stand on lines of their own."""
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    settings: dict[str, Any] = json.loads(re.sub(r"(?m)^\s*//.*$", "", text))
    return settings


def test_the_dev_container_has_the_form_of_the_specification(container: dict[str, Any]) -> None:
    jsonschema.validate(container, SCHEMA)


@pytest.mark.parametrize(
    "fault",
    [
        {"forwardPorts": ["x"]},
        {"postCreateComand": "make setup"},
        {"hostRequirements": {"memory": "8 GiB"}},
        {"portsAttributes": {"8888": {"onAutoForward": "always"}}},
    ],
)
def test_the_check_of_the_form_finds_faults(container: dict[str, Any], fault: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(container | fault, SCHEMA)


def test_the_dev_container_sets_up_as_the_makefile_does(container: dict[str, Any]) -> None:
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) and "BIN = .venv/bin\n" in MAKEFILE
    interpreter = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == "${containerWorkspaceFolder}/.venv/bin/python"
    assert "3.11" in container["image"] and container["forwardPorts"] == [8888]  # JupyterLab's default port


def test_binders_files_are_in_order() -> None:
    script = ROOT / ".binder" / "postBuild"
    assert script.stat().st_mode & 0o111  # repo2docker runs it
    lint = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True)
    assert (lint.returncode, lint.stdout) == (0, "")
    assert (ROOT / FIRST_CHAPTER.removeprefix("/lab/tree/")).is_file()
    packages = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text(encoding="utf-8"))
    assert "python=3.11" in packages["dependencies"]


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="the bare PATH is made of Debian's packages")
def test_the_dev_containers_command_needs_no_more_than_a_bare_debian(container: dict[str, Any]) -> None:
    make, *target = container["postCreateCommand"].split()
    done = subprocess.run(
        [ROOT / ".ci" / "bare-path", make, "--dry-run", "--always-make", *target],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"-m venv .venv\n.*pip install .* -c constraints.txt -e", done.stdout, re.DOTALL)


@pytest.fixture
def binder_home(tmp_path: Path) -> Path:
    """The home folder after Binder's script ran in a bare environment; `python` only notes its arguments."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$HOME/installed"\n')
    python.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.defpath}"}
    subprocess.run([ROOT / ".binder" / "postBuild"], cwd=ROOT, env=environment, check=True)
    return tmp_path


def test_binders_script_installs_the_course_with_its_pins(binder_home: Path) -> None:
    told = (binder_home / "installed").read_text().split()
    assert told[:3] == ["-m", "pip", "install"] and told[-4:] == ["-c", "constraints.txt", "-e", ".[course]"]


@pytest.mark.parametrize("program", ["lab", "server"])
def test_jupyter_reads_what_binders_script_wrote(binder_home: Path, program: str) -> None:
    shown = subprocess.run(
        [BIN / "jupyter", program, "--show-config-json"],
        env={**os.environ, "HOME": str(binder_home), "JUPYTER_CONFIG_DIR": str(binder_home / ".jupyter")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    settings = {"lab": "LabApp", "server": "ServerApp"}[program]
    assert json.loads(shown.stdout)[settings]["default_url"] == FIRST_CHAPTER, shown.stderr
