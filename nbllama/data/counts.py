"""Counts, over all records, of keys that were read under different names or ignored."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from nbllama.data.formats import Format, Record
from nbllama.errors import shown

_READ = {
    "chat": {"tools", "functions", "chat_template_kwargs"},
    "sharegpt": {"system", "tools", "functions", "chat_template_kwargs"},
    "completion": {"tools", "functions", "chat_template_kwargs"},
    "preference": {
        "prompt", "weight", "tools", "functions", "chat_template_kwargs", "instruction", "question",
        "input", "system", "history",
    },
    "labelled": {"weight", "tools", "functions", "chat_template_kwargs"},
    "alpaca": {"input", "system", "history"},
    "text": set[str](),
}  # fmt: skip


class Counts(NamedTuple):
    """Counts of the changes to the records in a file."""

    columns: Counter[str]  # "question as instruction"
    roles: Counter[str]  # "human as user"
    numbers: Counter[str]  # keys whose numbers were converted to text
    unread: Counter[str]  # keys that the format ignores

    @classmethod
    def empty(cls) -> Counts:
        """Return empty counts."""
        return cls(Counter(), Counter(), Counter(), Counter())

    def notes(self) -> list[str]:
        """Return a line for each kind of change."""
        out = []
        if self.columns:
            asked = any(c.endswith((" as instruction", " as output")) for c in self.columns)
            through = " (with the chat template)" if asked else ""
            out.append(f"read: {_listed(self.columns)}{through}")
        if self.roles:
            out.append(f"roles: {_listed(self.roles)}")
        if self.numbers:
            out.append(f"numbers read as text: {_counted(self.numbers)}")
        if self.unread:
            out.append(f"keys not used for training: {_counted(self.unread)}")
        return out


def _listed(names: Counter[str]) -> str:
    return shown(", ".join(names), 200)


def _counted(names: Counter[str]) -> str:
    return shown(", ".join(f"{name} ({n})" for name, n in names.most_common(8)), 300)


def count_unread(record: Record, found: Format, counts: Counts) -> None:
    """Count the non-empty keys that the format ignores."""
    for key, value in record.items():
        if (
            key not in found.keys
            and key not in _READ[found.name]
            and value not in (None, "", [], {})
        ):
            counts.unread[shown(key, 40)] += 1
