"""Read records in memory as if they had been written to a JSON Lines file.

Records can contain numpy arrays and numbers, as in the rows of a pandas table. Arrays become lists,
and the values that pandas uses for an empty cell (NaN, NA, NaT) become None.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbllama.data.wrapped import Entry, as_record
from nbllama.errors import DataError, shown

_UNCHANGED = (str, int, bool, type(None))
_MISSING = ("NAType", "NaTType")  # pandas' types; pandas itself need not be installed
_LONGEST_PATH = 4096


def entries_in_memory(records: Sequence[Mapping[str, Any] | str]) -> list[Entry]:
    """Return records in memory as entries, numbered like the lines of a file."""
    entries = []
    for number, record in enumerate(records, 1):
        try:
            entries.append(Entry(number, as_record(_record(record))))
        except DataError as e:
            entries.append(Entry(number, e))
    return entries


def _record(record: Any) -> Any:
    """Return a record in JSON form. Raises `DataError`."""
    if isinstance(record, str):
        return {"text": _text(str(record))}
    if not isinstance(record, Mapping):
        return json_form(record)
    if None in record:
        raise DataError(
            f"the key None contains {shown(record[None], 60)}; csv.DictReader returns this key if "
            "a row has more cells than the header; correct the row"
        )
    return json_form(dict(record))


def _text(text: str) -> str:
    """Return a string; raise `DataError` if it contains JSON or is the path of an existing file."""
    kept = 'if it is text to train on, pass {"text": ...}'
    if text.lstrip()[:1] in ("{", "[") and _is_json(text):
        raise DataError(
            "a string that contains JSON; convert it with json.loads, or pass the name of the "
            f"file instead of its lines; {kept}"
        )
    short = len(text) < _LONGEST_PATH and "\n" not in text and "\0" not in text
    if short and os.path.exists(text):
        raise DataError(
            f"{shown(text)} is the name of a file or a folder; pass the name itself instead of a "
            f"list (commas separate several names); {kept}"
        )
    return text


def _is_json(text: str) -> bool:
    """Return whether a string contains a JSON object or a list of JSON objects."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, dict) for item in value)
    return isinstance(value, dict)


def json_form(value: Any, *, of_array: bool = False) -> Any:
    """Convert a value to JSON form; return the same object if nothing changes.

    Objects inside an array (`of_array`) come from a table that gives all of them the same keys, so
    keys without a value are left out, as in a Parquet file. Raises `DataError` for a key that JSON
    cannot contain.
    """
    if type(value) in _UNCHANGED:
        return value
    if isinstance(value, dict):
        return _object(value, of_array)
    if isinstance(value, list):
        items = [json_form(item, of_array=of_array) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items
    if type(value) is float:
        return None if value != value else value
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind != "O":
        return value.tolist()  # only numbers or only text; fast even for long arrays
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, tensors, columns of tables
        return json_form(value.tolist(), of_array=isinstance(value, np.ndarray))
    return None if type(value).__name__ in _MISSING else value


def _object(value: dict[Any, Any], of_array: bool) -> dict[str, Any]:
    """Return an object with string keys and values in JSON form. Raises `DataError`."""
    out, same = {}, True
    for key, held in value.items():
        name = key if type(key) is str else _name(key)
        new = json_form(held, of_array=of_array)
        same = same and new is held and name is key
        if name in out:
            raise DataError(f'the key "{shown(name, 40)}" appears twice in an object')
        if new is not None or not of_array:
            out[name] = new
    return value if same and len(out) == len(value) else out


def _name(key: Any) -> str:
    """Convert a key to a string, as JSON does. Raises `DataError` if JSON cannot contain it."""
    key = json_form(key)
    if isinstance(key, str):
        return str(key)
    if isinstance(key, bool | int | float | None):
        return json.dumps(key)
    raise DataError(
        f"the key {shown(key, 60)} is of type {type(key).__name__}; use strings as keys"
    )
