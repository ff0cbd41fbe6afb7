"""Map common names for columns, keys and speakers to the names that the formats use.

A question and its answer can have any of the usual names, in English or Chinese, in upper or lower
case (`nbllama.data.folding`). The names are mapped to the keys of a format only if there is exactly
one way to do so.
"""

from __future__ import annotations

from nbllama.data.counts import Counts
from nbllama.data.folding import canonical
from nbllama.data.formats import FORMATS, Format, Record, Style
from nbllama.data.formats.record import ANSWERING_ROLE
from nbllama.data.keys import (
    ANSWERS,
    QUESTIONS,
    Keys,
    columns_option,
    keys_by_name,
    pair_options,
    with_renamed,
)
from nbllama.data.other_layouts import from_other_layout
from nbllama.data.ranked import role_of
from nbllama.data.turns import (
    by_turns,
    has_roles,
    is_turns,
    with_lists,
    with_numbers,
    with_roles,
)
from nbllama.data.wrapped import COLUMN, is_column
from nbllama.errors import DataError, shown

_PROMPTS = ("prompt", "instruction", "question")  # keys that can contain a prompt
# Names for keys that a format reads in addition to the keys that identify it.
_SYSTEM = {"system": "system", "system_prompt": "system", "system_message": "system"}
_MORE = {"input": "input", "context": "input", "history": "history"} | _SYSTEM


def format_by_keys(record: Record) -> Format | None:
    """Return the first format whose keys the record has; null values count as missing."""
    for found in FORMATS.values():
        if found.knows(record):
            return found
    return None


def known_names(
    record: Record,
    wanted: Format | None,
    counts: Counts,
    *,
    guess: bool = True,
    style: Style | None = None,
) -> Record:
    """Return the record with its keys renamed to the keys of a format (`wanted`, if given).

    Without `guess`, only known layouts of chats and preferences are converted, and numbers become
    text. Unknown names stay unchanged. Raises `DataError`, suggesting an option to add, if the
    record can be read in several ways.
    """
    record = from_other_layout(record, wanted, counts, (style or Style()).joint)
    if guess:
        if not _has(record, wanted):
            record = _guessed(record, wanted, counts)
        record = _with_more(record, counts)
    _refuse_table_by_columns(record)
    record = by_turns(with_lists(record))
    return with_roles(with_numbers(record, counts), counts)


def prompt_names(record: Record, counts: Counts) -> Record:
    """Return a record that has a prompt but no answer, with its keys renamed to the usual names.

    Raises `DataError` if several keys could contain the prompt.
    """
    if all(record.get(name) is None for name in ("messages", *_PROMPTS)):
        keys = keys_by_name(record)
        found = {key: name for name in _PROMPTS for key in keys.get(name, ())}
        found |= {key: "messages" for key, value in record.items() if is_turns(value)}
        if len(found) > 1:
            raise DataError(
                f"it is unclear which key contains the prompt ({shown(', '.join(found), 80)}); "
                f"pass {columns_option({new: key for key, new in list(found.items())[:1]})}"
            )
        record = with_renamed(record, found, counts) if found else record
    if record.get("instruction") is not None or record.get("question") is not None:
        record = _with_usual(record, _MORE, counts)
    return with_roles(with_lists(record), counts)


def _has(record: Record, wanted: Format | None) -> bool:
    """Return whether the record already fits a format, so that no guess is needed."""
    if wanted is not None:
        return all(key in record for key in wanted.keys)
    found = format_by_keys(record)
    if found is None:
        return False
    if found.name == "text":
        _refuse_text_and_pair("text", keys_by_name(record))
    return True


def _refuse_table_by_columns(record: Record) -> None:
    """Raise `DataError` if a key contains a whole table column instead of a single text."""
    for key in ("prompt", "instruction", "text"):
        value = record.get(key)
        if isinstance(value, list | dict) and is_column(value):
            raise DataError(f'"{key}" {COLUMN}')


def _refuse_text_and_pair(text: str, keys: Keys) -> None:
    pair = _pair(keys)
    if pair is not None:
        question, answer = (shown(key, 40) for key in pair)
        option = "--data-format text" if text == "text" else columns_option({"text": text})
        raise DataError(
            f'the training text could be "{shown(text, 40)}", or "{question}" and "{answer}" '
            f"together; pass {option}, or {pair_options(*pair)}"
        )


def _guessed(record: Record, wanted: Format | None, counts: Counts) -> Record:
    keys = keys_by_name(record)
    for found in FORMATS.values():
        values = {name: record[keys[name][0]] for name in found.keys if name in keys}
        if wanted in (None, found) and found.knows(values):
            if wanted is None and found.name == "text":
                _refuse_text_and_pair(keys["text"][0], keys)
            names = {_only(keys, name, found.keys): name for name in found.keys}
            return with_renamed(record, names, counts)
    chats = [key for key, value in record.items() if is_turns(value)]
    if wanted is None and len(chats) == 1 and _waits_for_answer(record, chats[0], keys):
        chats = []
    if len(chats) == 1 or (chats and wanted is not None):
        key = "messages" if has_roles(record[chats[0]][0]) else "conversations"
        if wanted is None or wanted.keys == (key,):
            return with_renamed(record, {chats[0]: key}, counts)
    pair = _pair(keys) if wanted is None or wanted.name in ("completion", "alpaca") else None
    if len(chats) > 1 and wanted is None and not (pair and set(chats).issuperset(pair)):
        raise DataError(
            f"each of the keys {shown(', '.join(chats), 80)} contains a chat; pass "
            f"{columns_option({'messages': chats[0]})}"
        )
    if pair is None:
        return record
    question, answer = pair
    plain = isinstance(record[question], list) or (wanted and wanted.name == "completion")
    ends = ("prompt", "completion") if plain else ("instruction", "output")
    if wanted is not None and set(wanted.keys) != set(ends):
        return record
    return with_renamed(record, {question: ends[0], answer: ends[1]}, counts)


def _waits_for_answer(record: Record, chat: str, keys: Keys) -> bool:
    """Return whether a chat is a prompt whose answer is text under another key."""
    answers = [key for name in ANSWERS for key in keys.get(name, ())]
    return (
        canonical(chat) in QUESTIONS
        and any(isinstance(record[key], str) for key in answers)
        and role_of(record[chat][-1]) != ANSWERING_ROLE
    )


def _only(keys: Keys, name: str, wanted: tuple[str, ...]) -> str:
    """Return the only key with the English name `name`. Raises `DataError` if there are several."""
    if len(keys[name]) > 1:
        raise DataError(
            f'it is unclear which key is "{name}" ({shown(", ".join(keys[name]), 80)}); pass '
            f"{columns_option({n: keys[n][0] for n in wanted if n in keys})}"
        )
    return keys[name][0]


def _with_more(record: Record, counts: Counts) -> Record:
    """Return the record with the optional keys of its format renamed to their usual names."""
    if "chosen" in record and "rejected" in record:
        record = _with_prompt(record, counts)
        prompt = record.get("prompt")
        chats = isinstance(prompt, list) or isinstance(record["chosen"], list)
        more = _MORE if prompt is None else _SYSTEM if chats else {}
    elif (
        record.get("messages") is not None
        or record.get("conversations") is not None
        or isinstance(record.get("prompt"), list)
    ):
        more = _SYSTEM
    elif record.get("instruction") is not None and record.get("output") is not None:
        more = _MORE
    else:
        return record
    return _with_usual(record, more, counts)


def _with_usual(record: Record, more: dict[str, str], counts: Counts) -> Record:
    """Return the record with the keys listed in `more` renamed to their usual names."""
    keys = keys_by_name(record)
    names: dict[str, str] = {}
    for name, new in more.items():
        if name in keys and record.get(new) is None and new not in names.values():
            if len(keys[name]) > 1:
                raise DataError(
                    f'it is unclear which key is "{new}" ({shown(", ".join(keys[name]), 80)}); '
                    "keep one of them"
                )
            names[keys[name][0]] = new
    return with_renamed(record, names, counts) if names else record


def _pair(keys: Keys) -> tuple[str, str] | None:
    """Return the keys of the question and the answer, or None if either is missing.

    Raises `DataError` if there are several candidates.
    """
    names = [name for name in QUESTIONS if name in keys]
    if "instruction" in names or "question" in names:
        names = [name for name in names if name not in ("input", "inputs")]
    questions = [key for name in names for key in keys[name]]
    answers = [key for name in ANSWERS for key in keys.get(name, ())]
    if not questions or not answers:
        return None
    if len(questions) > 1 or len(answers) > 1:
        listed = ", ".join(questions + answers)
        raise DataError(
            f"it is unclear which keys contain the question and the answer ({shown(listed, 80)}); "
            f"pass {pair_options(questions[0], answers[0])}"
        )
    return questions[0], answers[0]


def _with_prompt(record: Record, counts: Counts) -> Record:
    """Return a preference with its prompt key renamed, if only one key could be the prompt."""
    if any(record.get(name) is not None for name in _PROMPTS):
        return record
    keys = keys_by_name(record)
    found = [(key, name) for name in _PROMPTS for key in keys.get(name, ())]
    return with_renamed(record, dict(found), counts) if len(found) == 1 else record
