"""Training data: a file's samples, their order, and batches of them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from nbllama.data.batch import NOT_TRAINED, Batch, Dataset
from nbllama.data.chat import ChatData, load_chat, prompt_ids
from nbllama.data.chat_lines import is_json_object, numbered_lines
from nbllama.data.cutters import Cutter, SampleStart, every_token
from nbllama.data.feed import Feed, OldFeed, SeedFeed
from nbllama.data.mt19937 import MT19937
from nbllama.data.order import Order, Position
from nbllama.data.raw_text import RawText, Rules, load_raw_text
from nbllama.data.text_file import decode_utf8, read_bytes
from nbllama.errors import DataError, shown

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer

__all__ = [
    "MT19937",
    "NOT_TRAINED",
    "Batch",
    "ChatData",
    "Cutter",
    "Dataset",
    "Feed",
    "OldFeed",
    "Order",
    "Position",
    "RawText",
    "Rules",
    "SampleStart",
    "SeedFeed",
    "data_kind",
    "every_token",
    "load_chat",
    "load_dataset",
    "load_raw_text",
    "prompt_ids",
]


def load_dataset(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    n_ctx: int,
    *,
    template: ChatTemplate | None,
    kind: str | None = None,
    cutter: Cutter = every_token,
    rules: Rules | None = None,
    keep_mark: bool = False,
) -> Dataset:
    """The samples of a training file, none longer than `n_ctx` tokens.

    `kind` "raw" or "chat" says what the file is; without it `data_kind` does. `cutter`, `rules`
    and `keep_mark` are for raw text, see `load_raw_text`.

    Raises `DataError` as `data_kind` does, for a faulty line in a file of chats, for chats without
    a `template`, and when nothing is left to train on.
    """
    if kind not in (None, "raw", "chat"):
        raise ValueError(f"kind {kind!r} is neither raw nor chat")
    content = read_bytes(path)
    kind = kind or _kind_of(decode_utf8(content, path), path)
    if kind == "raw":
        return load_raw_text(
            path, tokenizer, n_ctx, cutter=cutter, rules=rules, content=content, keep_mark=keep_mark
        )
    if template is None:
        raise DataError(f"{shown(os.fspath(path))} holds chats, but the model has no chat template")
    return load_chat(path, tokenizer, n_ctx, template, content=content)


def data_kind(path: str | os.PathLike[str]) -> str:
    """What a training file is, by its content: "raw" or "chat".

    Chats, if at least half of the lines that are not blank are JSON objects, else raw text. (Half,
    not all: one broken line in a file of chats must be told, not turn the file into raw text.)

    Raises `DataError` for a file that cannot be read, is empty, is not UTF-8, or is a JSON
    document that holds chats but not one a line.
    """
    return _kind_of(decode_utf8(read_bytes(path), path), path)


def _kind_of(text: str, path: str | os.PathLike[str]) -> str:
    lines = [line for _, line in numbered_lines(text)]
    n_objects = sum(is_json_object(line) for line in lines)
    if lines and 2 * n_objects >= len(lines):
        return "chat"
    if _is_chat_document(text):
        raise DataError(
            f"{shown(os.fspath(path))} is one JSON document; chats must be JSON lines, one "
            '{"messages": [...]} a line'
        )
    return "raw"


def _is_chat_document(text: str) -> bool:
    """Whether the whole text is JSON, a chat or a list of chats, over several lines."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    records = document if isinstance(document, list) else [document]
    return any(isinstance(record, dict) and "messages" in record for record in records)
