"""The names of numbered checkpoints and adapters, and the removal of old ones (`--keep-last`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from nbllama.checkpoint.file import verify
from nbllama.errors import GGUFError, OutputError, UsageError, shown
from nbllama.gguf_io import open_gguf

PLACEHOLDER, LATEST = "ITERATION", "LATEST"


def output_name(pattern: str, stamp: int | str, mark: str = PLACEHOLDER) -> str:
    """Return `pattern` with the first `mark` replaced by `stamp`, which is a number or `LATEST`."""
    return pattern.replace(mark, str(stamp), 1)


def prune(
    pattern: str, keep_last: int, iteration: int, *, mark: str = PLACEHOLDER, after: int = -1
) -> list[str]:
    """Remove checkpoints whose names match `pattern`, except the newest `keep_last` (0 keeps all).

    Only numbers above `after` and up to `iteration` are considered; files with higher numbers were
    not written by this run. Only valid checkpoints are counted and removed, and LATEST is never
    touched. Returns the names of the removed files.

    Raises `UsageError` if the folder name contains `mark`, and `OutputError` if a file cannot be
    removed.
    """
    valid, removed = 0, []
    for name in _numbered(pattern, keep_last, (after, iteration), mark):
        try:
            with open_gguf(name) as f:
                verify(f)
        except GGUFError:
            continue
        valid += 1
        if valid > keep_last:
            _remove(name)
            removed.append(name)
    return removed


def prune_adapters(
    pattern: str, keep_last: int, iteration: int, *, mark: str, after: int, inside: Iterable[str]
) -> None:
    """Remove adapters whose names match `pattern`, except the newest `keep_last` (0 keeps all).

    Adapters are files or PEFT folders. In a folder, the files named in `inside` are removed. The
    folder itself is then removed if it is empty.

    Raises the same errors as `prune`.
    """
    for name in _numbered(pattern, keep_last, (after, iteration), mark)[keep_last:]:
        if not os.path.isdir(name):
            _remove(name)
            continue
        for file in inside:
            if os.path.exists(path := os.path.join(name, file)):
                _remove(path)
        if not os.listdir(name):
            os.rmdir(name)


def _numbered(pattern: str, keep_last: int, within: tuple[int, int], mark: str) -> list[str]:
    """List the names whose numbers are in `within`, newest first, or return [] if all are kept."""
    low, high = within
    folder, base = os.path.split(pattern)
    if mark in folder and keep_last:
        raise UsageError(f"--keep-last requires {mark} in the file name, not in a folder name")
    before, found, after = base.partition(mark)
    if not keep_last or not found:
        return []
    shape = re.compile(rf"{re.escape(before)}(0|[1-9][0-9]{{0,18}}){re.escape(after)}")
    matches = [m for m in map(shape.fullmatch, os.listdir(folder or os.curdir)) if m]
    numbers = sorted((n for m in matches if low < (n := int(m[1])) <= high), reverse=True)
    return [output_name(pattern, number, mark) for number in numbers]


def _remove(name: str) -> None:
    try:
        os.unlink(name)
    except OSError as e:
        raise OutputError(f"{shown(name, 400)}: cannot be removed: {e.strerror}") from e
