"""How many threads compute: the machine's physical cores, unless the user says otherwise."""

from __future__ import annotations

import os
import sys


def physical_cores() -> int:
    """Count the physical cores that this process may use.

    Never more than its CPU affinity and the quota of its control group (a container's limit) allow.
    """
    import psutil

    from nbllama.system.quota import processor_quota

    count = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(count, processors(), processor_quota() or count))


def processors() -> int:
    """Logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(threads: int | None) -> int:
    """Compute with so many threads (physical cores for None), whether Numba is imported or not.

    Never more than there are processors: the threads would only wait for each other. Returns their
    number.
    """
    threads = min(threads or physical_cores(), processors())
    if "numba" not in sys.modules:
        os.environ["NUMBA_NUM_THREADS"] = str(max(threads, os.cpu_count() or 1))
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # Where colorama is installed, Numba would have it write to the terminal at the end.
        os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    import numba

    from nbllama.kernels.threading_layer import launch

    launch()
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads
