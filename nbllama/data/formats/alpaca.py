"""Instructions in the format of Stanford Alpaca: {"instruction", "input", "output"}.

Records are passed to the chat template as a question and an answer. "input" can be empty or
missing; otherwise, it follows the instruction as the layout of the template specifies. "system"
(text) and "history" (a list of [question, answer] pairs; in a table, JSON text) are optional, as in
LLaMA-Factory's variant.
"""

from __future__ import annotations

import json
from typing import Any

from nbllama.data.formats.checks import Record, filled, kind_of, text_of
from nbllama.data.formats.record import (
    ANSWERING_ROLE,
    Conversation,
    Format,
    Message,
    Style,
    conversation,
)
from nbllama.errors import DataError


def read(record: Record, style: Style) -> Conversation:
    """Read the instruction and the answer as messages. Raises `DataError`."""
    question = filled(text_of(record, "instruction"), "the instruction")
    more = text_of(record, "input", default="")
    answer = filled(text_of(record, "output"), "the answer (output)")
    system = text_of(record, "system", default="")
    if more.strip():
        question += style.joint + more
        system = system if system.strip() else style.with_input
    messages = [{"role": "system", "content": system}] if system.strip() else []
    messages += _history(record)
    messages.append({"role": "user", "content": question})
    messages.append({"role": ANSWERING_ROLE, "content": answer})
    return conversation(messages, record=record)


def _history(record: Record) -> list[Message]:
    turns = record.get("history")
    if isinstance(turns, str):
        turns = _in_cell(turns)
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise DataError(f'"history" must be a list, not {kind_of(turns)}')
    out = []
    for turn in turns:
        if not (isinstance(turn, list) and len(turn) == 2):
            raise DataError('"history" must contain [question, answer] pairs')
        pair = dict(zip(("question", "answer"), turn, strict=True))
        out.append({"role": "user", "content": text_of(pair, "question", "history: ")})
        out.append({"role": ANSWERING_ROLE, "content": text_of(pair, "answer", "history: ")})
    return out


def _in_cell(text: str) -> Any:
    """Return the history in the cell of a table, or None for an empty cell. Raises `DataError`."""
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as e:
        raise DataError(
            '"history" must be a list of [question, answer] pairs; in text, write the list as JSON'
        ) from e


FORMAT = Format("alpaca", ("instruction", "output"), read)
