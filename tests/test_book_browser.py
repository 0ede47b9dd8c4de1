"""The book of the committed chapters: what is in it, and what readers see of it in a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from sphinx.util.inventory import InventoryFile

import tutorial_lib
from tests.browser import chromium
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(600)  # the first test builds the book, another one opens all its pages
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
FAULTS = (ROOT / "tests" / "book_faults.js").read_text()
# The targets of all links to files, and the names that links to this page may end with.
LINKS = (
    "[...document.querySelectorAll('a[href]')].map(link => link.href).filter(url => url.startsWith('file:'))"
)
ANCHORS = "[...document.querySelectorAll('[id], a[name]')].map(element => element.id || element.name)"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book of the chapters as they are committed."""
    build = tmp_path_factory.mktemp("build")
    (build / "notebooks").mkdir()
    for chapter in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        shutil.copy(chapter, build / "notebooks")
    code = "import sys; from pathlib import Path; from pages import build_book; b = Path(sys.argv[1]); "
    code += "build_book(b / 'notebooks', b)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(build)], cwd=ROOT / "book", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return build / "book"


@pytest.mark.browser
def test_the_chapters_as_committed_make_a_whole_book(book: Path) -> None:
    pages = {page.stem for page in book.glob("[0-9][0-9]_*.html")}
    assert pages == {chapter.stem for chapter in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}


def test_the_reference_has_every_public_name(book: Path) -> None:
    inventory = InventoryFile.loads((book / "objects.inv").read_bytes(), uri="").data
    names = {name for kind in ("py:class", "py:function", "py:exception") for name in inventory.get(kind, {})}
    assert set(tutorial_lib.__all__) - {name.rpartition(".")[2] for name in names} == set()
    for extra in ("testing.run_handler", "ray_app.build_app", "pytest_plugin.torchserve"):
        assert any(f"tutorial_lib.{extra}" in found for found in inventory.values()), extra


def test_the_reference_has_no_path_of_this_machine(book: Path) -> None:
    pages = [page for page in (book / "reference").glob("*.html") if str(ROOT) in page.read_text()]
    assert pages == []


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, book: Path) -> Iterator[Page]:
    """The landing page on a desk's screen."""
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened = context.new_page()
        opened.goto((book / "index.html").as_uri())
        yield opened


@dataclass
class Walk:
    """What a reader meets who clicks "next" from the landing page to the last page.

    Args:
        pages: the pages' paths in the book without their suffix, in the order of the clicks.
        faults: sentences on what is wrong, with the page, its width and its colours.
        links: by page, the addresses that the page links to in the book.
        anchors: by page, the names that a link to a place in the page may end with.
    """

    pages: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    links: dict[str, list[str]] = field(default_factory=dict)
    anchors: dict[str, set[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def walk(browser: Browser, book: Path) -> Walk:
    done = Walk()
    page = browser.new_page()
    page.on("request", lambda request: _expect_local(request.url, done))
    page.on("requestfailed", lambda request: done.faults.append(f"{page.url} did not get {request.url}"))
    page.on("pageerror", lambda error: done.faults.append(f"a script of {page.url} failed: {error}"))
    page.goto((book / "index.html").as_uri())
    while True:
        name = local_path(page.url).relative_to(book).with_suffix("").as_posix()
        done.pages.append(name)
        done.links[name], done.anchors[name] = page.evaluate(LINKS), set(page.evaluate(ANCHORS))
        for colours in ("light", "dark"):
            page.emulate_media(color_scheme=colours)
            expect(page.locator("html")).to_have_attribute("data-theme", colours)
            for width in (390, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                found = page.evaluate(FAULTS)
                done.faults += [f"{name} at {width} pixels, {colours}: {fault}" for fault in found]
        if not page.locator("a.right-next").count():
            return done
        page.locator("a.right-next").click()
        page.wait_for_load_state()


def local_path(url: str) -> Path:
    return Path(unquote(urldefrag(url).url).removeprefix("file://"))


def _expect_local(url: str, done: Walk) -> None:
    if not url.startswith(("file:", "data:")):
        done.faults.append(f"a page needs the network: {url}")


@pytest.mark.browser
def test_clicks_lead_from_the_landing_page_through_every_chapter(walk: Walk) -> None:
    assert walk.pages[0] == "index"
    assert [name for name in walk.pages if name in CHAPTERS] == CHAPTERS
    assert {"my_own_model", "book/handbook", "tutorial_lib/embedded/README"} <= set(walk.pages)
    assert {"benchmarks/results", "reference/servers"} <= set(walk.pages)


@pytest.mark.browser
def test_each_page_fits_and_can_be_read_wide_and_narrow_light_and_dark(walk: Walk) -> None:
    assert walk.faults == []


@pytest.mark.browser
def test_no_link_of_the_book_is_broken(walk: Walk, book: Path) -> None:
    places = {book / f"{name}.html": anchors for name, anchors in walk.anchors.items()}
    broken = []
    for name, links in walk.links.items():
        for link in links:
            path, anchor = local_path(link), unquote(urldefrag(link).fragment)
            if not path.is_file() or (anchor and anchor not in places.get(path, {anchor})):
                broken.append(f"{name}: {link}")
    assert broken == []


@pytest.mark.browser
def test_the_sidebar_shows_the_parts(page: Page) -> None:
    parts = page.locator(".bd-sidebar-primary .caption-text").all_inner_texts()
    assert parts == [
        "The article's road",
        "My own model",
        "Production",
        "Handbook, model card and benchmark",
        "Library reference",
    ]
    assert page.locator(".way").count() == 3
    assert page.locator("img.logo__image").first.is_visible()
    assert page.locator("link[rel=icon]").get_attribute("href")


@pytest.mark.browser
def test_formulas_are_rendered(page: Page, book: Path) -> None:
    page.goto((book / "15_scale_out.html").as_uri())
    assert page.locator("article math[display=block]").count() >= 2
    fraction = page.locator("article math mfrac").first.bounding_box()
    assert fraction and fraction["height"] > 20  # one above the other


@pytest.mark.browser
def test_search_finds_a_word_and_leads_to_its_page(page: Page) -> None:
    page.keyboard.press("Control+k")
    page.keyboard.type("canary")
    page.keyboard.press("Enter")
    page.locator("#search-results").get_by_role("link").first.click()
    expect(page.locator("article")).to_contain_text("canary")


@pytest.mark.browser
def test_a_button_copies_code_without_prompts_and_outputs(page: Page, book: Path) -> None:
    page.goto((book / "00_check_your_machine.html").as_uri())
    cells = nbformat.read(ROOT / "notebooks/00_check_your_machine.ipynb", as_version=4).cells
    code = next(cell.source for cell in cells if cell.cell_type == "code")
    assert copied(page, page.locator(".cell_input").first) == f"{code}\n"
    page.goto((book / "reference/archives.html").as_uri())
    example = copied(page, page.locator(".doctest").first)
    assert "(" in example and ">>>" not in example


def copied(page: Page, block: Locator) -> str:
    """What the clipboard holds after a click on a code block's button."""
    block.hover()
    block.get_by_role("button", name="Copy").click()
    block.get_by_role("button", name="Copied").wait_for()
    return str(page.evaluate("navigator.clipboard.readText()"))


@pytest.mark.browser
def test_each_chapter_links_to_its_notebook(page: Page, book: Path) -> None:
    for chapter in (CHAPTERS[0], CHAPTERS[5]):
        page.goto((book / f"{chapter}.html").as_uri())
        page.get_by_role("button", name="Download this page").click()
        link = page.get_by_role("link", name=".ipynb")
        target = page.evaluate("link => link.href", link.element_handle())
        assert local_path(target).read_bytes() == (book.parent / f"notebooks/{chapter}.ipynb").read_bytes()
