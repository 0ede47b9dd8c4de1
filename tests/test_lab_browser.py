"""A reader opens JupyterLab with `make lab`, runs chapters, interrupts a server's start, and shuts down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from course.servers import free_port
from playwright.sync_api import Locator, Page

from tests.browser import chromium
from tests.conftest import ROOT, below, eventually, folders, gone

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SECONDS = 120  # for what takes 10 on a quiet machine
# The notebook that is shown, as JupyterLab holds it.
NOTEBOOK = "jupyterapp.shell.currentWidget.content.model.toJSON()"
ENDED = f"""{NOTEBOOK}.cells.filter(cell => cell.cell_type === 'code').every(cell => cell.execution_count)
    || {NOTEBOOK}.cells.some(cell => cell.outputs?.some(output => output.output_type === 'error'))"""
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, int]]:
    """JupyterLab in a copy of the course, in a browser; with it the process id of `make lab`."""
    folder = tmp_path_factory.mktemp("lab")
    course, log, left = folder / "course", folder / "log", folders()
    shutil.copytree(ROOT, course, ignore=shutil.ignore_patterns(".*", "build", "__pycache__", "*.mar"))
    # The environment of these tests is the one to use, so nothing is to be set up.
    command = ["make", "-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", "lab"]
    with chromium() as browser, log.open("w") as output:
        make = subprocess.Popen(
            command, cwd=course, env=own_settings(folder), stdout=output, stderr=subprocess.STDOUT
        )
        started: list[psutil.Process] = []
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(SECONDS * 1000)
            # Jupyter writes a page that leads to the notebook, and opens it in the reader's browser.
            (start,) = eventually(lambda: list((folder / "runtime").glob("jpserver-file-to-run-*")), SECONDS)
            page.goto(start.as_uri())
            page.wait_for_function(IDLE)
            yield page, make.pid
            started = below(make.pid)
            shut_down(page)
            assert make.wait(SECONDS) == 0, log.read_text()
            eventually(lambda: gone(started))
            assert folders() == left
        finally:
            if make.poll() is None:
                started += below(make.pid)
            for process in started:
                if process.is_running():
                    process.kill()


def own_settings(folder: Path) -> dict[str, str]:
    """The environment with Jupyter's settings for a test: a free port, no second browser, own folders."""
    settings = {
        "ServerApp": {"port": free_port(), "port_retries": 0, "open_browser": False},
        "LabApp": {"expose_app_in_browser": True, "open_browser": False},
    }
    (folder / "config").mkdir()
    (folder / "config/jupyter_server_config.json").write_text(json.dumps(settings))
    names = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    return {**os.environ, **{variable: str(folder / name) for variable, name in names.items()}}


def choose(page: Page, menu: str, entry: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()


def shut_down(page: Page) -> None:
    choose(page, "File", "Save All")
    choose(page, "File", "Shut Down")
    page.locator(".jp-Dialog").get_by_role("button", name="Shut Down").click()


def run_all(page: Page) -> list[Any]:
    """The code cells after Clear Outputs and Run All."""
    choose(page, "Edit", "Clear Outputs of All Cells")
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(ENDED)
    return code_cells(page)


def code_cells(page: Page) -> list[Any]:
    return [cell for cell in page.evaluate(NOTEBOOK)["cells"] if cell["cell_type"] == "code"]


def kinds(cells: list[Any]) -> list[set[str]]:
    """For each cell the kinds of its outputs."""
    return [{output["output_type"] for output in cell["outputs"]} for cell in cells]


def committed(name: str) -> list[Any]:
    cells = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_chapter_00_runs_with_run_all(lab: tuple[Page, int]) -> None:
    page, _ = lab
    cells = run_all(page)
    assert kinds(cells) == kinds(committed("00_check_your_machine"))
    assert "openjdk version" in str(cells)
    assert page.locator(".jp-OutputArea table").first.get_by_text("torch-model-archiver").is_visible()


def test_chapter_02_runs_and_a_server_that_starts_can_be_interrupted_and_started_again(
    lab: tuple[Page, int],
) -> None:
    page, pid = lab
    page.locator(".jp-DirListing-item", has_text="02_inspect_the_context.ipynb").dblclick()
    page.wait_for_function(f"jupyterapp.shell.currentWidget?.title.label.startsWith('02_') && {IDLE}")
    cells = run_all(page)
    assert kinds(cells) == kinds(committed("02_inspect_the_context"))
    assert "NotImplementedError: chapter 03 goes on here" in str(cells)

    server = page.locator(".jp-Notebook:visible .jp-CodeCell", has_text="with TorchServe(models").first
    run(server)
    java = eventually(lambda: [p for p in below(pid) if p.name() == "java"], SECONDS)
    choose(page, "Kernel", "Interrupt Kernel")
    page.wait_for_function(ENDED)
    assert "KeyboardInterrupt" in str(code_cells(page))
    eventually(lambda: gone(java))

    run(server)
    page.wait_for_function(ENDED)
    assert kinds(code_cells(page)) == kinds(cells)


def run(cell: Locator) -> None:
    """Runs a cell, as Ctrl+Enter does, and waits until it has begun."""
    cell.locator(".cm-content").click()
    cell.page.keyboard.press("Control+Enter")
    cell.locator(".jp-InputPrompt", has_text="*").wait_for()
