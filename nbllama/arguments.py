"""Check the arguments of public functions; errors name the argument and say what to pass.

Each function returns the value in the form that the rest of the package uses, and raises
`ArgumentError` or `UsageError` for any other value.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from nbllama.errors import ArgumentError, NotEnoughMemory, UsageError, shown

MOST = 2**31 - 1  # the largest whole number that options accept
_PASS_IDS = "pass integers, such as those that model.tokenizer.encode(text) returns"
_TINY, _HUGE = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def instance(name: str, value: object, kind: type | tuple[type, ...], advice: str) -> None:
    """Raise `UsageError` unless `value` is of the type `kind`; `advice` says what to pass."""
    if not isinstance(value, kind):
        raise UsageError(f"{name}: {described(value)} is not allowed; {advice}")


def described(value: object) -> str:
    """Return a value for an error message: text and numbers as written, anything else by type."""
    if isinstance(value, str):
        return f"the text '{shown(value, 60)}'"
    if value is None or isinstance(value, bool | int | float | np.generic):
        return f"'{shown(value, 60)}'"
    return f"a value of type {type(value).__name__}"


def file_name(name: str, value: Any) -> str:
    """Return a path as text."""
    instance(name, value, (str, os.PathLike), "pass the name of a file")
    path = os.fspath(value)
    instance(name, path, str, "pass the name of a file as a string")
    return str(path)


def whole(name: str, value: Any, low: int, high: int = MOST) -> int:
    """Return an integer from `low` to `high`; numpy's integers are accepted."""
    with suppress(TypeError):  # for a value that is not an integer
        if not isinstance(value, bool | np.bool_) and low <= operator.index(value) <= high:
            return operator.index(value)
    raise ArgumentError(
        f"{name}: {described(value)} is not allowed; use a whole number from {low} to {high}"
    )


def positive(name: str, value: Any) -> float:
    """Return a number above 0 that is normal in float32, which all computations use."""
    with suppress(TypeError, ValueError):  # for a value that is not a number
        if not isinstance(value, bool | np.bool_ | str) and _TINY <= value <= _HUGE:
            return float(value)
    raise ArgumentError(
        f"{name}: {described(value)} is not allowed; use a number above 0 in the range of float32"
    )


def token_ids(name: str, ids: Any) -> np.ndarray:
    """Return token ids as int64 `[N]`; N can be 0.

    Ids outside the vocabulary are not checked, but numbers that are not whole are refused.
    """
    try:
        values = np.asarray(ids)
    except (TypeError, ValueError):  # lists of different lengths, for example
        values = np.asarray(None)
    if values.ndim == 1 and not len(values):
        return np.empty(0, np.int64)
    if values.ndim != 1:
        raise ArgumentError(f"{name}: {described(ids)} is not a list of token ids; {_PASS_IDS}")
    if values.dtype.kind not in "iu" or values.dtype == np.uint64:
        for number, value in enumerate(ids, 1):
            if not _is_id(value):
                raise ArgumentError(
                    f"{name}, item {number}: {described(value)} is not a token id; {_PASS_IDS}"
                )
    return values.astype(np.int64)


def _is_id(value: Any) -> bool:
    with suppress(TypeError):
        return not isinstance(value, bool | np.bool_) and -1 <= operator.index(value) <= MOST
    return False


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """Convert a failed allocation inside the context to `NotEnoughMemory`.

    `what` names what needs the memory, and `advice` says what to pass instead.
    """
    try:
        yield
    except MemoryError as e:
        raise NotEnoughMemory(f"{what}: not enough memory; {advice}") from e
