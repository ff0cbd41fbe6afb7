"""Runs of the program in a test's folder, and how they end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.train.toy_runs import Done, words

Run = Callable[[list[str]], Done]


def logged(folder: Path, n_iter: int, *more: str) -> list[str]:
    """Options of a run of `n_iter` iterations with a log in `folder`/log.jsonl."""
    return words(folder, "--log", str(folder / "log.jsonl"), "--adam-iter", str(n_iter), *more)


def copy_of(folder: Path, name: str) -> Path:
    """A folder inside `folder` with the same model and text."""
    other = folder / name
    other.mkdir()
    for file in ("toy.gguf", "text.txt"):
        shutil.copy(folder / file, other)
    return other


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def refused(done: Done, code: int, *parts: str) -> str:
    """Assert one line on standard error with all `parts`, the exit code, and no more; the line."""
    assert done.code == code, done
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and "Traceback" not in done.out
    for part in parts:
        assert part in line, line
    return line
