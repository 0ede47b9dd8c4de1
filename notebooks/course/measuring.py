"""Sets how long chapters measure, and warns when a measurement contradicts a claim."""

from __future__ import annotations

import os

# Chapters that run as tests measure for a short time.
quick = os.environ.get("COURSE_QUICK", "") not in ("", "0")


def spare_the_machine() -> None:
    """Sets variables for servers that live for seconds, side by side; variables that are set already stay.

    The JVM compiles quickly rather than well, and torch uses one thread.
    """
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def seconds(normal: float) -> float:
    """Returns a duration: a third of the normal one with COURSE_QUICK=1, yet at least 0.4 seconds."""
    return max(0.4, normal / 3) if quick else normal


def times(normal: int) -> int:
    """Returns how often something is measured: once with COURSE_QUICK=1."""
    return 1 if quick else normal


def measured(holds: object, claim: str) -> None:
    """Prints a warning if a measurement contradicts what the chapter claims.

    It raises no error, because other programs may have used the cores. The committed outputs must satisfy
    every claim; tests/test_notebooks_static.py checks this.

    >>> measured(2 < 1, "two is less than one")
    Not so in this run: two is less than one. Is the machine busy? Run it again when it is not.
    """
    if not holds:
        print(f"Not so in this run: {claim}. Is the machine busy? Run it again when it is not.")
