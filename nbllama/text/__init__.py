"""Tokenizers and chat templates from GGUF files."""

from __future__ import annotations

from nbllama.text.chat_template import ChatTemplate, chat_template_for
from nbllama.text.from_gguf import tokenizer_from_gguf
from nbllama.text.stream import StreamDecoder, beginning, whole_characters
from nbllama.text.templates import CHATML, LAYOUTS, Layout, find_layout
from nbllama.text.tokenizer import Tokenizer

__all__ = [
    "CHATML",
    "LAYOUTS",
    "ChatTemplate",
    "Layout",
    "StreamDecoder",
    "Tokenizer",
    "beginning",
    "chat_template_for",
    "find_layout",
    "tokenizer_from_gguf",
    "whole_characters",
]
