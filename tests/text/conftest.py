"""Vocabularies that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nbllama.gguf_io import open_gguf
from nbllama.text import Tokenizer, tokenizer_from_gguf
from tests.oracle import LlamaVocab
from tests.text.vocabs import train_bpe, train_spm, write_vocab

Pair = tuple[Tokenizer, LlamaVocab]


def load(path: Path) -> Tokenizer:
    with open_gguf(path) as f:
        return tokenizer_from_gguf(f)


@pytest.fixture(scope="session")
def demo(demo_model: Path) -> Iterator[Pair]:
    """The demo model's tokenizer and llama.cpp's."""
    with LlamaVocab(demo_model) as llama:
        yield load(demo_model), llama


@pytest.fixture(scope="session")
def spm_parts() -> tuple[list[str], list[float], list[int]]:
    return train_spm(user_defined=["<tool>", "  ", "\n\n"], control=["<|im_start|>", "<|im_end|>"])


@pytest.fixture(scope="session", params=[True, False], ids=["space prefix", "no space prefix"])
def spm(
    request: pytest.FixtureRequest,
    spm_parts: tuple[list[str], list[float], list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """A trained SentencePiece vocabulary, with and without the space in front."""
    tokens, scores, types = spm_parts
    path = write_vocab(
        tmp_path_factory.mktemp("spm") / "spm.gguf",
        "llama",
        tokens,
        scores=scores,
        types=types,
        keys={"add_space_prefix": request.param, "add_eos_token": request.param},
    )
    with LlamaVocab(path) as llama:
        yield load(path), llama


@pytest.fixture(scope="session")
def bpe_parts() -> tuple[list[str], list[int], list[str]]:
    return train_bpe()
