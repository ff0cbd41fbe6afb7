"""What goes into the packages: README.md for a package index, one version everywhere."""

from __future__ import annotations

import re
import runpy

import pytest

import nbllama
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


def test_one_version_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^(version|date-released): (.+)$", citation, re.MULTILINE))
    assert stated["version"] == nbllama.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## \[([0-9.]+)\] - (.+)$", changelog, re.MULTILINE)[0]
    assert newest == (nbllama.__version__, stated["date-released"])


def test_the_licence_is_the_one_that_is_stated() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License") and "The nbllama authors" in licence
    assert 'license = "MIT"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
