"""The cost of reading many chats, in counts that other work on the machine does not change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import load_dataset, open_records
from nbllama.gguf_io import open_gguf
from nbllama.text import ChatTemplate, tokenizer_from_gguf
from nbllama.text.bpe import BpeTokenizer


class Counting:
    """The library, with a count of the texts that it gets."""

    def __init__(self, library: Any, texts: Counter[str]) -> None:
        self._library, self._texts = library, texts

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self._texts.update(texts)
        return self._library.encode_batch_fast(texts, **options)


def test_the_library_gets_every_word_once(
    demo_model: Path, demo_template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of chats and answers, the cost is its share of all reading."""
    with open_gguf(demo_model) as f:
        tokenizer = tokenizer_from_gguf(f)
    assert isinstance(tokenizer, BpeTokenizer)
    texts: Counter[str] = Counter()
    monkeypatch.setattr(tokenizer, "_library", Counting(tokenizer._library, texts))
    turns = [
        {"role": role, "content": f"{word} is the word, and the word is {word}."}
        for word in ("one", "two", "three", "four")
        for role in ("user", "assistant")
    ]
    records = [{"messages": [*turns[i % 4 :], *turns[: i % 4]]} for i in range(0, 400, 2)]
    data = open_records(records, "chats")
    assert load_dataset(data, tokenizer, 512, template=demo_template).n_samples == 200
    assert max(texts.values()) == 1
    assert sum(map(len, texts)) < 1000
