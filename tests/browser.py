"""A headless Chromium for tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

expect.set_options(timeout=60_000)  # a machine that runs other tests beside is slow


@contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium of this machine; a test that needs one skips where there is none."""
    programs = [shutil.which(name) for name in ("chromium", "google-chrome")]
    program = next(filter(None, programs), None)
    if program is None:
        pytest.skip("no Chromium is installed: on Debian, `apt install chromium`")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program) as browser:
        yield browser
