"""Find records in the values of a JSON file.

Records can be items of a list, bare lists of messages, or items of a list under a key of an object
({"data": [...]}).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from nbllama.data.formats.checks import Record, kind_of
from nbllama.data.json_values import Value, line_numbers, list_items, member_at
from nbllama.data.other_layouts import begins_with_round
from nbllama.data.turns import has_roles, is_turns
from nbllama.errors import DataError, counted, shown

_OTHER_SPLITS = {"valid", "validation", "val", "dev", "test", "eval"}
_CHATS = ("messages", "conversations")
_OF_ONE_CHAT = {"id", "uuid", "system", "tools"}  # also names that end in "_id"
_DEPTH = 3  # levels of nested objects to search

COLUMN = (
    "contains a whole column of a table; write each row as one record, as with pandas' "
    'to_json(orient="records", lines=True)'
)
"""The error message for a key that contains a column, without the name of the key."""

Known = Callable[[Record], bool]


class Entry(NamedTuple):
    """A record in a file or an error, with the number of its first line (counted from 1)."""

    line: int
    record: Record | DataError


class _Held(NamedTuple):
    """The records in an object, and the keys under which they were found."""

    keys: tuple[str, ...]
    items: list[Any]


def entries_of(
    values: list[Value], text: str, known: Known, notes: list[str], *, per_line: bool = False
) -> Iterator[Entry]:
    """Yield the records in the values of a file.

    `text` is the text that the positions of `values` refer to. `known` returns whether an object
    has the keys of a known format. `per_line` says that each line is a record (JSON Lines). If the
    records are under a key, a message is added to `notes`. Raises `DataError` ("line N: ...") for
    an object in which several lists could contain the records.
    """
    single = len(values) == 1
    for value in values:
        found = value.value
        if isinstance(found, list) and found and not is_turns(found):
            yield from map(_entry, value.lines or [value.line] * len(found), found)
        elif (
            single
            and isinstance(found, dict)
            and not _is_chat_in_rounds(found, per_line)
            and (held := _held(value, known)) is not None
        ):
            yield from map(_entry, _lines(value, held, text), held.items)
            notes.append(_note(held, found))
        else:
            yield _entry(value.line, found)


def _is_chat_in_rounds(found: Record, per_line: bool) -> bool:
    """Return whether the only object of a file is a chat of questions and answers.

    Without a key that belongs to a single chat, a list under one of the `_CHATS` that is not in
    JSON Lines contains separate records.
    """
    if not any(begins_with_round(found.get(key)) for key in _CHATS):
        return False
    return per_line or any(key in _OF_ONE_CHAT or key.endswith(("_id", "Id")) for key in found)


def _entry(line: int, value: Any) -> Entry:
    return Entry(line, as_record(value))


def as_record(value: Any) -> Record | DataError:
    """Return a value (possibly a bare list of messages) as a record, or an error."""
    if isinstance(value, DataError | dict):
        return value
    if is_turns(value):
        return {"messages" if has_roles(value[0]) else "conversations": value}
    return DataError(f"a record must be an object with named values, not {kind_of(value)}")


def _held(value: Value, known: Known) -> _Held | None:
    """Return the records in an object, or None to read the object itself as a record."""
    try:
        return _find(value.value, known, _DEPTH)
    except DataError as e:
        raise DataError(f"line {value.line}: {e}") from None


def _find(found: Record, known: Known, depth: int) -> _Held | None:
    if _is_known(found, known):
        return None
    if (rows := _split_table(found)) is not None:
        return _Held(("data",), rows)
    held = {key: rows for key, value in found.items() if (rows := _records(value)) is not None}
    good = [key for key, rows in held.items() if _is_known(as_record(rows[0]), known)]
    if "train" in good and _OTHER_SPLITS.issuperset(set(good) - {"train"}):
        good = ["train"]
    chosen = good or list(held)
    if len(chosen) > 1:
        names = ", ".join(f'"{key}"' for key in chosen)
        raise DataError(
            f"several keys contain a list of records ({shown(names, 80)}); keep only one of these "
            "lists in the file"
        )
    if chosen:
        return _Held((chosen[0],), held[chosen[0]])
    inside = {
        key: deeper
        for key, value in found.items()
        if depth and isinstance(value, dict) and (deeper := _find(value, known, depth - 1))
    }
    if "train" in inside and _OTHER_SPLITS.issuperset(set(inside) - {"train"}):
        inside = {"train": inside["train"]}
    if len(inside) == 1:
        ((key, deeper),) = inside.items()
        return _Held((key, *deeper.keys), deeper.items)
    objects = list(found.values())
    if objects and all(isinstance(o, dict) and _is_known(o, known) for o in objects):
        return _Held((), objects)  # each record is under its name
    return None


def _is_known(record: Record | DataError, known: Known) -> bool:
    """Return whether an object is a record rather than a wrapper.

    A chat is a record only if it contains messages.
    """
    if isinstance(record, DataError):
        return False
    for key in _CHATS:
        turns = record.get(key)
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict | list):
            continue
        if not is_turns(turns) and _records(turns) is not None:
            return not _is_known(as_record(turns[0]), known)
    return known(record)


def _records(value: Any) -> list[Any] | None:
    """Return a list of objects or chats, or None if `value` is not such a list.

    Rows in the format of Hugging Face's viewer are unwrapped.
    """
    if not isinstance(value, list) or not value or is_turns(value):
        return None
    if not all(isinstance(item, dict) or is_turns(item) for item in value):
        return None
    if all(isinstance(item, dict) and isinstance(item.get("row"), dict) for item in value):
        return [item["row"] for item in value]
    return value


def is_column(value: Any) -> bool:
    """Return whether a value is a table column: a list of texts, or texts keyed by row number."""
    if isinstance(value, dict):
        return bool(value) and all(map(str.isdigit, value))
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _split_table(found: Record) -> list[Record] | None:
    """Return the rows of a table written by pandas' `to_json(orient="split")`, or None."""
    names, rows = found.get("columns"), found.get("data")
    if not (isinstance(names, list) and isinstance(rows, list) and rows):
        return None
    if not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        return None
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return None
    return [dict(zip(names, row, strict=True)) for row in rows]


def _lines(value: Value, held: _Held, text: str) -> list[int]:
    """Return each record's line number, or that of `value` if the records cannot be located."""
    if value.at < 0 or len(held.keys) != 1:
        return [value.line] * len(held.items)
    at = member_at(text, value.at, held.keys[0])
    items, places, _ = list_items(text, at)
    if len(items) != len(held.items):
        return [value.line] * len(held.items)
    return line_numbers(text, places)


def _note(held: _Held, found: Record) -> str:
    if not held.keys:
        return f"read {counted(len(held.items), 'record')}, each under its own key"
    path = " in ".join(f'"{key}"' for key in reversed(held.keys))
    others = [f'"{key}"' for key in found if key != held.keys[0]]
    rest = f"; not read: {', '.join(others)}" if others else ""
    return shown(f"read {counted(len(held.items), 'record')} from {path}{rest}", 300)
