"""The memory of this process and of the machine in bytes, as reported by the system."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import psutil


def mapped(*paths: str | os.PathLike[str]) -> int:
    """Return how many bytes of these mapped files are in memory, or 0 if this is unknown."""
    try:
        maps = psutil.Process().memory_maps()
    except (AttributeError, OSError, psutil.Error):
        return 0
    names = {os.path.realpath(path) for path in paths}
    return sum(int(m.rss) for m in maps if m.path in names)


def resident() -> int:
    """Return the resident size of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """Return the peak resident size of this process in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # not ru_maxrss, because a child process inherits the peak of its parent
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_memory() -> int:
    """Return how many bytes this process can still allocate.

    The result is limited by the system's available memory and the limits of the control groups.
    """
    available = int(psutil.virtual_memory().available)
    for limit, used in _control_groups():
        available = min(available, max(0, limit - used))
    return available


PROC_CGROUP, SYS_CGROUP = "/proc/self/cgroup", "/sys/fs/cgroup"
_V1, _V2 = ("limit_in_bytes", "usage_in_bytes"), ("max", "current")


def _control_groups() -> Iterator[tuple[int, int]]:
    """Yield (limit, used) in bytes for this process's Linux control groups and their parents.

    Control groups of versions 1 and 2 are supported. `used` does not include file pages, which the
    kernel can drop.
    """
    for line in read(PROC_CGROUP).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, names = (f"{SYS_CGROUP}/memory", _V1) if kinds else (SYS_CGROUP, _V2)
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for n in range(len(parts), -1, -1):
            folder = "/".join([root, *parts[:n], "memory."])
            limit, used = (read(folder + name) for name in names)
            if limit.isdigit() and used.isdigit():
                rows = (row.split() for row in read(folder + "stat").splitlines())
                stat = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
                total = "total_" if kinds else ""
                files = sum(stat.get(f"{total}{kind}_file", 0) for kind in ("active", "inactive"))
                yield int(limit), int(used) - files


def read(path: str) -> str:
    """Read a system file; return "" if it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
