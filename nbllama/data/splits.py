"""A folder with the files of a training: `train.jsonl`, and perhaps `valid.jsonl`, `test.jsonl`.

That is the layout of mlx-lm. The endings of the other formats of files will do as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from nbllama.errors import DataError, shown

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt")


class Splits(NamedTuple):
    """The files of a training set; None where there is none."""

    train: str
    valid: str | None = None
    test: str | None = None


def find_splits(path: str | os.PathLike[str]) -> Splits:
    """The files that `path` stands for: itself, or those of a folder.

    Raises `DataError` for a folder without a training file, or with two files of one split.
    """
    if not os.path.isdir(path):
        return Splits(os.fspath(path))
    train, valid, test = (_file(Path(path), name) for name in ("train", "valid", "test"))
    if train is None:
        raise DataError(f"the folder {shown(os.fspath(path))} has no train.jsonl")
    return Splits(train, valid, test)


def _file(folder: Path, name: str) -> str | None:
    found = [folder / (name + ending) for ending in ENDINGS]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"the folder {shown(folder)} has {names}: which one is it?")
    return str(found[0]) if found else None
