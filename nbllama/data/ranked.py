"""Convert preferences and labelled answers in the layouts of LLaMA-Factory to the usual keys.

- {"conversations": [...], "chosen": {"from": "gpt", "value": A}, "rejected": {...}}: the chat ends
  with a question and is the prompt;
- {"conversations": [..., answer], "kto_tag": true} and {"instruction": Q, "output": A, "kto_tag":
  true}: the last answer is labelled.
"""

from __future__ import annotations

from typing import Any

from nbllama.data.counts import Counts
from nbllama.data.folding import speaker
from nbllama.data.formats import Format, Record
from nbllama.data.formats.calls import CALLING_ROLES
from nbllama.data.formats.checks import text_of
from nbllama.data.formats.record import ANSWERING_ROLE
from nbllama.data.formats.sharegpt import ROLES
from nbllama.data.keys import with_renamed
from nbllama.data.turns import is_turn, is_turns
from nbllama.errors import DataError

SIDES = ("chosen", "rejected")
TAG = "kto_tag"
_CHATS = ("messages", "conversations", "conversation")


def with_judgement(record: Record, wanted: Format | None, counts: Counts, joint: str) -> Record:
    """Return the record with the keys of a preference or a labelled answer, or the same record.

    `joint` is the text between an instruction and its input. Raises `DataError`.
    """
    kind = None if wanted is None else wanted.name
    if kind in (None, "labelled") and record.get(TAG) is not None:
        return _labelled(record, counts, joint)
    if record.get("prompt") is not None:
        return record
    if kind in (None, "preference") and all(record.get(side) is not None for side in SIDES):
        return _preference(record, counts)
    return record


def _preference(record: Record, counts: Counts) -> Record:
    key = _chat_key(record)
    if key is None or role_of(record[key][-1]) == ANSWERING_ROLE:
        return record
    sides = {side: _messages(record[side]) for side in SIDES}
    return with_renamed(record | sides | {key: _messages(record[key])}, {key: "prompt"}, counts)


def _labelled(record: Record, counts: Counts, joint: str) -> Record:
    names = {TAG: "label"}
    if record.get("prompt") is not None and record.get("completion") is not None:
        return with_renamed(record, names, counts)
    key = _chat_key(record)
    if key is not None and len(record[key]) > 1 and role_of(record[key][-1]) == ANSWERING_ROLE:
        messages = _messages(record[key])
        record = record | {key: messages[:-1], "completion": messages[-1:]}
        return with_renamed(record, names | {key: "prompt"}, counts)
    if not record.keys() >= {"instruction", "output"} or record.get("history"):
        raise DataError(
            f'"{TAG}" requires a chat that ends with an answer, or "instruction" and "output" '
            'without "history"; write other records as {"prompt": ..., "completion": ..., '
            '"label": true or false}'
        )
    question = text_of(record, "instruction")
    more = text_of(record, "input", default="")
    asked = [{"role": "user", "content": question + joint + more if more.strip() else question}]
    answer = [{"role": ANSWERING_ROLE, "content": text_of(record, "output")}]
    record = {key: value for key, value in record.items() if key != "input"}
    record = record | {"instruction": asked, "output": answer}
    return with_renamed(record, names | {"instruction": "prompt", "output": "completion"}, counts)


def _chat_key(record: Record) -> str | None:
    """Return the key of the chat in a record, or None."""
    return next((key for key in _CHATS if is_turns(record.get(key))), None)


def _messages(value: Any) -> Any:
    """Return a list of messages with roles for the turns of a chat or a single turn."""
    if isinstance(value, dict):
        value = [value]
    return [_message(turn) for turn in value] if isinstance(value, list) else value


def _message(turn: Any) -> Any:
    if not is_turn(turn) or "from" not in turn or "value" not in turn:
        return turn
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return rest | {"role": role_of(turn), "content": turn["value"]}


def role_of(turn: Record) -> Any:
    """Return the role of a turn; names that are not known stay unchanged."""
    name = turn.get("role", turn.get("from"))
    if type(name) is not str:
        return name
    usual = speaker(name)
    return usual if usual in CALLING_ROLES else ROLES.get(usual, name)
