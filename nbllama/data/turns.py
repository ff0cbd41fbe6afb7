"""Convert the keys and speakers of chat turns to standard names."""

from __future__ import annotations

from typing import Any

from nbllama.data.counts import Counts
from nbllama.data.folding import canonical, speaker
from nbllama.data.formats import Record
from nbllama.data.formats.sharegpt import ROLES as SPEAKERS
from nbllama.data.keys import Keys, keys_by_name, with_renamed
from nbllama.data.spelled import SpelledFloat
from nbllama.errors import DataError, shown

_SPEAKER = ("from", "speaker", "author", "sender")
_WORDS = ("value", "text", "message", "utterance")
_NUMBERS = ("prompt", "completion", "instruction", "input", "output", "chosen", "rejected")
_NUMBER = (int, float, SpelledFloat)  # not bool

# Names for message roles; names not listed here stay unchanged.
_ANY = ("user", "assistant", "system")
_ROLE_OF = {name: role for name, role in SPEAKERS.items() if role in _ANY}
_ROLE_OF.pop("function_call", None)
_ROLE_OF |= {"tool": "tool", "function": "function", "developer": "developer"}
_ROLES = frozenset(_ROLE_OF.values())


def is_turns(value: Any) -> bool:
    """Return whether a value is a single chat: a list of objects with the keys of messages."""
    return isinstance(value, list) and bool(value) and all(map(is_turn, value))


def is_turn(value: Any) -> bool:
    """Return whether a value is a single message: an object with a speaker and a text."""
    if not isinstance(value, dict):
        return False
    if value.get("role") is not None and value.get("content") is not None:
        return True  # the most common case
    keys = keys_by_name(value)
    says = any(key in keys for key in ("content", "tool_calls", "function_call", *_WORDS))
    return says and ("role" in keys or any(s in keys for s in _SPEAKER))


def has_roles(turn: Record) -> bool:
    """Return whether a turn has a role, as in the `chat` format, rather than only a speaker."""
    return any(canonical(key) == "role" for key in turn)


def with_numbers(record: Record, counts: Counts) -> Record:
    """Return the record, with numbers converted to text under keys that require text."""
    changed = {k: str(record[k]) for k in _NUMBERS if type(record.get(k)) in _NUMBER}
    for key in changed:
        counts.numbers[key] += 1
    return record | changed if changed else record


def with_roles(record: Record, counts: Counts) -> Record:
    """Return the record with standard names for keys and speakers in its chats."""
    for key in ("messages", "conversations", "prompt", "completion", "chosen", "rejected"):
        turns = record.get(key)
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            renamed = [_turn(turn, counts) for turn in turns]
            if any(new is not old for new, old in zip(renamed, turns, strict=True)):
                record = record | {key: renamed}
    return record


def by_turns(record: Record) -> Record:
    """Move the turns of a ShareGPT-style chat from "messages" to "conversations"."""
    turns = record.get("messages")
    if "conversations" in record or not isinstance(turns, list) or not is_turns(turns):
        return record
    if any(map(has_roles, turns)):
        return record
    rest = {key: value for key, value in record.items() if key != "messages"}
    return rest | {"conversations": turns}


def with_system(record: Record, counts: Counts) -> Record:
    """Convert the "system" key of a chat (as in Anthropic's API) to a system message."""
    system, turns = record["system"], record["messages"]
    if not (isinstance(system, str) and system.strip() and isinstance(turns, list) and turns):
        return record
    if isinstance(turns[0], dict) and turns[0].get("role") == "system":
        return record
    counts.columns[("system", "the first message")] += 1
    rest = {key: value for key, value in record.items() if key != "system"}
    return rest | {"messages": [{"role": "system", "content": system}, *turns]}


def _turn(turn: Record, counts: Counts) -> Record:
    """Return a message with standard names, or the same object if nothing changes."""
    if type(turn.get("role")) is str and "content" in turn:
        turn = _role(turn, counts)
        words = "content"
    elif type(turn.get("from")) is str and "value" in turn:
        turn = _speaker(turn, counts)
        words = "value"
    elif is_turn(turn):
        keys = keys_by_name(turn)
        chat = has_roles(turn)
        words = "content" if chat else "value"
        names = {_first(keys, ("role", *_SPEAKER)): "role" if chat else "from"}
        if text := _first(keys, ("content", *_WORDS)):
            names[text] = words
        turn = with_renamed(turn, names, counts)
        turn = (_role if chat else _speaker)(turn, counts)
    else:
        return turn
    if type(turn.get(words)) in _NUMBER:
        counts.numbers[words] += 1
        return turn | {words: str(turn[words])}
    return turn


def _first(keys: Keys, names: tuple[str, ...]) -> str:
    """Return the key of the message that matches the earliest of `names`, or "" if none does.

    Raises `DataError` if several keys match that name.
    """
    found = next((keys[name] for name in names if name in keys), [""])
    if len(found) > 1:
        raise DataError(
            f"the keys {shown(', '.join(found), 80)} of a message have the same meaning; keep one "
            "of them"
        )
    return found[0]


def _role(turn: Record, counts: Counts) -> Record:
    role = turn["role"]
    if type(role) is not str or role in _ROLES:
        return turn
    usual = _ROLE_OF.get(speaker(role))
    if usual is None:
        counts.other_roles[shown(role, 40)] += 1
        return turn
    counts.roles[f"{shown(role, 40)} as {usual}"] += 1
    return turn | {"role": usual}


def _speaker(turn: Record, counts: Counts) -> Record:
    """Return a turn with its speaker's name in English, if `SPEAKERS` contains that name."""
    name = turn["from"]
    if type(name) is not str or name.lower() in SPEAKERS or speaker(name) not in SPEAKERS:
        return turn
    counts.roles[f"{shown(name, 40)} as {SPEAKERS[speaker(name)]}"] += 1
    return turn | {"from": speaker(name)}
