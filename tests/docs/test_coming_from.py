"""The pages for users of other programs name options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nbllama.options.finetune.table import OPTIONS
from tests.conftest import ROOT

PAGES = [ROOT / "docs" / f"from-{name}.md" for name in ("unsloth", "mlx-lm", "peft-trl")]
PAGES.append(ROOT / "docs" / "did-not-learn.md")
NAMES = {name for option in OPTIONS for name in (*option.names, *option.off)}
OTHER_PROGRAMS = {"--lora", "--nearest"}  # options of nbllama's other programs


def named(page: Path) -> set[str]:
    """The options in the column about nbllama or, without such a column, on the whole page."""
    text = page.read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    cells = [row[2] for row in rows if len(row) > 3] if page.stem.startswith("from-") else [text]
    return {name for cell in cells for name in re.findall(r"`[^`\n]*?(--[a-z][\w-]*)", cell)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_exists(page: Path) -> None:
    found = named(page)
    assert len(found) > 5
    unknown = {n for n in found - OTHER_PROGRAMS if n not in NAMES and not n.endswith("-")}
    assert not unknown
