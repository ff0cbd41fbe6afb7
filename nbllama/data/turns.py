"""Turns of chats: standard names for their keys and for speakers."""

from __future__ import annotations

from typing import Any

from nbllama.data.counts import Counts
from nbllama.data.formats import Record
from nbllama.data.formats.sharegpt import ROLES as SPEAKERS
from nbllama.data.keys import folded_keys, with_renamed
from nbllama.errors import shown

_SPEAKER = ("from", "speaker", "author", "sender")
_WORDS = ("value", "text", "message", "utterance")
_NUMBERS = ("prompt", "completion", "instruction", "input", "output", "chosen", "rejected")

# Other names for message roles; names not listed here stay unchanged.
_USUAL = {name: role for name, role in SPEAKERS.items() if role in ("user", "assistant", "system")}
_USUAL.pop("function_call", None)
_USUAL |= {"tool": "tool", "function": "function", "developer": "developer"}
_ROLES = frozenset(_USUAL.values())


def is_turns(value: Any) -> bool:
    """Return whether a value is a single chat: a list of objects with the keys of messages."""
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.get("role") is not None and value.get("content") is not None:
        return True  # the most common case
    folded = folded_keys(value)
    says = any(key in folded for key in ("content", "tool_calls", "function_call", *_WORDS))
    return says and ("role" in folded or any(s in folded for s in _SPEAKER))


def with_numbers(record: Record, counts: Counts) -> Record:
    """Return the record with numbers under keys of texts as text."""
    changed = {k: str(record[k]) for k in _NUMBERS if type(record.get(k)) in (int, float)}
    for key in changed:
        counts.numbers[key] += 1
    return record | changed if changed else record


def with_roles(record: Record, counts: Counts) -> Record:
    """Return the record with standard names in the turns of its chats."""
    for key in ("messages", "conversations", "prompt", "completion", "chosen", "rejected"):
        turns = record.get(key)
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            renamed = [_turn(turn, counts) for turn in turns]
            if any(new is not old for new, old in zip(renamed, turns, strict=True)):
                record = record | {key: renamed}
    return record


def by_turns(record: Record) -> Record:
    """Move chat turns in ShareGPT form from "messages" to "conversations"."""
    turns = record.get("messages")
    if "conversations" in record or not isinstance(turns, list) or not is_turns(turns):
        return record
    if any(key.lower() == "role" for turn in turns for key in turn):
        return record
    rest = {key: value for key, value in record.items() if key != "messages"}
    return rest | {"conversations": turns}


def with_system(record: Record, counts: Counts) -> Record:
    """Return a chat with its "system" (as in Anthropic's API) as the first message."""
    system, turns = record["system"], record["messages"]
    if not (isinstance(system, str) and system.strip() and isinstance(turns, list) and turns):
        return record
    if isinstance(turns[0], dict) and turns[0].get("role") == "system":
        return record
    counts.columns["system as the first message"] += 1
    rest = {key: value for key, value in record.items() if key != "system"}
    return rest | {"messages": [{"role": "system", "content": system}, *turns]}


def _turn(turn: Record, counts: Counts) -> Record:
    """Return a message with standard names, or the same object if nothing changes."""
    if type(turn.get("role")) is str and "content" in turn:
        turn = _role(turn, counts)
        words = "content"
    elif type(turn.get("from")) is str and "value" in turn:
        words = "value"
    elif _is_turn(turn):
        folded = folded_keys(turn)
        role = folded.get("role") or next(folded[s] for s in _SPEAKER if s in folded)
        chat = role.lower() == "role"
        words = "content" if chat else "value"
        text = next((folded[w] for w in ("content", *_WORDS) if w in folded), None)
        names = {role: "role" if chat else "from"} | ({text: words} if text else {})
        turn = with_renamed(turn, names, Counts.empty())
        turn = _role(turn, counts) if chat else turn
    else:
        return turn
    if type(turn.get(words)) in (int, float):
        counts.numbers[words] += 1
        return turn | {words: str(turn[words])}
    return turn


def _role(turn: Record, counts: Counts) -> Record:
    role = turn["role"]
    if type(role) is not str or role in _ROLES:
        return turn
    usual = _USUAL.get(role.strip().lower())
    if usual is None:
        return turn
    counts.roles[f"{shown(role, 40)} as {usual}"] += 1
    return turn | {"role": usual}
