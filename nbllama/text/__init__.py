"""Tokenizers and chat templates of GGUF files."""

from __future__ import annotations

from nbllama.text.stream import StreamDecoder
from nbllama.text.tokenizer import Tokenizer, tokenizer_from_gguf

__all__ = ["StreamDecoder", "Tokenizer", "tokenizer_from_gguf"]
