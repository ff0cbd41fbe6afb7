"""Tokenizers and chat templates of GGUF files."""

from __future__ import annotations

from nbllama.text.chat_template import CHATML, ChatTemplate, chat_template_for
from nbllama.text.stream import StreamDecoder
from nbllama.text.tokenizer import Tokenizer, tokenizer_from_gguf

__all__ = [
    "CHATML",
    "ChatTemplate",
    "StreamDecoder",
    "Tokenizer",
    "chat_template_for",
    "tokenizer_from_gguf",
]
