"""Checks of the values in records, shared by all formats."""

from __future__ import annotations

import json
from typing import Any

from nbllama.data.spelled import QUOTE
from nbllama.errors import DataError, shown

Record = dict[str, Any]
_DEEPEST = 64  # levels of lists and objects


def text_of(record: Record, key: str, where: str = "", *, default: str | None = None) -> str:
    """Return the text under `key`.

    Returns `default`, if it is given, for a missing key or a null value.

    Raises `DataError` if the key is missing, or if the value is not text or contains a NUL
    character or an unpaired surrogate.
    """
    value = record.get(key)
    if value is None and default is not None:
        return default
    if key not in record:
        raise DataError(f'{where}the key "{key}" is missing')
    if not isinstance(value, str):
        raise DataError(f'{where}"{key}" must be text, not {kind_of(value)}')
    if "\0" in value:
        raise DataError(f'{where}"{key}" contains a NUL character (U+0000); remove it')
    if not value.isascii():
        check_unicode(value, f'{where}"{key}"')
    return value


def filled(value: str, what: str) -> str:
    """Return `value`, which must not be empty.

    Raises `DataError` ("`what` is empty") if `value` contains only white space.
    """
    if not value.strip():
        raise DataError(f"{what} is empty")
    return value


def check_unicode(value: str, what: str) -> None:
    """Raise `DataError` for an unpaired surrogate, which JSON can represent but UTF-8 cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(
            f"{what} must not contain an unpaired surrogate (character {e.start})"
        ) from e


def check_json(value: Any, what: str) -> None:
    """Raise `DataError` if a value cannot be written as JSON.

    It must not be nested too deeply or contain an unpaired surrogate or a number that is not
    finite.
    """
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for v in level
            if isinstance(v, dict | list)
            for part in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            break
    else:
        raise DataError(f"{what} must not be nested more than {_DEEPEST} levels deep")
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as e:
        raise DataError(f"{what} must not contain a number that is not finite; {QUOTE}") from e
    check_unicode(written, what)


def kind_of(value: object) -> str:
    """Return the JSON name for the type of a value."""
    if value is None:
        return "null"
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    known = (name for kind, name in names.items() if isinstance(value, kind))
    return next(known, f"a value of type {type(value).__name__}")


def keys_of(record: Record) -> str:
    """Return the keys of a record as text for an error message."""
    return shown(", ".join(record) or "none", 80)
