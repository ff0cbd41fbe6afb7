"""`Dump`, which maps names to arrays, and functions that store a dump in an `.npz` file.

The file is an ordinary numpy archive, which `numpy.load` can open. Besides the arrays, it contains
`__about__`, a JSON string that records, for example, the model and the iteration.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nbllama.errors import GGUFError, UsageError, shown
from nbllama.peek.names import Patterns, aliases
from nbllama.peek.tables import table
from nbllama.system.files import atomic_write
from nbllama.system.regular import first_bytes
from nbllama.system.replaced import NPZ, check_kind

ABOUT = "__about__"
MOST_BYTES = 1 << 34  # limit on the total size of an archive's arrays
_DTYPES = "fiub"
Path = str | os.PathLike[str]


class Dump(Mapping[str, np.ndarray]):
    """A mapping from names to arrays; finetune.cpp's numbers can also be used as names."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray] | None = None, about: dict[str, Any] | None = None
    ) -> None:
        self.arrays: dict[str, np.ndarray] = dict(arrays or {})
        self.about = about or {}

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the array with this name. Raises `KeyError`."""
        if name in self.arrays:
            return self.arrays[name]
        for stored in self.arrays:
            if name in aliases(stored):
                return self.arrays[stored]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def matching(self, *patterns: str) -> Dump:
        """Return the arrays that match a pattern. Raises `UsageError` for an unused pattern."""
        if not patterns:
            return self
        wanted = Patterns(patterns)
        if unused := wanted.unused(self.arrays):
            raise UsageError(f"no array name matches {shown(unused[0])}")
        return Dump({k: v for k, v in self.arrays.items() if wanted(k)}, self.about)

    def table(self, *patterns: str) -> str:
        """Return names, shapes and statistics as text."""
        return table(self.matching(*patterns))

    def save(self, path: Path) -> None:
        """Write an `.npz` file atomically.

        Raises `OutputError` if the file cannot be written or is a file of another kind.
        """
        check_kind(os.fspath(path), NPZ)
        text = np.array(json.dumps(self.about, sort_keys=True))
        with atomic_write(path) as file:
            # the type stubs treat these keyword arguments as options of np.savez
            np.savez(file, **{ABOUT: text}, **self.arrays)  # type: ignore[arg-type]


def is_dump(path: Path) -> bool:
    """Return whether a file begins with the signature of a zip archive, as `.npz` files do."""
    try:
        return first_bytes(path, 4) == b"PK\x03\x04"
    except OSError:
        return False


def load(path: Path) -> Dump:
    """Read an `.npz` file of numeric arrays, which need not have been written by nbllama.

    Raises `GGUFError` if the file is damaged or compressed or contains Python objects, or if
    the total size that it specifies for its arrays exceeds the file size or `MOST_BYTES`.
    """
    name = shown(os.fspath(path), 400)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise GGUFError(f"{name}: {shown(member.filename)} is compressed; use np.savez")
            total = sum(member.file_size for member in archive.infolist())
        if total > min(MOST_BYTES, os.path.getsize(path)):
            raise GGUFError(f"{name}: its {total} bytes of arrays exceed the file size or limit")
        with np.load(path, allow_pickle=False) as npz:
            arrays = {key: npz[key] for key in npz.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as e:
        raise GGUFError(f"{name}: not a readable .npz file: {shown(e, 200)}") from e
    about = _about(arrays.pop(ABOUT, None))
    odd = [key for key, x in arrays.items() if x.dtype.kind not in _DTYPES]
    if odd:
        raise GGUFError(f"{name}: {shown(odd[0])} is not an array of numbers")
    return Dump(arrays, about)


def _about(text: np.ndarray | None) -> dict[str, Any]:
    if text is None or text.dtype.kind != "U" or text.size != 1:
        return {}
    try:
        about = json.loads(str(text))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
