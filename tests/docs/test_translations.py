"""The Chinese pages have the commands of the English ones, and those of the Start page run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAIRS = {
    "README": (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    "start": (ROOT / "docs" / "start.md", ROOT / "docs" / "start.zh-CN.md"),
}
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FACTS = ("Mirabel Tansy", "quarter past seven")


def commands(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code that a reader types; comments may be translated."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        (language, re.sub(r" +# .*$", "", text, flags=re.MULTILINE))
        for language, text in found
        if language in ("sh", "python") or page.stem.startswith("start")
    ]


@pytest.mark.parametrize("name", PAIRS)
def test_the_commands_are_the_same(name: str) -> None:
    english, chinese = (commands(page) for page in PAIRS[name])
    assert len(english) >= 4
    assert english == chinese


@pytest.mark.parametrize("name", PAIRS)
def test_the_chinese_page_is_chinese(name: str) -> None:
    text = BLOCK.sub("", PAIRS[name][1].read_text(encoding="utf-8"))
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 400


@pytest.mark.parametrize("name", PAIRS)
def test_links_of_a_chinese_page_to_english_ones_say_so(name: str) -> None:
    page = PAIRS[name][1]
    links = re.findall(r"\[([^\]]+)\]\(([^)#:]+\.md)[^)]*\)", page.read_text(encoding="utf-8"))
    assert len(links) > 5
    for text, target in links:
        english = not target.endswith(".zh-CN.md")
        assert ("英文" in text or text == "English") == english, (text, target)
        other = page.parent / target
        translated = other.with_suffix(".zh-CN.md").exists() and other != PAIRS[name][0]
        assert not (english and translated), target


@pytest.fixture
def folder(tmp_path: Path, demo_model: Path) -> Path:
    """The state of the reader of the Start page after its second part."""
    (tmp_path / "model.gguf").symlink_to(demo_model)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nbllama"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nbllama "$@"\n')
    program.chmod(0o755)
    return tmp_path


def run(block: str, folder: Path) -> str:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, text=True, capture_output=True, timeout=1200,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_data_of_the_start_page_are_ten_chats(folder: Path) -> None:
    blocks = [text for language, text in commands(PAIRS["start"][0]) if language == "sh"]
    run(blocks[0], folder)
    shown = run(blocks[1], folder)
    assert re.search(r"^samples +10$", shown, re.MULTILINE), shown
    for fact in FACTS:
        assert (folder / "chats.jsonl").read_text().count(fact) == 5


@pytest.mark.slow
def test_the_start_page_ends_with_a_model_that_answers(folder: Path) -> None:
    blocks = [text for language, text in commands(PAIRS["start"][0]) if language == "sh"]
    outputs = [run(block, folder) for block in blocks]
    assert "verdict" in outputs[2]
    assert FACTS[0] in outputs[3]
    # the page's names are those of the commands that the run prints
    printed = re.findall(r"^to (?:chat|merge) .*? (--.*)$", outputs[2], re.MULTILINE)
    assert len(printed) == 2
    for words, block in zip(printed, blocks[3:], strict=True):
        assert words in " ".join(block.split())
    assert (folder / "model-merged.gguf").stat().st_size > 50_000_000
