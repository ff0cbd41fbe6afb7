"""Build the error for records whose keys match no format; it suggests an option to pass."""

from __future__ import annotations

from collections.abc import Collection

from nbllama.data.folding import CHINESE_COLUMNS, fold
from nbllama.data.formats import Record
from nbllama.data.keys import ANSWERS, QUESTIONS, columns_option, pair_options
from nbllama.data.turns import is_turn
from nbllama.errors import DataError, shown

_KNOWN = (
    "question/answer, instruction/output, prompt/completion, chosen/rejected, messages, "
    "conversations, text"
)


def no_format(record: Record, where: str, *, table: bool, raw: bool) -> DataError:
    """Return the error for a file in which the keys of no record match a format.

    `record` is the first record, and `where` is the place of its keys. `raw` says whether the file
    could have been meant as plain text.
    """
    names = shown(", ".join(record) or "none", 50)
    if is_turn(record):
        return DataError(
            f"{where}: each {'row' if table else 'record'} is a single message ({names}); write "
            'each chat as one record, {"messages": [{"role": ..., "content": ...}, ...]}'
        )
    line = (
        f"{where}: the {'columns' if table else 'keys'} ({names}) match no format ({_KNOWN}); pass "
        f"{_options(record)}"
    )
    return DataError(line + (", or --data-format raw for plain text" if raw else ""))


def _options(record: Record) -> str:
    """Return the options that name the keys with the question and the answer, or with the text.

    Keys that contain a known name are preferred. Otherwise, the first text of the record is taken
    as the question and the last as the answer, ignoring numbers if enough other texts are left.
    """
    texts = [key for key, value in record.items() if isinstance(value, str)]
    words = [key for key in texts if not record[key].strip().isnumeric()]
    texts = words if len(words) > 1 else texts
    if len(texts) == 1:
        return columns_option({"text": texts[0]})
    if not texts:
        return columns_option({"prompt": "NAME", "completion": "NAME"})
    answers = [key for key in texts if _contains(key, ANSWERS)]
    questions = [key for key in texts if key not in answers and _contains(key, QUESTIONS)]
    question = next(key for key in questions + texts if key not in answers[:1])
    answer = next(key for key in answers + texts[::-1] if key != question)
    return pair_options(question, answer)


def _contains(key: str, names: Collection[str]) -> bool:
    """Return whether a key contains one of the names, except short ones, or its Chinese form."""
    folded = fold(key)
    chinese = (word for word, name in CHINESE_COLUMNS.items() if name in names)
    return any(len(name) > 2 and name in folded for name in names) or any(
        len(word) > 1 and word in folded for word in chinese
    )
