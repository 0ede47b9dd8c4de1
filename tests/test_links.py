"""The links of README and book to other sites; `make links` asks each site, which takes the network."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "book").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
LINK = re.compile(r"""(?:\]\(|<|href=")(https?://[^\s)>"#]+)""")
# The page is there, but the site answers programs in another way than browsers, or asks them to come later.
ALIVE = {401, 403, 405, 429}


def outer_links(page: Path) -> set[str]:
    """Returns the links of a Markdown file, or of the text of a notebook, to other sites."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return {link for link in LINK.findall(text) if "//127.0.0.1" not in link}


def test_links_are_found_and_examples_are_not(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "[a](https://a.org/x#part) <https://b.org> <a href='x'></a> <a href=\"http://c.org/\">c</a> "
        "`https://code.org` [here](http://127.0.0.1:8080) [chapter](01.ipynb)"
    )
    assert outer_links(page) == {"https://a.org/x", "https://b.org", "http://c.org/"}


def test_there_are_links_to_ask() -> None:
    assert "https://pytorch.org/get-started/locally/" in set[str]().union(*map(outer_links, PAGES))


@pytest.mark.links
@pytest.mark.parametrize("link", sorted(set[str]().union(*map(outer_links, PAGES))))
def test_a_link_leads_somewhere(link: str) -> None:
    for attempt in range(3):
        try:
            answer = requests.get(link, timeout=30, stream=True, headers={"User-Agent": "Mozilla/5.0"})
        except requests.RequestException as error:
            problem = str(error)
        else:
            answer.close()
            if answer.ok or answer.status_code in ALIVE:
                return
            problem = f"{answer.status_code} {answer.reason}"
        time.sleep(5 * attempt)
    pytest.fail(f"{link}: {problem}")
