"""Runs the Python blocks of a Markdown page in one namespace, and compares their output with the
`text` block below each of them.

Sybil finds and runs the blocks. Words must be equal; numbers can differ as they do between CPUs:
whole ones not at all, decimals by 2 % and one in the last place, those with an exponent by a
factor of five (they are errors of rounding).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = (
    Path(__file__).resolve().parents[2]
)  # not of conftest, which needs pytest: this serves a script

WALKTHROUGH = ROOT / "docs" / "walkthrough"
FIGURES = WALKTHROUGH / "figures"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def number(page: Path) -> str:
    """The number of a page of the walkthrough, with which its name begins."""
    return page.name.partition("-")[0]


def walkthrough() -> list[Path]:
    """All pages of the walkthrough, in order."""
    return sorted(WALKTHROUGH.glob("[0-9]*-*.md"), key=lambda page: int(number(page)))


# Ink and grid of figures.mplstyle, and their colours on a dark page.
DARK = {"#1f2328": "#e6edf3", "#d0d7de": "#454c56"}


class Printed(NamedTuple):
    """The output of a block: `start`, `end` and `text` of the output block below it, or where one
    belongs (start == end).
    """

    line: int
    start: int
    end: int
    text: str
    got: str


def _parsers() -> Any:
    """Without Sybil's `SkipParser`: every Python block runs."""
    return [PythonCodeBlockParser(), CodeBlockParser("text", lambda example: None)]


def run_page(page: Path, folder: Path) -> list[Printed]:
    """Run every Python block of `page` in `folder`, where it can leave files. Exceptions of a block
    are not caught.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    for name in ("docs", "examples"):  # pages are read at the repository's root
        (folder / name).symlink_to(ROOT / name)
    document: Document = Sybil(_parsers(), path=str(page.parent)).parse(page)
    found: list[Printed] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(plt.style.context(str(WALKTHROUGH / "figures.mplstyle")))
        stack.callback(os.chdir, os.getcwd())
        os.chdir(folder)
        for example in document.examples():
            found += _run(example, document.text)
        plt.close("all")
    return found


def python_blocks(page: Path) -> int:
    """How many blocks of a page `run_page` runs."""
    document: Document = Sybil(_parsers(), path=str(page.parent)).parse(page)
    starts = [document.text[example.region.start :] for example in document.examples()]
    return sum(text.startswith("```python") for text in starts)


def _run(example: Example, page: str) -> list[Printed]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        example.evaluate()
    region = example.region
    if not page[region.start :].startswith("```python") or not out.getvalue():
        return []
    below = re.compile(r"\n*```text\n(.*?)```", re.DOTALL).match(page, region.end)
    start, end = below.span(1) if below else (region.end, region.end)
    text = below[1] if below else ""
    return [Printed(example.line, start, end, text, out.getvalue())]


def same(wanted: str, got: str) -> bool:
    """Whether two printed texts agree, except for the allowed differences of numbers."""
    if " ".join(NUMBER.sub("#", wanted).split()) != " ".join(NUMBER.sub("#", got).split()):
        return False
    pairs = zip(NUMBER.findall(wanted), NUMBER.findall(got), strict=True)
    return all(near(a, b) for a, b in pairs)


def near(wanted: str, got: str) -> bool:
    if wanted == got:
        return True
    a, b = float(wanted), float(got)
    if "e" in wanted:
        return abs(b) <= 5 * abs(a) and abs(a) <= 5 * abs(b)
    if "." not in wanted:
        return a == b
    last = 10.0 ** -len(wanted.split(".")[1])
    return abs(a - b) <= 0.02 * abs(a) + 1.001 * last


def for_dark_pages(svg: str) -> str:
    """An SVG file by matplotlib with a second set of colours, and without its date and maker."""
    svg = re.sub(r"\n <metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    rules = "".join(
        f'[style*="{use}: {light}"]{{{use}:{dark} !important}}'
        for light, dark in DARK.items()
        for use in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return svg.replace("<defs>", f"{style}\n <defs>", 1)


def same_figure(wanted: str, got: str) -> bool:
    """Whether two SVG files are the same, except for differences of half a point in coordinates."""
    if NUMBER.sub("#", wanted) != NUMBER.sub("#", got):
        return False
    pairs = zip(NUMBER.findall(wanted), NUMBER.findall(got), strict=True)
    return all(a == b or abs(float(a) - float(b)) <= 0.5 for a, b in pairs)


def update(page: Path, folder: Path) -> None:
    """Run a page, write its output into it, and its figures next to it. Output that differs only
    by rounding, which differs between CPUs, is not changed.
    """
    text = page.read_text(encoding="utf-8")
    for printed in reversed(run_page(page, folder)):
        if printed.end > printed.start and same(printed.text, printed.got):
            continue
        got = printed.got if printed.end > printed.start else f"\n\n```text\n{printed.got}```"
        text = text[: printed.start] + got + text[printed.end :]
    page.write_text(text, encoding="utf-8")
    for figure in folder.glob("*.svg"):
        svg = for_dark_pages(figure.read_text(encoding="utf-8"))
        kept = FIGURES / figure.name
        if not (kept.exists() and same_figure(kept.read_text(encoding="utf-8"), svg)):
            kept.write_text(svg, encoding="utf-8")
