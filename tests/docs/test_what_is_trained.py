"""The pictures of "What exactly is trained" equal the output of the program."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT
from tests.docs.pages import run_page

PAGE = ROOT / "docs" / "what-is-trained.md"


def test_the_page_shows_what_is_printed(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(demo_model)
    printed = run_page(PAGE, tmp_path)
    assert len(printed) == 6
    for p in printed:
        assert p.text == p.got, f"line {p.line}"
    assert PAGE.read_text(encoding="utf-8").count("```text") == len(printed)
