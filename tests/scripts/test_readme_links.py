"""What setup.py makes of README.md for a package index."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[a](docs/a.md#b)", "[a](https://x/blob/v1/docs/a.md#b)"),
        ("![a\nb](docs/a.svg)", "![a\nb](https://x/raw/v1/docs/a.svg)"),
        ("[a](#b) [c](http://d/e)", "[a](#b) [c](http://d/e)"),
        ("`a`[0](b)", "`a`[0](https://x/blob/v1/b)"),
    ],
)
def test_links_are_absolute(text: str, wanted: str) -> None:
    pytest.importorskip("setuptools")
    assert runpy.run_path(str(ROOT / "setup.py"))["absolute"](text, "https://x", "v1") == wanted


def test_no_link_of_the_readme_stays_relative() -> None:
    pytest.importorskip("setuptools")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(ROOT / "setup.py"))["absolute"](text, "https://x", "v1")
    targets = re.findall(r"\]\(([^)]+)\)", made)
    assert len(targets) > 20
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []
