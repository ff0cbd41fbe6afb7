"""Choose the number of compute threads, which defaults to the number of physical cores."""

from __future__ import annotations

import os
import sys


def physical_cores() -> int:
    """Return the number of physical cores that this process may use.

    The count respects the process's CPU affinity and the CPU quota of its control group (cgroup),
    which is how containers are limited.
    """
    import psutil

    from nbllama.system.quota import processor_quota

    count = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(count, processors(), processor_quota() or count))


def processors() -> int:
    """Return the number of logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(threads: int | None) -> int:
    """Set the number of compute threads; None means one per physical core.

    This function can be called before or after Numba is imported. It never uses more threads than
    processors, because the extra threads would only wait for each other. Returns the number of
    threads in use.
    """
    threads = min(threads or physical_cores(), processors())
    if "numba" not in sys.modules:
        os.environ["NUMBA_NUM_THREADS"] = str(max(threads, os.cpu_count() or 1))
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # If colorama is installed, Numba makes it write to the terminal at exit.
        os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    import numba

    from nbllama.kernels.threading_layer import launch

    launch()
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads
