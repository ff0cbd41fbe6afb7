"""Pause Python's cyclic garbage collection while a large number of objects is created."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause cyclic garbage collection, which takes a fifth of the time needed to read a large file.

    Use this function for code that creates no cycles. It also works as a decorator.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
