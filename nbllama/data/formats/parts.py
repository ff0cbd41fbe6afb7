"""Read the text of a message that is given as a list of {"type": "text", "text": ...} parts."""

from __future__ import annotations

from typing import Any

from nbllama.data.formats.checks import Record, kind_of, text_of
from nbllama.data.formats.masks import check_whole
from nbllama.errors import DataError, shown

TEXT_TYPES = ("text", "input_text", "output_text")
PART_KEYS = frozenset(("type", "text"))
"""The keys that are read from every part."""
_INSTEAD = {
    "tool_use": 'write the call under "tool_calls"',
    "tool_call": 'write the call under "tool_calls"',
    "tool_result": 'write the result as a message with the role "tool"',
    "thinking": 'write the thought under "reasoning_content"',
    "reasoning": 'write the thought under "reasoning_content"',
}


def text_of_parts(record: Record, key: str, where: str = "", *, answer: bool = False) -> str:
    """Return the text of the list of parts under `key`.

    Raises `DataError` if a part is not text, or if a key excludes a part of an answer from
    training.
    """
    texts = []
    for i, part in enumerate(record[key], 1):
        what = f'{where}part {i} of "{key}"'
        _check_type(part, what)
        if answer:
            check_whole(part, what)
        texts.append(text_of(part, "text", f"{what}: "))
    return "".join(texts)


def _check_type(part: Any, what: str) -> None:
    if not isinstance(part, dict):
        raise DataError(
            f'{what} must be an object such as {{"type": "text", "text": ...}}, not {kind_of(part)}'
        )
    kind = part.get("type")
    if kind is None:
        raise DataError(f'{what} has no type; add "type": "text" if it is text')
    if kind not in TEXT_TYPES:
        instead = _INSTEAD.get(str(kind), "only text can be read")
        raise DataError(f"{what} has the type '{shown(kind, 40)}'; {instead}")
