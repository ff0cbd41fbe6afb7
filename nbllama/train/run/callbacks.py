"""Check the functions and the screen that a Python caller passes to a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from nbllama.arguments import described
from nbllama.errors import UsageError

_SCREEN = ("note", "header", "compiling", "step", "evaluation", "close")


def callback(name: str, function: Callable[[Any], object] | None) -> Callable[[Any], bool] | None:
    """Return a function that calls `function` and returns whether to end the run.

    numpy's True also ends the run. Any function can be a callback: a result of another type, such
    as the number of characters that `write` returns, does not end the run, but causes a single
    warning. Raises `UsageError` if `function` is not callable.
    """
    if function is None:
        return None
    if not callable(function):
        raise UsageError(f"{name}: {described(function)} is not allowed; pass a function")
    warned = False

    def ends(record: Any) -> bool:
        nonlocal warned
        result = function(record)
        if result is None or isinstance(result, bool | np.bool_):
            return bool(result)
        if not warned:
            warned = True
            warnings.warn(
                f"{name} returned {described(result)}, which does not end the run; return True to "
                "end it, or None to continue",
                stacklevel=2,
            )
        return False

    return ends


def check_screen(screen: object) -> None:
    """Raise `UsageError` unless `screen` has the methods of a `Screen`."""
    missing = [name for name in _SCREEN if not callable(getattr(screen, name, None))]
    if missing:
        raise UsageError(
            f"screen: a value of type {type(screen).__name__} is not allowed; pass an object with "
            f"the methods of nbllama.train.run.screen.Screen (missing: {', '.join(missing)})"
        )
