"""Read JSON that a record contains as text, such as the arguments of a tool call."""

from __future__ import annotations

import json
from typing import Any

from nbllama.data.json_values import once, reason_for
from nbllama.data.spelled import spelled, spelled_integer
from nbllama.errors import DataError


def value_of(text: str, what: str) -> Any:
    """Parse a JSON text.

    Raises `DataError`, with a message that begins with `what`, if the text is not JSON, has a
    duplicate key in an object, or contains NaN or Infinity.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{what}: {reason_for(e, column=True)}") from e


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=once, parse_constant=_refuse, parse_float=spelled, parse_int=spelled_integer
)
