"""Map common names for columns, keys and speakers to the names that the formats use.

A question and its answer can have any of the usual names, in upper or lower case. The names are
mapped to the keys of a format only if there is exactly one way to do so.
"""

from __future__ import annotations

from typing import Any

from nbllama.data.counts import Counts
from nbllama.data.formats import FORMATS, Format, Record
from nbllama.data.formats.sharegpt import ROLES as SPEAKERS
from nbllama.errors import DataError, shown

QUESTIONS = (
    "instruction", "question", "query", "prompt", "input", "inputs", "human", "user", "q",
)  # fmt: skip
ANSWERS = (
    "output", "outputs", "answer", "response", "completion", "bot", "assistant", "gpt", "chatgpt",
    "ai", "reply", "target", "targets", "a",
)  # fmt: skip
_MORE = {
    "input": "input", "system": "system", "history": "history",
    "context": "input", "system_prompt": "system", "system_message": "system",
}  # fmt: skip
_SPEAKER = ("from", "speaker", "author", "sender")
_WORDS = ("value", "text", "message", "utterance")
_NUMBERS = ("prompt", "completion", "instruction", "input", "output", "chosen", "rejected")
# Keys that the formats read from a record, besides the keys that identify the format.
_TAKEN = {key for f in FORMATS.values() for key in f.keys} | {"input", "system", "history"}

# Other names for message roles; names not listed here stay unchanged.
_USUAL = {name: role for name, role in SPEAKERS.items() if role in ("user", "assistant", "system")}
_USUAL.pop("function_call", None)
_USUAL |= {"tool": "tool", "function": "function", "developer": "developer"}
_ROLES = frozenset(_USUAL.values())


def format_by_keys(record: Record) -> Format | None:
    """Return the first format whose keys the record has; null values count as missing."""
    for found in FORMATS.values():
        if found.knows(record):
            return found
    return None


def is_turns(value: Any) -> bool:
    """Return whether a value is a single chat: a list of objects with the keys of messages."""
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.get("role") is not None and value.get("content") is not None:
        return True  # the most common case
    folded = _folded(value)
    says = any(key in folded for key in ("content", "tool_calls", "function_call", *_WORDS))
    return says and ("role" in folded or any(s in folded for s in _SPEAKER))


def known_names(
    record: Record, wanted: Format | None, counts: Counts, *, guess: bool = True
) -> Record:
    """Return the record with its keys renamed to the keys of a format (`wanted`, if given).

    Without `guess`, only chats and numbers are changed. Unknown names stay unchanged. Raises
    `DataError`, which suggests an option to add, if there are several ways to read the record.
    """
    if guess and not _has(record, wanted):
        record = _guessed(record, wanted, counts)
    record = _by_turns(record)
    record = _with_roles(_with_numbers(record, counts), counts)
    return _with_system(record, counts) if "messages" in record and "system" in record else record


def _has(record: Record, wanted: Format | None) -> bool:
    """Return whether the record already fits a format, so that no guess is needed."""
    if wanted is not None:
        return all(key in record for key in wanted.keys)
    found = format_by_keys(record)
    if found is None:
        return False
    if found.name == "text":
        _refuse_text_and_pair(_folded(record))
    return True


def _refuse_text_and_pair(folded: dict[str, str]) -> None:
    pair = _pair(folded)
    if pair is not None:
        raise DataError(
            f'the training text can be "text", or "{pair[0]}" with "{pair[1]}"; pass '
            "--data-format text,"
            f" or {_to_type(*(folded[name] for name in pair))}"
        )


def _guessed(record: Record, wanted: Format | None, counts: Counts) -> Record:
    folded = _folded(record)
    for found in FORMATS.values():
        names = {key: record[folded[key]] for key in found.keys if key in folded}
        if wanted in (None, found) and found.knows(names):
            if wanted is None and found.name == "text":
                _refuse_text_and_pair(folded)
            return _renamed(record, {folded[k]: k for k in _TAKEN if k in folded}, counts)
    chats = [key for key, value in record.items() if is_turns(value)]
    if len(chats) > 1 and wanted is None:
        raise DataError(
            f"each of the keys {shown(', '.join(chats), 80)} contains a chat; pass --data-columns "
            f"messages={shown(chats[0], 40)}"
        )
    if chats:
        key = "messages" if any(k.lower() == "role" for k in record[chats[0]][0]) else None
        key = key or "conversations"
        if wanted is None or wanted.keys == (key,):
            return _renamed(record, {chats[0]: key}, counts)
    pair = _pair(folded)
    if pair is None:
        return record
    question, answer = (folded[name] for name in pair)
    plain = isinstance(record[question], list) or (wanted and wanted.name == "completion")
    keys = ("prompt", "completion") if plain else ("instruction", "output")
    if wanted is not None and set(wanted.keys) != set(keys):
        return record
    names = {question: keys[0], answer: keys[1]}
    if not plain:
        for name, key in _MORE.items():
            if name in folded and folded[name] not in names and key not in names.values():
                names[folded[name]] = key
    return _renamed(record, names, counts)


def _pair(folded: dict[str, str]) -> tuple[str, str] | None:
    """Return the question and answer found by their usual names, or None if either is missing.

    Raises `DataError` if there are several candidates.
    """
    questions = [name for name in QUESTIONS if name in folded]
    answers = [name for name in ANSWERS if name in folded]
    if "instruction" in questions or "question" in questions:
        questions = [q for q in questions if q not in ("input", "inputs")]
    if not questions or not answers:
        return None
    if len(questions) > 1 or len(answers) > 1:
        names = ", ".join(questions + answers)
        raise DataError(
            f"it is unclear which keys contain the question and the answer ({shown(names, 80)}); "
            f"pass {_to_type(folded[questions[0]], folded[answers[0]])}"
        )
    return questions[0], answers[0]


def _to_type(question: str, answer: str) -> str:
    return (
        f"--data-columns instruction={question},output={answer} (with the chat template) or "
        f"--data-columns prompt={question},completion={answer} (concatenated as is)"
    )


def to_type(record: Record) -> str:
    """Return a suggested option that names the columns of a record whose format is unknown.

    The suggestion uses the first and the last string in the record.
    """
    texts = [key for key, value in record.items() if isinstance(value, str) and "," not in key]
    if len(texts) < 2:
        return "--data-columns prompt=NAME,completion=NAME"
    return f"--data-columns prompt={shown(texts[0], 40)},completion={shown(texts[-1], 40)}"


def _folded(record: Record) -> dict[str, str]:
    """Return the keys of a record that have a value, indexed by lower-case name."""
    out: dict[str, str] = {}
    for key, value in record.items():
        if value is not None:
            out.setdefault(key.strip().lower().replace(" ", "_").replace("-", "_"), key)
    return out


def _renamed(record: Record, names: dict[str, str], counts: Counts) -> Record:
    """Return the record with renamed keys; the old keys become null."""
    for old, new in names.items():
        if old != new:
            counts.columns[f"{shown(old, 40)} as {new}"] += 1
    rest = {k: v for k, v in record.items() if k not in names and k not in names.values()}
    return rest | {new: record[old] for old, new in names.items()}


def _with_numbers(record: Record, counts: Counts) -> Record:
    changed = {k: str(record[k]) for k in _NUMBERS if type(record.get(k)) in (int, float)}
    for key in changed:
        counts.numbers[key] += 1
    return record | changed if changed else record


def _with_roles(record: Record, counts: Counts) -> Record:
    """Return the record with standard names in the turns of its chats."""
    for key in ("messages", "conversations", "prompt", "completion", "chosen", "rejected"):
        turns = record.get(key)
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            renamed = [_turn(turn, counts) for turn in turns]
            if any(new is not old for new, old in zip(renamed, turns, strict=True)):
                record = record | {key: renamed}
    return record


def _by_turns(record: Record) -> Record:
    """Move chat turns in ShareGPT form from "messages" to "conversations"."""
    turns = record.get("messages")
    if "conversations" in record or not isinstance(turns, list) or not is_turns(turns):
        return record
    if any(key.lower() == "role" for turn in turns for key in turn):
        return record
    rest = {key: value for key, value in record.items() if key != "messages"}
    return rest | {"conversations": turns}


def _with_system(record: Record, counts: Counts) -> Record:
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
        folded = _folded(turn)
        role = folded.get("role") or next(folded[s] for s in _SPEAKER if s in folded)
        chat = role.lower() == "role"
        words = "content" if chat else "value"
        text = next((folded[w] for w in ("content", *_WORDS) if w in folded), None)
        names = {role: "role" if chat else "from"} | ({text: words} if text else {})
        turn = _renamed(turn, names, Counts.empty())
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
