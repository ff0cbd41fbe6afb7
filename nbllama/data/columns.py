"""Recognise the headers of tables, and rename columns as requested by `--data-columns`."""

from __future__ import annotations

from collections.abc import Mapping

from nbllama.data.containers import DELIMITERS
from nbllama.data.folding import canonical, fold
from nbllama.data.formats import FORMATS, Record
from nbllama.data.keys import ANSWERS, QUESTIONS
from nbllama.errors import DataError, UsageError, shown

_USUAL = {*QUESTIONS, *ANSWERS, "context", "system", "history", "id", ""}


def has_table_header(text: str, columns: Mapping[str, str]) -> bool:
    """Return whether the first line is the header of a table.

    A header either contains all column names of a format with at least two columns, or consists
    only of common column names, including one for the question and one for the answer.
    """
    header = text.lstrip().split("\n", 1)[0].strip()
    for delimiter in DELIMITERS:
        cells = {name.strip().strip('"') for name in header.split(delimiter)}
        names = {canonical(name) for name in cells}
        names |= {key for key, name in columns.items() if fold(name) in map(fold, cells)}
        if any(len(f.keys) > 1 and names.issuperset(f.keys) for f in FORMATS.values()):
            return True
        if names <= _USUAL and names & set(QUESTIONS) and names & set(ANSWERS):
            return True
    return False


def renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """Return the record with keys renamed as in `columns`.

    Raises `DataError` if a key is missing, or if two entries of `columns` refer to the same key.
    """
    if not columns:
        return record
    keys = {key: _key(record, name) for key, name in columns.items()}
    if len(set(keys.values())) < len(keys):
        raise DataError(_same(list(columns.items())))
    rest = {k: v for k, v in record.items() if k not in keys.values()}
    return rest | {key: record[name] for key, name in keys.items()}


def _key(record: Record, name: str) -> str:
    """Return the key with this name, or else the only similar key. Raises `DataError`."""
    if name in record:
        return name
    alike = [key for key in record if fold(key) == fold(name)]
    if len(alike) != 1:
        several = f"; several keys have similar names ({shown(', '.join(alike), 80)})"
        raise DataError(f'the key "{shown(name, 40)}" is missing{several if alike else ""}')
    return alike[0]


def _same(columns: list[tuple[str, str]]) -> str:
    """Return the reason why `columns`, in which a column occurs twice, cannot be used."""
    folded = [fold(name) for _, name in columns]
    key, name = next(c for c, f in zip(columns, folded, strict=True) if folded.count(f) > 1)
    other = next(k for k, n in columns if k != key and fold(n) == fold(name))
    return f'the column "{shown(name, 40)}" cannot be both {key} and {other}; name two columns'


def parse_columns(text: str) -> dict[str, str]:
    """Parse "prompt=question,completion=answer" (`--data-columns`) as {"prompt": "question", ...}.

    Raises `UsageError` if `text` has a different form, contains a key that no format has, or names
    a key or a column twice.
    """
    keys = {key for f in FORMATS.values() for key in f.keys} | {"input", "system"}
    out: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, name = (p.strip() for p in part.partition("="))
        if not equals or not name or key not in keys:
            raise UsageError(
                f"--data-columns: '{shown(part)}' is not KEY=NAME; KEY must be one of "
                f"{', '.join(sorted(keys))}"
            )
        if key in out:
            raise UsageError(f"--data-columns: {key} is given twice; keep one")
        out[key] = name
    if len(set(out.values())) < len(out):
        raise UsageError(f"--data-columns: {_same(list(out.items()))}")
    return out
