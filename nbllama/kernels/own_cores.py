"""Bind each thread to its own core during a step, a batch or a token (`with own_cores():`).

When all cores are busy, Linux sometimes puts a newly woken thread on the same core as the thread
that woke it. Because the machine seems fully loaded, Linux does not look for a free core, and the
two threads share one core for seconds, each at half the speed. To prevent this, each thread is
bound to a core while the work runs, but only if there are as many threads as cores or processors.
With fewer threads, the operating system is better at choosing free cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numba import get_thread_id, prange, types

from nbllama.kernels.jit import kernel
from nbllama.kernels.threading_layer import BOUND, get_num_threads
from nbllama.kernels.turns import LOCK

LINUX = sys.platform == "linux"

if LINUX:
    _bind_me = types.ExternalFunction(
        "sched_setaffinity", types.int32(types.int32, types.uintp, types.voidptr)
    )

    @kernel(parallel=True)
    def _bind(masks):
        """Bind thread i to the processors whose bits are set in row i of `masks`.

        `masks` is uint64 `[threads, words]`.
        """
        for _ in prange(masks.shape[0]):
            mask = masks[get_thread_id()]
            _bind_me(0, 8 * mask.size, mask.ctypes)


@cache
def _core_of(processor: int) -> str:
    """Return Linux's list of the processors on the same core as `processor`, such as "0,4".

    If Linux does not provide such a list, return only `processor`.
    """
    place = f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    try:
        return Path(place).read_text().strip()
    except OSError:
        return str(processor)


def _masks(places: list[list[int]]) -> np.ndarray:
    """Return uint64 `[len(places), words]`; row i has a bit set for each processor in list i."""
    masks = np.zeros((len(places), max(map(max, places)) // 64 + 1), np.uint64)
    for i, place in enumerate(places):
        for p in place:
            masks[i, p // 64] |= np.uint64(1 << p % 64)
    return masks


@cache
def _cores(processors: frozenset[int], threads: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return masks that bind each thread to its own core or processor, and masks that unbind them.

    Returns None if there is only one thread, or if the number of threads equals neither the number
    of cores nor the number of processors.
    """
    by_core: dict[str, list[int]] = {}
    for p in sorted(processors):
        by_core.setdefault(_core_of(p), []).append(p)
    places = list(by_core.values())
    if threads == len(processors):
        places = [[p] for p in sorted(processors)]
    if threads != len(places) or threads == 1:
        return None
    return _masks(places), _masks([sorted(processors)] * threads)


@contextmanager
def own_cores() -> Iterator[None]:
    """Bind each of Numba's threads, including this thread, to a core while the `with` block runs.

    Programs and threads that this thread starts inside the block run on the same core as this
    thread. Another Python thread that enters such a block waits until this block ends.
    """
    with LOCK:
        masks, allowed = None, frozenset[int]()
        if LINUX:
            allowed = frozenset(os.sched_getaffinity(0))
            masks = _cores(allowed, get_num_threads())
        if masks is None:
            yield
            return
        own, every = masks
        _bind(own)
        BOUND.processors = allowed
        try:
            yield
        finally:
            BOUND.processors = None
            _bind(every)
