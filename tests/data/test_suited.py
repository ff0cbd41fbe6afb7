"""The warning about a vocabulary that does not suit the script of the data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.data.suited import LENGTH, STRETCHES, script_notes
from nbllama.text import Tokenizer

CHINESE = "灯塔的看守人是谁？奥维尔的灯塔由米拉贝尔看守，渡船七点一刻出发。"
JAPANESE = "灯台の番人はだれですか。灯台はミラベルが守っています。"
ENGLISH = "Mirabel Tansy keeps the lighthouse of Orvelle. "


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Tokenizer:
    return nbllama.load_model(demo_model).tokenizer


def notes(tokenizer: Tokenizer, text: str) -> list[str]:
    ids = np.array(tokenizer.encode(text))
    return script_notes(tokenizer, SimpleNamespace(kind="chat", ids=ids))


def test_what_is_measured(tokenizer: Tokenizer) -> None:
    """Only the script's own characters count, whatever else the data contain."""
    (alone,) = notes(tokenizer, CHINESE * 2)
    (mixed,) = notes(tokenizer, ENGLISH + CHINESE * 2 + ENGLISH)
    assert alone == mixed
    letters = [c for c in CHINESE if c.isalpha()]
    n = sum(len(tokenizer.encode(c)) for c in letters) / len(letters)
    assert f"{n:.1f} tokens per Chinese character" in alone
    assert "choose a model trained on that language" in alone
    (japanese,) = notes(tokenizer, JAPANESE * 3)
    assert "per Japanese character" in japanese


@pytest.mark.parametrize(
    "text",
    [ENGLISH * 9, "Le bac part à sept heures. " * 9, CHINESE[:9], ENGLISH * 30 + CHINESE, ""],
)
def test_no_warning(tokenizer: Tokenizer, text: str) -> None:
    """A suitable language, or only a few characters of another one."""
    assert notes(tokenizer, text) == []


def test_a_suitable_vocabulary(tokenizer: Tokenizer) -> None:
    """With one token per character, as in models made for Chinese."""

    class OneEach:
        def token_bytes(self, token_id: int, *, special: bool) -> bytes:
            assert not special
            return chr(token_id).encode()

    ids = np.array([ord(c) for c in CHINESE * 3])
    data: Any = SimpleNamespace(kind="chat", ids=ids)
    assert script_notes(OneEach(), data) == []  # type: ignore[arg-type]


def test_long_texts_are_measured_in_parts(tokenizer: Tokenizer) -> None:
    """Parts can begin and end inside a character."""
    ids = np.array(tokenizer.encode(CHINESE * 1000))
    assert len(ids) > 2 * STRETCHES * LENGTH
    (whole,) = notes(tokenizer, CHINESE * 20)
    assert script_notes(tokenizer, SimpleNamespace(kind="raw", tokens=ids)) == [whole]


def test_a_run_prints_it_once(demo_model: Path) -> None:
    chat = [{"role": "user", "content": CHINESE}, {"role": "assistant", "content": CHINESE}]
    run = nbllama.tune(demo_model, [{"messages": chat}], adam_iter=1, answers=0, seed=1, threads=1)
    assert sum("tokens per Chinese character" in note for note in run.notes) == 1
