"""Convert chats and preferences in the layouts of other programs to the usual keys.

- XTuner and Firefly: {"conversation": [{"system": S, "input": Q, "output": A}, ...]}, in which each
  item is a question with its answer, possibly with an instruction and an input;
- Gemini: {"contents": [{"role": "user", "parts": [{"text": Q}]}, {"role": "model", ...}]};
- distilled answers: {"input": Q, "content": A, "reasoning_content": T};
- OpenAI's preferences: {"input": {"messages": [...]}, "preferred_output": [A],
  "non_preferred_output": [B]};
- LLaMA-Factory's preferences and labelled answers (`nbllama.data.ranked`).
"""

from __future__ import annotations

from typing import Any

from nbllama.data.counts import Counts
from nbllama.data.formats import Format, Record, Style
from nbllama.data.formats.checks import text_of
from nbllama.data.keys import ANSWERS, QUESTIONS, keys_by_name, with_renamed
from nbllama.data.ranked import TAG, with_judgement
from nbllama.data.turns import is_turn
from nbllama.errors import DataError, shown
from nbllama.text.thoughts import KEYS as THOUGHT_KEYS

ROUNDS = (
    "conversation",
    "conversations",
    "dialogue",
    "dialog",
    "turns",
    "messages",
    "对话",
    "對話",
)
_SIDES = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
_SYSTEM = ("systemInstruction", "system_instruction")
_CONTENTS = ("contents", "messages", "conversations")
_KEYS = frozenset((*ROUNDS, *_CONTENTS, *_SIDES, *THOUGHT_KEYS, TAG))


def from_other_layout(
    record: Record, wanted: Format | None, counts: Counts, joint: str = Style().joint
) -> Record:
    """Return the record with the usual keys, or the same record if it has a usual layout.

    `joint` is the text between an instruction and its input. Raises `DataError` if a part of the
    record does not fit the layout of the rest.
    """
    if _KEYS.isdisjoint(record):
        return record
    record = with_judgement(record, wanted, counts, joint)
    if wanted is None or wanted.name == "chat":
        for key in ROUNDS:
            if key in record and begins_with_round(record[key]):
                return _with_rounds(record, key, counts, joint)
        for key in _CONTENTS:
            if _has_parts(record.get(key)):
                return _with_contents(record, key, counts)
        if (found := _with_thought(record, counts)) is not None:
            return found
    if (wanted is None or wanted.name == "preference") and record.keys() >= _SIDES.keys():
        return _with_preference(record, counts)
    return record


def begins_with_round(value: Any) -> bool:
    """Return whether a value is a list that begins with a question and its answer."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return not is_turn(value[0]) and _pair(value[0]) is not None


def _pair(item: Record) -> tuple[list[str], str] | None:
    """Return the keys of a round's question and its answer, or None unless it has one of each.

    The question can have two keys: an instruction (or a question) and its input.
    """
    keys = keys_by_name(item)
    questions = [(name, key) for name in QUESTIONS for key in keys.get(name, ())]
    if len(questions) > 1:
        questions = [(name, key) for name, key in questions if item[key] != ""]
    answers = [key for name in ANSWERS for key in keys.get(name, ())]
    names = [name for name, _ in questions]
    single = len(names) == 1 or names in (["instruction", "input"], ["question", "input"])
    return ([key for _, key in questions], answers[0]) if single and len(answers) == 1 else None


def _with_rounds(record: Record, key: str, counts: Counts, joint: str) -> Record:
    messages: list[Record] = []
    system: Any = None
    for number, item in enumerate(record[key], 1):
        pair = _pair(item) if isinstance(item, dict) else None
        if pair is None:
            raise DataError(f'item {number} of "{key}" must have one question and one answer')
        questions, answer = pair
        question = _question(item, questions, f'item {number} of "{key}": ', joint)
        read = (*questions, answer, "system", "output_with_loss")
        rest = {k: v for k, v in item.items() if k not in read}
        if "output_with_loss" in item:  # XTuner's name for a key that excludes an answer
            rest["loss"] = item["output_with_loss"]
        if item.get("system") not in (None, "", system):
            system = item["system"]
            messages.append({"role": "system", "content": system})
        messages.append({"role": "user", "content": question})
        messages.append({**rest, "role": "assistant", "content": item[answer]})
        for old, new in (*((name, "user") for name in questions), (answer, "assistant")):
            if old != new:
                counts.columns[(shown(old, 40), new)] += 1
    return with_renamed(record | {key: messages}, {key: "messages"}, counts)


def _question(item: Record, keys: list[str], where: str, joint: str) -> Any:
    """Return the question of a round. Raises `DataError` if it is empty."""
    first = item[keys[0]]
    if not str(first).strip():
        raise DataError(
            f"{where}the question ({shown(keys[0], 40)}) is empty; write text without a question "
            'as {"text": ...}'
        )
    if len(keys) == 1:
        return first
    return text_of(item, keys[0], where) + joint + text_of(item, keys[1], where)


def _has_parts(value: Any) -> bool:
    """Return whether a value is a chat in Gemini's layout."""
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(turn, dict) and "parts" in turn and turn.get("content") is None for turn in value
    )


def _with_contents(record: Record, key: str, counts: Counts) -> Record:
    messages = []
    for number, turn in enumerate(record[key], 1):
        rest = {key: value for key, value in turn.items() if key != "parts"}
        messages.append(rest | {"content": _text(turn["parts"], f"message {number}: ")})
    record = with_renamed(record | {key: messages}, {key: "messages"}, counts)
    for name in _SYSTEM:
        if isinstance(text := record.get(name), dict):
            text = _text(text.get("parts"), f"{name}: ")
        if isinstance(text, str):
            record = with_renamed(record | {name: text}, {name: "system"}, counts)
    return record


def _text(parts: Any, where: str) -> str:
    """Return the text of a message in Gemini's layout. Raises `DataError` for anything else."""
    parts = [parts] if isinstance(parts, dict) else parts
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.keys() == {"text"} and isinstance(part["text"], str)
        for part in parts
    ):
        raise DataError(
            f'{where}"parts" must contain only {{"text": ...}}; write other chats as {{"messages": '
            '[{"role": ..., "content": ...}, ...]}'
        )
    return "".join(part["text"] for part in parts)


def _with_thought(record: Record, counts: Counts) -> Record | None:
    """Return a chat of a question, its answer under "content" and a thought, or None."""
    thoughts = {key: record[key] for key in THOUGHT_KEYS if record.get(key) is not None}
    if not thoughts or not isinstance(record.get("content"), str):
        return None
    keys = keys_by_name(record)
    questions = [key for name in QUESTIONS for key in keys.get(name, ())]
    if (
        len(questions) != 1
        or not isinstance(record[questions[0]], str)
        or not keys.keys().isdisjoint(("role", "text", *ANSWERS))
    ):
        return None
    asked = {"role": "user", "content": record[questions[0]]}
    answer = {"role": "assistant", "content": record["content"], **thoughts}
    counts.columns[(shown(questions[0], 40), "user")] += 1
    counts.columns[("content", "assistant")] += 1
    read = (*questions, "content", *thoughts)
    return {key: value for key, value in record.items() if key not in read} | {
        "messages": [asked, answer]
    }


def _with_preference(record: Record, counts: Counts) -> Record:
    given = record.get("input")
    names = dict(_SIDES)
    if isinstance(given, dict) and "messages" in given:
        rest = {key: value for key, value in given.items() if key != "messages"}
        record = rest | record | {"input": given["messages"]}
        names["input"] = "prompt"
    return with_renamed(record, names, counts)
