"""Convert the keys and speakers of chat turns to standard names."""

from __future__ import annotations

from typing import Any

from nbllama.data.counts import Counts
from nbllama.data.folding import canonical, speaker
from nbllama.data.formats import Record
from nbllama.data.formats.calls import CALLING_ROLES
from nbllama.data.formats.messages import EXTRA_KEYS, MESSAGE_KEYS, RESULT_KEYS, TURN_KEYS
from nbllama.data.formats.sharegpt import ROLES as SPEAKERS
from nbllama.data.json_text import value_of
from nbllama.data.keys import Keys, keys_by_name, with_renamed
from nbllama.data.spelled import MinusZero, SpelledFloat, text_of_number
from nbllama.errors import DataError, shown

_SPEAKER = ("from", "speaker", "author", "sender")
_WORDS = ("value", "text", "message", "utterance")
_CHATS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
_NUMBERS = ("prompt", "completion", "instruction", "input", "output", "chosen", "rejected")
_NUMBER = (int, float, MinusZero, SpelledFloat)  # not bool

# Names for message roles; names not listed here stay unchanged.
_ANY = ("user", "assistant", "system")
_ROLE_OF = {name: role for name, role in SPEAKERS.items() if role in _ANY}
_ROLE_OF |= {role: role for role in ("tool", "function", "developer", *CALLING_ROLES)}
_ROLE_OF |= dict.fromkeys(("function_response", "tool_response"), "tool")
_ROLES = frozenset(_ROLE_OF.values()).difference(CALLING_ROLES)

_EMPTY: tuple[Any, ...] = (None, "", [], {})
_KNOWN_KEYS = MESSAGE_KEYS | TURN_KEYS | RESULT_KEYS
# Other spellings of the keys of messages, in lower case and without "_"
_SPELLINGS = {key.replace("_", ""): key for key in (*EXTRA_KEYS, "tool_call_id")}
_SPELLINGS |= {"toolcall": "function_call", "functioncalls": "tool_calls"}


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
    """Return the record, with numbers converted to text under keys that require text.

    Raises `DataError` if one of these numbers is too large.
    """
    changed = {k: text_of_number(record[k]) for k in _NUMBERS if type(record.get(k)) in _NUMBER}
    for key in changed:
        counts.numbers[key] += 1
    return record | changed if changed else record


def with_lists(record: Record) -> Record:
    """Return the record, with chats that are JSON text (as in table cells) parsed into lists.

    A completion is parsed only if the prompt is a list: after a plain-text prompt, the answer
    itself could be JSON.
    """
    for key in _CHATS:
        value = record.get(key)
        if not isinstance(value, str) or value.lstrip()[:1] != "[" or '"' not in value:
            continue
        if key == "completion" and not isinstance(record.get("prompt"), list):
            continue
        try:
            turns = value_of(value, key)
        except DataError:
            continue
        if is_turns(turns):
            record = record | {key: turns}
    return record


def with_roles(record: Record, counts: Counts) -> Record:
    """Return the record with standard names for keys and speakers in its chats."""
    for key in _CHATS:
        turns = record.get(key)
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            calls = any(turn.get("role") in CALLING_ROLES for turn in turns)
            renamed = [_turn(_result(turn, counts) if calls else turn, counts) for turn in turns]
            if any(new is not old for new, old in zip(renamed, turns, strict=True)):
                record = record | {key: renamed}
    return record


def _result(turn: Record, counts: Counts) -> Record:
    """Return a message, with the role "observation" changed to "tool".

    Only called for chats that contain one of `CALLING_ROLES`; in other chats, the template could
    support the role "observation".
    """
    if turn.get("role") != "observation":
        return turn
    counts.roles["observation as tool"] += 1
    return turn | {"role": "tool"}


def by_turns(record: Record) -> Record:
    """Move the turns of a ShareGPT-style chat from "messages" to "conversations"."""
    turns = record.get("messages")
    if "conversations" in record or not isinstance(turns, list) or not is_turns(turns):
        return record
    if any(map(has_roles, turns)):
        return record
    rest = {key: value for key, value in record.items() if key != "messages"}
    return rest | {"conversations": turns}


def _turn(turn: Record, counts: Counts) -> Record:
    """Return a message with standard names, or the same object if nothing changes."""
    if not turn.keys() <= _KNOWN_KEYS:
        turn = _spelled(turn, counts)
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
        return turn | {words: text_of_number(turn[words])}
    return turn


def _spelled(turn: Record, counts: Counts) -> Record:
    """Return a message with the usual spelling of keys such as "Tool_Calls" and "toolCalls".

    Raises `DataError` if several keys have the same meaning.
    """
    names: dict[str, str] = {}
    for key, value in turn.items():
        if key in _KNOWN_KEYS or not isinstance(key, str) or value in _EMPTY:
            continue
        usual = _SPELLINGS.get(canonical(key).replace("_", ""))
        if usual == "function_call" and isinstance(value, list):
            usual = "tool_calls"
        if usual is None:
            continue
        if usual in names.values() or turn.get(usual) not in _EMPTY:
            raise DataError(
                f'a message has several keys that mean "{usual}", including "{shown(key, 40)}"; '
                "keep only one of them"
            )
        names[key] = usual
    return with_renamed(turn, names, counts) if names else turn


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
    read_as = "assistant" if usual in CALLING_ROLES else usual
    counts.roles[f"{shown(role, 40)} as {read_as}"] += 1
    return turn | {"role": usual} if usual != role else turn


def _speaker(turn: Record, counts: Counts) -> Record:
    """Return a turn with its speaker's name in English, if `SPEAKERS` contains that name."""
    name = turn["from"]
    if type(name) is not str or name.lower() in SPEAKERS or speaker(name) not in SPEAKERS:
        return turn
    counts.roles[f"{shown(name, 40)} as {SPEAKERS[speaker(name)]}"] += 1
    return turn | {"from": speaker(name)}
