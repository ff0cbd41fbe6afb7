"""The processor quota that a container sets for this process, read from its control groups."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nbllama.system import memory


def processor_quota() -> int | None:
    """Return the smallest quota in processors (at least 1), or None if there is no quota."""
    return min((max(1, math.ceil(quota / period)) for quota, period in _quotas()), default=None)


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield (quota, period), in microseconds, for this process's Linux control groups and parents.

    Groups without a quota are skipped. Control groups of versions 1 and 2 are supported.
    """
    for line in memory.read(memory.PROC_CGROUP).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for n in range(len(parts), -1, -1):
            if kinds:
                folder = "/".join([memory.SYS_CGROUP, "cpu", *parts[:n]])
                words = [memory.read(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                folder = "/".join([memory.SYS_CGROUP, *parts[:n]])
                words = memory.read(f"{folder}/cpu.max").split()
            if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
                yield int(words[0]), int(words[1])
