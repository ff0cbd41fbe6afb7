"""Every link of README and docs has a target, including the heading; no site is built."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)\)")


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    return LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as MkDocs and code hosts make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE):
        kept = re.sub(r"[^\w\s-]", "", heading.lower())
        found.add(re.sub(r"[\s-]+", "-", kept).strip("-"))
    return found


def broken(page: Path, target: str) -> str | None:
    """What is wrong with a link, if anything."""
    if re.match(r"[a-z]+:", target):
        return None
    name, _, anchor = target.partition("#")
    found = (page.parent / unquote(name)).resolve() if name else page
    if not found.exists():
        return "no such file"
    if anchor and found.suffix == ".md" and anchor not in anchors(found):
        return "no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = {target: why for target in links(page) if (why := broken(page, target))}
    assert not wrong


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# One two\n[a](b.md) [b](#one-two) [c](#three) ![d\ne](f.svg) `[g](h.md)` <http://x>\n"
        "```\n[i](j.md)\n```\n[k](http://x/y)\n"
    )
    wrong = [(t, broken(page, t)) for t in links(page)]
    assert wrong == [
        ("b.md", "no such file"),
        ("#one-two", None),
        ("#three", "no such heading"),
        ("f.svg", "no such file"),
        ("http://x/y", None),
    ]


def test_links_are_found_at_all() -> None:
    assert sum(len(links(page)) for page in PAGES) > 60
