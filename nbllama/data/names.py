"""Map common names for columns, keys and speakers to the names that the formats use.

A question and its answer can have any of the usual names, in upper or lower case. The names are
mapped to the keys of a format only if there is exactly one way to do so.
"""

from __future__ import annotations

from nbllama.data.counts import Counts
from nbllama.data.formats import FORMATS, Format, Record
from nbllama.data.keys import folded_keys, with_renamed
from nbllama.data.turns import by_turns, is_turns, with_numbers, with_roles, with_system
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
# Keys that the formats read from a record, besides the keys that identify the format.
_TAKEN = {key for f in FORMATS.values() for key in f.keys} | {"input", "system", "history"}


def format_by_keys(record: Record) -> Format | None:
    """Return the first format whose keys the record has; null values count as missing."""
    for found in FORMATS.values():
        if found.knows(record):
            return found
    return None


def known_names(
    record: Record, wanted: Format | None, counts: Counts, *, guess: bool = True
) -> Record:
    """Return the record with its keys renamed to the keys of a format (`wanted`, if given).

    Without `guess`, only speakers and numbers are changed. Unknown names stay unchanged. Raises
    `DataError`, which suggests an option to add, if there are several ways to read the record.
    """
    if guess and not _has(record, wanted):
        record = _guessed(record, wanted, counts)
    record = by_turns(record)
    record = with_roles(with_numbers(record, counts), counts)
    return with_system(record, counts) if "messages" in record and "system" in record else record


def _has(record: Record, wanted: Format | None) -> bool:
    """Return whether the record already fits a format, so that no guess is needed."""
    if wanted is not None:
        return all(key in record for key in wanted.keys)
    found = format_by_keys(record)
    if found is None:
        return False
    if found.name == "text":
        _refuse_text_and_pair(folded_keys(record))
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
    folded = folded_keys(record)
    for found in FORMATS.values():
        names = {key: record[folded[key]] for key in found.keys if key in folded}
        if wanted in (None, found) and found.knows(names):
            if wanted is None and found.name == "text":
                _refuse_text_and_pair(folded)
            return with_renamed(record, {folded[k]: k for k in _TAKEN if k in folded}, counts)
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
            return with_renamed(record, {chats[0]: key}, counts)
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
    return with_renamed(record, names, counts)


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
