"""How long chapters measure, and what happens when a measurement goes against a claim."""

from __future__ import annotations

import os

# Chapters that run as tests measure shortly.
quick = os.environ.get("COURSE_QUICK", "") not in ("", "0")


def spare_the_machine() -> None:
    """Settings for servers that live for seconds, side by side. What the environment has already stays.

    The JVM compiles quickly rather than well, and torch takes one thread.
    """
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def seconds(normal: float) -> float:
    """A measurement's duration: a third of the normal one with COURSE_QUICK=1, yet at least 0.4 seconds."""
    return max(0.4, normal / 3) if quick else normal


def times(normal: int) -> int:
    """How often something is measured: once with COURSE_QUICK=1."""
    return 1 if quick else normal


def measured(holds: object, claim: str) -> None:
    """Prints a warning where a measurement goes against what the chapter claims.

    A warning, no error: other programs may have used the cores. The committed outputs must satisfy every
    claim; tests/test_notebooks_static.py checks that.

    >>> measured(2 < 1, "two is less than one")
    Not so in this run: two is less than one. Is the machine busy? Run it again when it is not.
    """
    if not holds:
        print(f"Not so in this run: {claim}. Is the machine busy? Run it again when it is not.")
