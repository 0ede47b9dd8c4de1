"""Workers are preloaded in tests. While Ray's chapter runs, the chapters beside it stand back."""

from __future__ import annotations

import contextlib
import os

import pytest
from course.measuring import quick, spare_the_machine

from tutorial_lib import preloaded
from tutorial_lib.preload.python import VARIABLE

RAY = "15_scale_out.ipynb"  # the first one of its run
LOW_PRIORITY = 10


def pytest_configure(config: pytest.Config) -> None:
    """Starts most workers of TorchServe as forks: else their imports are a third of all that tests do.

    One process imports for all of a run, for the kernels of chapters too. Chapters that run as readers run
    them, without COURSE_QUICK=1, start workers as readers do.
    """
    if VARIABLE not in os.environ and (quick or not config.getoption("nbmake", default=False)):
        spare_the_machine()
        block = contextlib.ExitStack()
        block.enter_context(preloaded())
        config.add_cleanup(block.close)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lowers the priority of a worker of pytest-xdist, and so of all that it starts from then on.

    Ray gives its processes half a minute to start.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "nice") and item.path.name != RAY:
        os.nice(LOW_PRIORITY - os.nice(0))
