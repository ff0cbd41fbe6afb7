"""The file names of a split model (NAME-00001-of-00005.gguf and so on)."""

from __future__ import annotations

import os
import re

_PART = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def part_name(prefix: str, number: int, count: int) -> str:
    """Return the name of part `number` (from 1) of `count`, in llama.cpp's form."""
    return f"{prefix}-{number:05}-of-{count:05}.gguf"


def part_of(path: str) -> tuple[str, int, int] | None:
    """Return (prefix, number, count) for the name of a part, or None for any other name."""
    found = _PART.fullmatch(path)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return None
    return found["prefix"], int(found["number"]), int(found["count"])


def part_names(path: str) -> list[str]:
    """Return the names of all parts if `path` is a part, otherwise an empty list."""
    found = part_of(path)
    if found is None:
        return []
    prefix, _, count = found
    return [part_name(prefix, number, count) for number in range(1, count + 1)]


def files_of(path: str) -> list[str]:
    """Return `path` and the other existing parts of the same model."""
    return [path, *(name for name in part_names(path) if name != path and os.path.exists(name))]
