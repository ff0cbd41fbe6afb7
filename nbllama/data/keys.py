"""Find the keys of a record by their English names, rename them, and suggest options for them."""

from __future__ import annotations

import re
import shlex

from nbllama.data.counts import Counts
from nbllama.data.folding import canonical
from nbllama.data.formats import Record
from nbllama.errors import shown

Keys = dict[str, list[str]]
"""The keys of a record that have a value, grouped by English name."""

QUESTIONS = (
    "instruction", "question", "query", "prompt", "input", "inputs", "human", "user", "q",
)  # fmt: skip
ANSWERS = (
    "output", "outputs", "answer", "response", "completion", "bot", "assistant", "gpt", "chatgpt",
    "ai", "reply", "target", "targets", "a",
)  # fmt: skip
_LONGEST = 40  # characters of a name in an option; a longer name must be replaced by hand
_UNSAFE = re.compile(r"[^\w@%+=:,./-]")  # characters that a shell may interpret


def keys_by_name(record: Record) -> Keys:
    """Return the keys of a record that have a value, grouped by English name (`canonical`)."""
    out: Keys = {}
    for key, value in record.items():
        if value is not None:
            out.setdefault(canonical(key), []).append(key)
    return out


def with_renamed(record: Record, names: dict[str, str], counts: Counts) -> Record:
    """Return the record with keys renamed as in `names`, and count the changes in `counts`."""
    for old, new in names.items():
        if old != new:
            counts.columns[(shown(old, 40), new)] += 1
    rest = {k: v for k, v in record.items() if k not in names and k not in names.values()}
    return rest | {new: record[old] for old, new in names.items()}


def columns_option(columns: dict[str, str]) -> str:
    """Return the `--data-columns` option for these columns, in quotes if a shell requires them."""
    value = ",".join(f"{key}={_typed(name)}" for key, name in columns.items())
    return f"--data-columns {shlex.quote(value) if _UNSAFE.search(value) else value}"


def _typed(name: str) -> str:
    return name if len(name) <= _LONGEST and name.isprintable() and "," not in name else "NAME"


def pair_options(question: str, answer: str) -> str:
    """Return the two possible options for reading these columns as a question and its answer."""
    return (
        f"{columns_option({'instruction': question, 'output': answer})} (with the chat template) "
        f"or {columns_option({'prompt': question, 'completion': answer})} (concatenated as is)"
    )
