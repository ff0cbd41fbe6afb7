"""Find the files of `--train-data`, which can be a file, a list, a pattern or a folder.

A folder can use the layout of mlx-lm: `train.jsonl` and, optionally, `valid.jsonl` and
`test.jsonl`. These files can also have other formats, or be split into numbered parts as written by
Hugging Face. Without this layout, all data files in the folder are read.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nbllama.errors import DataError, counted, shown

PACKED = (".gz", ".zst")
RECORD_ENDINGS = (
    ".jsonl", ".json", ".ndjson", ".jsonlines", ".jl", ".csv", ".tsv", ".parquet",
)  # fmt: skip
TEXT_ENDINGS = (".txt", ".text", ".md")
MAX_FILES = 100_000

_PART = r"(?:[-_.]\d+(?:-of-\d+)?)?(?:-[0-9a-f]{16})?"  # for the numbered parts of one split
_SPLITS = {"train": "train", "valid": "valid|validation|val|dev", "test": "test"}


class Splits(NamedTuple):
    """The paths of the splits of a data set (see `data_files`), or None for a missing split.

    `note` is a message to the user about data files in the folder that are not read, or "".
    """

    train: str
    valid: str | None = None
    test: str | None = None
    note: str = ""


class Chosen(NamedTuple):
    """The files to read, and messages to the user about how they were chosen."""

    files: list[str]
    notes: list[str]


def find_splits(path: str | os.PathLike[str]) -> Splits:
    """Return the splits of `path`: `path` itself, or `train`, `valid` and `test` in a folder.

    Raises `DataError` if a folder contains two files for one split, or validation data but no
    training data.
    """
    name = os.fspath(path)
    if not os.path.isdir(name):
        return Splits(name)
    for folder in (name, os.path.join(name, "data")):
        found = {split: _split(folder, split) for split in _SPLITS}
        if found["train"] is not None:
            return Splits(found["train"], found["valid"], found["test"], _left_out(folder))
        if other := found["valid"] or found["test"]:
            raise DataError(
                f"the folder {shown(name)} contains {shown(os.path.basename(other))}, but no "
                "train.jsonl"
            )
    return Splits(name)


def _left_out(folder: str) -> str:
    """Return a message about the data files in a folder that belong to no split, or ""."""
    names = [n for n in sorted(os.listdir(folder)) if ending(n) in RECORD_ENDINGS + TEXT_ENDINGS]
    used = {n for split in _SPLITS for n in _of_split(names, split)}
    names = [n for n in names if n not in used and not is_hidden(n)]
    return _ignoring(f"the folder {shown(folder, 400)}", names)


def input_files(path: str | os.PathLike[str]) -> list[str]:
    """Return the files of all splits of `path`, or an empty list if `path` is refused."""
    try:
        parts = [part for part in find_splits(path)[:3] if part is not None]
        return [file for part in parts for file in data_files(part).files]
    except DataError:
        return []


def _split(folder: str, split: str) -> str | None:
    """Return the file of a split, or a pattern for its numbered parts."""
    if not os.path.isdir(folder):
        return None
    names = _of_split(sorted(os.listdir(folder)), split)
    names = [n for n in names if os.path.isfile(os.path.join(folder, n))]
    if not names:
        return None
    if len(names) == 1:
        return os.path.normpath(os.path.join(folder, names[0]))
    # the file names, with a pattern in place of the number
    frames = {re.sub(r"[-_.]\d[^.]*", "[-_.][0-9]*", n, count=1) for n in names}
    if len(frames) > 1 or frames == {names[0]}:
        listed = " and ".join(names[:3])
        raise DataError(
            f"the folder {shown(folder)} contains {shown(listed)}; pass the name of the data file"
        )
    return os.path.normpath(os.path.join(glob.escape(folder), frames.pop()))


def _of_split(names: Sequence[str], split: str) -> list[str]:
    endings = "|".join(re.escape(e) for e in RECORD_ENDINGS + TEXT_ENDINGS)
    packed = "|".join(re.escape(e) for e in PACKED)
    shape = re.compile(rf"(?:{_SPLITS[split]}){_PART}(?:{endings})(?:{packed})?", re.I)
    return [n for n in names if shape.fullmatch(n)]


def data_files(path: str | os.PathLike[str]) -> Chosen:
    """Return the files that `path` refers to.

    `path` is a file, a folder, a pattern (`*`, `?`, `[...]`), or a comma-separated list of these.
    The name of an existing file is never treated as a pattern. Raises `DataError` for a folder
    without data, a pattern that matches nothing, or a list containing a name that does not exist.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return _folder(name)
    if os.path.lexists(name) or not (glob.has_magic(name) or "," in name):
        return Chosen([name], [])
    if glob.has_magic(name) and (found := sorted(glob.glob(name, recursive=True))):
        return _joined(found)
    if "," not in name:
        raise DataError(f"no file matches the pattern {shown(name, 400)}")
    parts = [part.strip() for part in name.split(",")]
    parts = [part for part in parts if part]
    for part in parts:
        if not os.path.lexists(part) and not glob.has_magic(part):
            raise DataError(f"cannot read training data {shown(part, 400)}: no such file or folder")
    return _joined(parts)


def _joined(parts: Sequence[str]) -> Chosen:
    files: list[str] = []
    notes: list[str] = []
    for part in parts:
        found = data_files(part)
        files += found.files
        notes += found.notes
    twice = len(files) - len(dict.fromkeys(map(os.path.realpath, files)))
    if twice:
        repeated = counted(twice, "duplicate file")
        notes.append(f"the list contains {repeated}; duplicates are read again")
    return Chosen(files, notes)


def _folder(folder: str) -> Chosen:
    names = list(_walk(folder))
    chosen = choose(f"the folder {shown(folder, 400)}", names)
    return Chosen([os.path.join(folder, n) for n in chosen.files], chosen.notes)


def _walk(folder: str) -> Iterator[str]:
    """Yield the names of all non-hidden files below a folder, relative to the folder."""
    count = 0
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not is_hidden(f))
        for file in sorted(files):
            if is_hidden(file):
                continue
            count += 1
            if count > MAX_FILES:
                raise DataError(f"{shown(folder, 400)} contains more than {MAX_FILES} files")
            yield os.path.relpath(os.path.join(here, file), folder)


def choose(where: str, names: Sequence[str]) -> Chosen:
    """Choose the data files in a folder or archive.

    All record files are chosen, or all text files if there are no record files. If there is a
    `train` split, only its files are chosen.

    Raises `DataError` if there are no data files.
    """
    names = sorted(names)
    records = [n for n in names if says_records(n)]
    texts = [n for n in names if n.lower().endswith(TEXT_ENDINGS) or ending(n) in TEXT_ENDINGS]
    files = records or texts
    by_base = {os.path.basename(n) for n in files}
    train = set(_of_split(sorted(by_base), "train"))
    others = set(_of_split(sorted(by_base), "valid")) | set(_of_split(sorted(by_base), "test"))
    if train:
        files = [n for n in files if os.path.basename(n) in train]
    elif others:
        raise DataError(f"{where} contains {shown(sorted(others)[0])}, but no train.jsonl")
    if not files:
        endings = " ".join(RECORD_ENDINGS + TEXT_ENDINGS)
        raise DataError(
            f"{where} contains no data: no train.jsonl and no file that ends in {endings}"
        )
    left_out = _ignoring(where, [n for n in names if n not in set(files)])
    notes = [f"{where}: reading {len(files)} files"] if len(files) > 1 else []
    return Chosen(files, [*notes, left_out] if left_out else notes)


def _ignoring(where: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{where}: ignoring {counted(len(names), 'file')}: {shown(listed, 200)}"


def is_hidden(name: str) -> bool:
    """Return whether a path is hidden (`.git`, `__MACOSX`)."""
    parts = name.replace("\\", "/").split("/")
    return any((p.startswith(".") and p not in (".", "..")) or p == "__MACOSX" for p in parts)


def says_records(name: str) -> bool:
    """Return whether the extension of a file name indicates records."""
    return ending(name) in RECORD_ENDINGS


def ending(name: str) -> str:
    """Return the extension of a name in lower case, ignoring any compression extension."""
    base = os.path.basename(name).lower()
    for packed in PACKED:
        base = base.removesuffix(packed)
    return os.path.splitext(base)[1]
