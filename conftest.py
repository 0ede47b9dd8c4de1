"""Ray gives its processes half a minute to start. While its chapter runs, those beside it stand back."""

from __future__ import annotations

import os

import pytest

RAY = "15_scale_out.ipynb"  # the first one of its run
LOW_PRIORITY = 10


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lowers the priority of a worker of pytest-xdist, and so of all that it starts from then on."""
    if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "nice") and item.path.name != RAY:
        os.nice(LOW_PRIORITY - os.nice(0))
