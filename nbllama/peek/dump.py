"""Arrays by name with what is known of where they are from, and their `.npz` files.

A dump is an ordinary numpy archive: `numpy.load` opens it. Beside the arrays it holds `__about__`,
a text with the model, the iteration and so on as JSON.
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

ABOUT = "__about__"
MOST_BYTES = 1 << 34  # of an archive's arrays together
_DTYPES = "fiub"
Path = str | os.PathLike[str]


class Dump(Mapping[str, np.ndarray]):
    """A mapping from names to arrays; finetune.cpp's numbers are found, too."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray] | None = None, about: dict[str, Any] | None = None
    ) -> None:
        self.arrays: dict[str, np.ndarray] = dict(arrays or {})
        self.about = about or {}

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the array of this name. Raises `KeyError`."""
        if name in self.arrays:
            return self.arrays[name]
        for own in self.arrays:
            if name in aliases(own):
                return self.arrays[own]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def matching(self, *patterns: str) -> Dump:
        """Those that fit a pattern. Raises `UsageError` for one that fits nothing."""
        if not patterns:
            return self
        wanted = Patterns(patterns)
        if unused := wanted.unused(self.arrays):
            raise UsageError(f"nothing here is named {shown(unused[0])}")
        return Dump({k: v for k, v in self.arrays.items() if wanted(k)}, self.about)

    def table(self, *patterns: str) -> str:
        """Names, shapes and statistics as text."""
        return table(self.matching(*patterns))

    def save(self, path: Path) -> None:
        """Write an `.npz` file, whole or not at all. Raises `OutputError`."""
        text = np.array(json.dumps(self.about, sort_keys=True))
        with atomic_write(path) as file:
            # the stubs take keyword arguments of np.savez for its options
            np.savez(file, **{ABOUT: text}, **self.arrays)  # type: ignore[arg-type]


def is_dump(path: Path) -> bool:
    """Whether a file begins as an `.npz` archive does."""
    try:
        return first_bytes(path, 4) == b"PK\x03\x04"
    except OSError:
        return False


def load(path: Path) -> Dump:
    """Read an `.npz` file, of this program or any with arrays of numbers.

    Raises `GGUFError` (a bad file) for one that is damaged, compressed, larger than it says, or
    holds Python objects.
    """
    name = shown(os.fspath(path), 400)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise GGUFError(f"{name}: {shown(member.filename)}: compressed; not read")
            total = sum(member.file_size for member in archive.infolist())
        if total > min(MOST_BYTES, os.path.getsize(path)):
            raise GGUFError(f"{name}: {total} bytes of arrays, more than the file or the limit")
        with np.load(path, allow_pickle=False) as found:
            arrays = {key: found[key] for key in found.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as e:
        raise GGUFError(f"{name}: not an .npz file that can be read: {shown(e, 200)}") from e
    about = _about(arrays.pop(ABOUT, None))
    odd = [key for key, x in arrays.items() if x.dtype.kind not in _DTYPES]
    if odd:
        raise GGUFError(f"{name}: {shown(odd[0])}: not an array of numbers")
    return Dump(arrays, about)


def _about(text: np.ndarray | None) -> dict[str, Any]:
    if text is None or text.dtype.kind != "U" or text.size != 1:
        return {}
    try:
        found = json.loads(str(text))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
