"""Record formats, one per module; the keys of a record determine its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nbllama.data.formats import (
    alpaca,
    completion,
    labelled,
    messages,
    preference,
    sharegpt,
    text,
)
from nbllama.data.formats.checks import Record
from nbllama.data.formats.record import (
    Continuation,
    Conversation,
    Format,
    Labelled,
    Message,
    Pair,
    Plain,
    Sample,
    Style,
    plain_ones,
)

__all__ = [
    "FORMATS",
    "Continuation",
    "Conversation",
    "Format",
    "Labelled",
    "Message",
    "Pair",
    "Plain",
    "Record",
    "Sample",
    "Style",
    "format_of",
    "plain_ones",
]

# If a record has the keys of several formats, the first of these formats is used.
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (messages, sharegpt, preference, labelled, completion, alpaca, text)
}


def format_of(records: Iterable[Record]) -> Format | None:
    """Return the format that fits the most records, or None if no format fits any record.

    A null value counts as a missing key, because merged tables contain such values.
    """
    votes: Counter[str] = Counter()
    for record in records:
        for name, format in FORMATS.items():
            if format.knows(record):
                votes[name] += 1
                break
    return FORMATS[votes.most_common(1)[0][0]] if votes else None
