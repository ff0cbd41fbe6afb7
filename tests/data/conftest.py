"""Tokenizers and chat templates that the tests of the data share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.toy_models import make_llama
from nbllama.gguf_io import open_gguf
from nbllama.text import CHATML, Tokenizer, tokenizer_from_gguf
from nbllama.text.chat_template import ChatTemplate, chat_template_for

# Trims messages, like the templates of Llama 2 and Gemma, and refuses other roles.
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)


def _toy(folder: Path, kind: str) -> Tokenizer:
    path = folder / f"{kind}.gguf"
    make_llama(path, n_layer=1, n_embd=8, n_head=1, n_head_kv=1, n_ff=8, tokenizer=kind)
    with open_gguf(path) as f:
        return tokenizer_from_gguf(f)


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level BPE; 0 <|endoftext|> (bos and eos), 1 <|im_start|>, 2 <|im_end|>; adds no BOS."""
    return _toy(tmp_path_factory.mktemp("bpe"), "bpe")


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """SPM; 0 <unk>, 1 <s>, 2 </s>, byte b is 3 + b; adds BOS and a space in front."""
    return _toy(tmp_path_factory.mktemp("spm"), "spm")


@pytest.fixture(scope="session")
def demo_tokenizer(demo_model: Path) -> Tokenizer:
    with open_gguf(demo_model) as f:
        return tokenizer_from_gguf(f)


@pytest.fixture(scope="session")
def demo_template(demo_tokenizer: Tokenizer) -> Iterator[ChatTemplate]:
    with chat_template_for(demo_tokenizer) as template:
        yield template


@pytest.fixture(scope="session")
def chatml() -> Iterator[ChatTemplate]:
    with ChatTemplate(CHATML) as template:
        yield template


@pytest.fixture(scope="session")
def trimming() -> Iterator[ChatTemplate]:
    with ChatTemplate(TRIMMING, "<s>", "</s>") as template:
        yield template


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes one JSON line per chat, a list of (role, content), to `chats.jsonl`."""

    def write(*chats: list[tuple[str, str]], **more: Any) -> Path:
        path = tmp_path / "chats.jsonl"
        lines = [
            json.dumps({"messages": [{"role": r, "content": c} for r, c in chat], **more})
            for chat in chats
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
