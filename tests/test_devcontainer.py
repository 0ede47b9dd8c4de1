"""The dev container and Binder's files: their form, and what they name. Neither is started here."""

from __future__ import annotations

import json
import re
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


def test_binder_installs_the_course_and_opens_its_first_chapter() -> None:
    script = ROOT / ".binder" / "postBuild"
    assert script.stat().st_mode & 0o111  # repo2docker runs it
    lint = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True)
    assert (lint.returncode, lint.stdout) == (0, "")
    text = script.read_text(encoding="utf-8")
    first = re.search(r'"default_url": "/lab/tree/([^"]+)"', text)
    assert first and (ROOT / first[1]).is_file()
    assert "-c constraints.txt -e '.[course]'" in text
    packages = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text(encoding="utf-8"))
    assert "python=3.11" in packages["dependencies"]
