"""Build the error for records whose keys match no format; it suggests an option to pass."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from nbllama.data.counts import Counts
from nbllama.data.folding import CHINESE_COLUMNS, canonical, fold
from nbllama.data.formats import FORMATS, Record
from nbllama.data.keys import ANSWERS, QUESTIONS, columns_option, keys_by_name, pair_options
from nbllama.data.names import format_by_keys, known_names
from nbllama.data.other_layouts import ROUNDS
from nbllama.data.turns import is_turn
from nbllama.data.wrapped import COLUMN, is_column
from nbllama.errors import DataError, shown

_KNOWN = (
    "question/answer, instruction/output, prompt/completion, chosen/rejected, messages, "
    "conversations, text"
)

# The last words of keys whose values should not be trained on, and of keys with a short text.
_DESCRIPTIONS = frozenset(
    "id uuid guid index key hash category type kind class source dataset split lang language url "
    "link path file filename date time timestamp at model version license score tag tags domain "
    "author difficulty level status".split()
)
_TITLES = frozenset(("title", "name", "topic", "subject"))


def no_format(
    renamed: Record, where: str, *, table: bool, raw: bool, columns: Mapping[str, str]
) -> DataError:
    """Return the error for a file in which no record has the keys of a format.

    `renamed` is the first record, with its keys already renamed by `--data-columns`, and `columns`
    maps the new keys to the names in the file. `where` is the file or line that contains the keys.
    `raw` says whether the file could have been meant as plain text.
    """
    record = {columns.get(key, key): value for key, value in renamed.items()}
    names = shown(", ".join(key or '""' for key in record) or "none", 50)
    if is_turn(record):
        return DataError(
            f"{where}: each {'row' if table else 'record'} is a single message ({names}); write "
            'each chat as one record, {"messages": [{"role": ..., "content": ...}, ...]}'
        )
    if (key := _listed_texts(record)) is not None:
        return DataError(
            f'{where}: "{shown(key, 40)}" contains a list of texts; write a chat as {{"messages": '
            '[{"role": ..., "content": ...}, ...]}, and other texts as {"text": ...} each'
        )
    if empty := _null_keys(record):
        listed = " and ".join(f'"{shown(key, 40)}"' for key in empty)
        return DataError(
            f"{where}: {listed} {'is' if len(empty) == 1 else 'are'} null or NaN, and no other "
            "record can be read; give each record a value for each key"
        )
    if record and all(is_column(value) for value in record.values()):
        return DataError(f'{where}: "{shown(next(iter(record)), 40)}" {COLUMN}')
    if (key := _outer_key(record)) is not None:
        what = "the records are in a list" if isinstance(record[key], list) else "the record is"
        return DataError(
            f'{where}: {what} under "{shown(key, 40)}"; write each record separately, with its own '
            "keys at the top level"
        )
    options = _options(record)
    line = (
        f"{where}: the {'columns' if table else 'keys'} ({names}) match no format ({_KNOWN}); "
        f"{f'pass {options}' if options else 'write each record with the keys of a format'}"
    )
    return DataError(line + (", or --data-format raw for plain text" if raw else ""))


def _null_keys(record: Record) -> list[str]:
    """Return the keys that are null although a format needs them, or [] if other keys are missing.

    If the record has the keys of several formats, the one with the smallest share of nulls is used.
    """
    keys = keys_by_name({key: "" if value is None else value for key, value in record.items()})
    pairs = [(question, answer) for question in QUESTIONS for answer in ANSWERS]
    needed = [
        [keys[name][0] for name in names]
        for names in [format.keys for format in FORMATS.values()] + pairs
        if keys.keys() >= set(names)
    ]
    empty = [([key for key in names if record[key] is None], len(names)) for names in needed]
    return min(empty, key=lambda found: len(found[0]) / found[1], default=([], 0))[0]


def _outer_key(record: Record) -> str | None:
    """Return the key that contains the actual record or a list of records, or None."""
    for key, value in record.items():
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and _is_record(inner):
            return key
    nested = [key for key, value in record.items() if isinstance(value, dict | list) and value]
    texts = any(isinstance(value, str) for value in record.values())
    return nested[0] if len(nested) == 1 and not texts else None


def _is_record(inner: Record) -> bool:
    try:
        return format_by_keys(known_names(inner, None, Counts.empty())) is not None
    except DataError:
        return True  # it has the keys of several formats


def _listed_texts(record: Record) -> str | None:
    """Return the key of a list of texts that is probably a chat without speakers, or None."""
    lists = [key for key, value in record.items() if isinstance(value, list) and is_column(value)]
    named = [key for key in lists if canonical(key) in ROUNDS]
    alone = len(lists) < len(record) and not _trainable(record)
    return next(iter(named or (lists if alone else [])), None)


def _trainable(record: Record) -> list[str]:
    """Return the keys with texts that could be trained on: not ids, titles, categories and so on.

    Numbers are ignored if enough other texts are left.
    """
    texts = [key for key, value in record.items() if isinstance(value, str) and key]
    texts = [key for key in texts if _last_word(key) not in _DESCRIPTIONS | _TITLES]
    words = [key for key in texts if not record[key].strip().isnumeric()]
    return words if len(words) > 1 else texts


def _last_word(key: str) -> str:
    return re.split(r"[\W_]+", fold(key))[-1]


def _options(record: Record) -> str | None:
    """Return the options that name the keys with the question and the answer, or with the text.

    Keys that contain a known name are preferred, and then keys with long texts. A title can be the
    question, because the question is not trained on. Returns None if no text can be trained on.
    """
    texts = _trainable(record)
    titles = [key for key in record if _last_word(key) in _TITLES and isinstance(record[key], str)]
    if not texts:
        return None
    if len(texts) == 1 and (_contains(texts[0], QUESTIONS) or not titles):
        return columns_option({"text": texts[0]})
    return pair_options(*_question_and_answer(record, texts, titles))


def _question_and_answer(record: Record, texts: list[str], titles: list[str]) -> tuple[str, str]:
    """Return the likely keys of the question and the answer, of two or more texts and titles."""
    answer = next((key for key in texts if _contains(key, ANSWERS)), "")
    question = next((key for key in texts if key != answer and _contains(key, QUESTIONS)), "")
    is_named = bool(answer or question)
    answer = answer or _longest(record, texts[::-1], question)
    question = question or _longest(record, texts, answer) or titles[0]
    if not is_named and question in texts:
        question, answer = sorted((question, answer), key=texts.index)
    return question, answer


def _longest(record: Record, keys: list[str], other: str) -> str:
    """Return the first key with the longest text, apart from `other`, or "" if none is left."""
    rest = [key for key in keys if key != other]
    return max(rest, key=lambda key: len(record[key]), default="")


def _contains(key: str, names: Collection[str]) -> bool:
    """Return whether a key contains a name or its Chinese form; very short names are ignored."""
    folded = fold(key)
    chinese = (word for word, name in CHINESE_COLUMNS.items() if name in names)
    return any(len(name) > 2 and name in folded for name in names) or any(
        len(word) > 1 and word in folded for word in chinese
    )
