"""Read a model that llama.cpp's `gguf-split` has split into several files, as if it were one file.

The first part contains the metadata; the other parts contain only `split.no` (from 0),
`split.count`, `split.tensors.count`, and their tensors. The file name contains the number of the
part. All of these are checked before any tensor is read, because it is easy to mix up the parts of
two models in a folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from nbllama.errors import shown
from nbllama.gguf_io.file import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT
from nbllama.gguf_io.reader import open_one
from nbllama.system.part_names import part_name, part_of

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_MOST = 99_999  # part numbers have five digits


class PartsFile(GGUFFile):
    """All parts as one file, with the metadata of the first part and the tensors of all parts.

    `path` is the path of the first part, which llama.cpp requires; `size` is the total size. The
    `offset` of a tensor is relative to its part.
    """

    def __init__(self, parts: Sequence[GGUFFile]) -> None:
        """Join `parts`, which must be checked and in order; `close` closes them."""
        first = parts[0]
        self._parts = tuple(parts)
        self._part_of = {name: part for part in parts for name in part.tensors}
        self.path, self.paths = first.path, tuple(part.path for part in parts)
        self.size = sum(part.size for part in parts)
        self.version, self.alignment = first.version, first.alignment
        split_keys = (NUMBER, COUNT, TENSORS)
        self.metadata = {key: v for key, v in first.metadata.items() if key not in split_keys}
        self._types = first._types
        self.tensors = {name: info for part in parts for name, info in part.tensors.items()}

    def data(self, name: str) -> np.ndarray:
        """Return the tensor's bytes, like `GGUFFile.data`."""
        return self._part_of.get(name, self._parts[0]).data(name)

    def recheck(self) -> None:
        """Raise `GGUFError` if any part has changed since it was opened."""
        for part in self._parts:
            part.recheck()

    def close(self) -> None:
        """Close all parts."""
        for part in self._parts:
            part.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open `path` and check its header; if the file is one part of a model, open all parts.

    Raises `GGUFError` with one line that says what is wrong and where. Parts that are missing or
    do not match are also errors. Reading any header takes less than a second and 200 MB.
    """
    given = open_one(path)
    if COUNT not in given.metadata:
        return given
    opened = [given]
    try:
        count = given.count(COUNT, 1 << 16)
        return given if count < 2 else PartsFile(_all_parts(given, count, opened))
    except BaseException:
        for f in opened:
            f.close()
        raise


def _all_parts(given: GGUFFile, count: int, opened: list[GGUFFile]) -> list[GGUFFile]:
    """Return all parts in order, after checking that they match; add new files to `opened`."""
    number = given.count(NUMBER, 1 << 16) + 1
    one = f"one of {count} parts of a split model"
    if count > _MOST or not 1 <= number <= count:
        raise given.error(f"key '{NUMBER}'", f"{number - 1}, but '{COUNT}' is {count}")
    named = part_of(given.path)
    if named is None:
        wanted = part_name("NAME", number, count)
        raise given.error(
            "file", f"{one}; rename it to {wanted} so that the other parts can be found"
        )
    prefix = named[0]
    if named[1:] != (number, count):
        problem = (
            f"its name says part {named[1]} of {named[2]}, but its keys say {number} of {count}"
        )
        raise given.error("file", problem)
    names = [part_name(prefix, i, count) for i in range(1, count + 1)]
    missing = [i for i, name in enumerate(names, 1) if not os.path.exists(name)]
    if missing:
        which = ", ".join(map(str, missing[:9])) + (", ..." if len(missing) > 9 else "")
        are = "parts {} are" if len(missing) > 1 else "part {} is"
        absent = shown(names[missing[0] - 1], 400)
        raise given.error("file", f"{one}; {are.format(which)} missing: {absent} does not exist")
    parts = []
    for i, name in enumerate(names, 1):
        parts.append(given if i == number else open_one(name))
        if parts[-1] is not given:
            opened.append(parts[-1])
        _check_belongs(parts[-1], i, count, given)
    _check_tensors(parts, given.count(TENSORS, MAX_COUNT))
    return parts


def _check_belongs(part: GGUFFile, number: int, count: int, given: GGUFFile) -> None:
    """Raise `GGUFError` unless the keys of `part` identify it as part `number`."""
    theirs = tuple(part.count(key, MAX_COUNT, default=None) for key in (NUMBER, COUNT, TENSORS))
    if theirs != (number - 1, count, given.count(TENSORS, MAX_COUNT)):
        raise part.error(
            "file",
            f"is not part of the same model as {shown(os.path.basename(given.path))}: "
            f"'{NUMBER}', '{COUNT}', '{TENSORS}' are {theirs[0]}, {theirs[1]}, {theirs[2]}, not "
            f"{number - 1}, {count}, {given.get(TENSORS, 'uint')}",
        )


def _check_tensors(parts: Sequence[GGUFFile], wanted: int) -> None:
    """Raise `GGUFError` for a tensor in two parts, or for a wrong number of tensors."""
    where: dict[str, GGUFFile] = {}
    for part in parts:
        for name in part.tensors:
            if name in where:
                raise part.error(
                    f"tensor '{shown(name)}'",
                    f"is also in {shown(os.path.basename(where[name].path))}",
                )
            where[name] = part
    if len(where) != wanted:
        raise parts[0].error("file", f"its parts contain {len(where)} tensors, expected {wanted}")
