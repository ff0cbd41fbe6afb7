"""The documentation's site: every page has its place, the build warns of nothing, and a browser
shows it without a network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium, show
from tests.conftest import ROOT

DOCS = ROOT / "docs"
WIDTHS = {"phone": 390, "screen": 1280}


def test_every_page_has_a_place_in_the_contents() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"([\w./-]+\.(?:md|ipynb))$", nav, re.MULTILINE)
    assert len(listed) == len(set(listed))
    there = {p.relative_to(DOCS).as_posix() for e in ("md", "ipynb") for p in DOCS.rglob(f"*.{e}")}
    assert set(listed) == there, "mkdocs.yml's nav and docs/ differ"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, text=True,
        capture_output=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """The files that a page loads automatically, and its ids and links."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(found.get("href", ""))
        elif "src" in found:
            self.loads.append(found["src"])


@pytest.mark.slow
def test_nothing_is_fetched_and_every_link_resolves(site: Path) -> None:
    pages = {page: Loaded(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 30
    for page, found in pages.items():
        for target in found.loads:
            assert not re.match(r"(https?:)?//", target), f"{page.name} loads {target}"
        for target in found.loads + found.links:
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            where = (page.parent / name).resolve() if name else page
            assert where.exists(), f"{page.name}: {target}"
            if anchor and where in pages and not anchor.startswith("__"):
                assert anchor in pages[where].ids, f"{page.name}: {target}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text("utf-8"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.slow
@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_say_no_error(site: Path, browser: Any, size: str, scheme: str) -> None:
    pages = [*sorted((site / "walkthrough").glob("*.html")), site / "index.html",
             site / "options.html", site / "api" / "ops.html", site / "lesson.html"]  # fmt: skip
    for page in pages:
        show(browser, page.as_uri(), WIDTHS[size], 900, scheme)
        assert browser.get_log("browser") == [], page.name
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= WIDTHS[size], f"{page.name} is {wide} wide"
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('article img')].map(i => i.naturalWidth)"
        )
        assert all(drawn), page.name
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", colour)[0])
        assert red > 200 if scheme == "light" else red < 80, (page.name, colour)
        if size == "screen" and page.parent.name == "walkthrough":
            cut = browser.execute_script(
                "return [...document.querySelectorAll('article pre > code')]"
                ".filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.textContent)"
            )
            assert not cut, (page.name, cut)


@pytest.mark.slow
def test_search_finds_something_in_pages_opened_as_files(site: Path, browser: Any) -> None:
    show(browser, (site / "index.html").as_uri(), 1280, 900)
    box = browser.find_element("css selector", "input.md-search__input")
    box.click()
    box.send_keys("checkpoint")
    from selenium.webdriver.support.ui import WebDriverWait

    found = WebDriverWait(browser, 60).until(
        lambda b: b.find_elements("css selector", ".md-search-result__item a")
    )
    assert any("checkpoints.html" in (a.get_attribute("href") or "") for a in found)
    assert browser.get_log("browser") == []
