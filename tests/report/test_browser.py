"""The page in a real browser: no errors, and everything on it is visible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nbllama.report.write import write_report
from tests.browser import chromium, show
from tests.report.story import EVIL, write_log

DRAWN = """
return [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).map(s => {
  const box = s.getBoundingClientRect();
  const curves = [...s.querySelectorAll('path.curve, rect.bar')].map(c => {
    const b = c.getBoundingClientRect(), style = getComputedStyle(c);
    return [b.width, b.height, style.stroke, style.fill];
  });
  const texts = [...s.querySelectorAll('text')].map(t => {
    const b = t.getBoundingClientRect();
    return [b.left >= box.left - 1 && b.right <= box.right + 1, b.height];
  });
  return {label: s.getAttribute('aria-label'), width: box.width, height: box.height, curves, texts};
});
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(str(write_log(folder / "log.jsonl")), str(folder / "run.html"))
    return (folder / "run.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (768, 1024), (375, 740)])
def test_no_error_and_every_curve_is_drawn(browser: Any, url: str, width: int, height: int) -> None:
    show(browser, url, width, height)
    assert browser.get_log("browser") == []
    assert browser.title.endswith(f"SmolLM2 {EVIL}.gguf")  # not "broken"
    drawn = browser.execute_script(DRAWN)
    names = [d["label"] for d in drawn]
    assert names == [
        "Loss by iteration", "Learning rate by iteration", "Gradient norm by iteration",
        "Tokens per second by iteration", "Memory by iteration", "Samples by length",
    ]  # fmt: skip
    for chart in drawn:
        assert chart["width"] > 250 and chart["height"] > 120, chart["label"]
        for w, h, stroke, fill in chart["curves"]:
            # bars can be low, and a curve can be flat
            assert w > 10 and h >= 0, chart["label"]
            assert stroke != "none" or fill != "none"
        assert max(h for _, h, _, _ in chart["curves"]) > 2, chart["label"]
        assert len(chart["texts"]) >= 4
        assert all(inside and tall >= 8 for inside, tall in chart["texts"]), chart["label"]
    assert len(drawn[0]["curves"]) == 3  # each iteration, their mean, validation


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_nothing_is_wider_than_the_screen(browser: Any, url: str, width: int) -> None:
    show(browser, url, width, 800)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    texts = browser.execute_script(
        "return [...document.querySelectorAll('td,th,p,h1,b')].every("
        "e => e.getBoundingClientRect().right <= innerWidth + 1)"
    )
    assert texts


def test_light_and_dark_are_different_and_legible(browser: Any, url: str) -> None:
    found = []
    for scheme in ("light", "dark"):
        show(browser, url, 1000, 800, scheme)
        colours = browser.execute_script(
            "const s = e => getComputedStyle(document.querySelector(e));"
            "return [s('body').backgroundColor, s('body').color, s('.card').backgroundColor,"
            " s('.curve.train').stroke, s('.curve.val').stroke, s('.about').color,"
            " s('.tick').fill]"
        )
        found.append(colours)
        page, ink, card, *others = map(luminance, colours)
        assert contrast(page, ink) > 7 and contrast(card, ink) > 7
        for other in others:
            assert contrast(card, other) > 3, (scheme, colours)
        assert contrast(card, others[-1]) > 4.5
    assert all(a != b for a, b in zip(*found, strict=True))


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    parts = [int(p) / 255 for p in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_it_prints_light(browser: Any, url: str) -> None:
    show(browser, url, 1000, 800, "dark")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(255, 255, 255)"
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert len(pdf) > 20_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
