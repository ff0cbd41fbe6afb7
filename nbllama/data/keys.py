"""The keys of a record under lower-case names, and records with renamed keys."""

from __future__ import annotations

from nbllama.data.counts import Counts
from nbllama.data.formats import Record
from nbllama.errors import shown


def folded_keys(record: Record) -> dict[str, str]:
    """Return the keys of a record that have a value, indexed by lower-case name."""
    out: dict[str, str] = {}
    for key, value in record.items():
        if value is not None:
            out.setdefault(key.strip().lower().replace(" ", "_").replace("-", "_"), key)
    return out


def with_renamed(record: Record, names: dict[str, str], counts: Counts) -> Record:
    """Return the record with renamed keys; the old keys become null."""
    for old, new in names.items():
        if old != new:
            counts.columns[f"{shown(old, 40)} as {new}"] += 1
    rest = {k: v for k, v in record.items() if k not in names and k not in names.values()}
    return rest | {new: record[old] for old, new in names.items()}
