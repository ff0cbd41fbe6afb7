"""Calls from several Python threads take turns.

Kernels write to scratch memory that belongs to the package, draw their tasks from shared counters,
and one of Numba's threading layers aborts the process when two threads start kernels at once. So
there is one lock. Every parallel kernel holds it (`nbllama.kernels.jit`), every function that uses
scratch holds it until its result is copied out, and a pass of the model holds it from its first
kernel to its last (`nbllama.kernels.own_cores`). A thread that holds the lock may take it again.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from nbllama.errors import NbllamaError

P = ParamSpec("P")
R = TypeVar("R")

LOCK = threading.RLock()
_of_objects: weakref.WeakSet[Any] = weakref.WeakSet()

_AFTER_FORK = (
    "this process was forked after kernels had run in its parent, whose threads it does not have:"
    " use the spawn start method, multiprocessing.get_context('spawn')"
)


class _Fork:
    """`refused`: in a child of a process whose threads did not survive the fork."""

    refused = False


FORK = _Fork()


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Let only one thread at a time be inside of functions with this decorator."""

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with LOCK:
            return function(*args, **kwargs)

    return alone


def new_turn() -> Any:
    """Return an RLock for `one_at_a_time`, free in a forked child whoever held it."""
    lock = threading.RLock()
    _of_objects.add(lock)
    return lock


def one_at_a_time(method: Callable[P, R]) -> Callable[P, R]:
    """Let only one thread at a time be inside of the decorated methods of one object.

    Also for functions whose first argument is an object. The object has a `turn` (`new_turn`).
    Other objects have their turns in between.
    """

    @wraps(method)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with args[0].turn:  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return alone


def refuse() -> NoReturn:
    """For a process in which `FORK.refused`."""
    raise NbllamaError(_AFTER_FORK)


def on_fork(threads_are_lost: Callable[[], bool]) -> None:
    """From now on a forked child asks `threads_are_lost`, and refuses kernels if they are."""

    def in_child() -> None:
        FORK.refused = FORK.refused or threads_are_lost()

    _in_child(in_child)


def _free_locks() -> None:
    """In a forked child, which has no thread but the one that forked."""
    for lock in (LOCK, *_of_objects):
        lock._at_fork_reinit()


def _in_child(function: Callable[[], None]) -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


_in_child(_free_locks)
