"""Check whether an output may replace a file, which must be of the same kind or empty.

A file that contains only zero bytes, for example after a power cut, is treated as empty.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nbllama.errors import OutputError, shown
from nbllama.system.regular import first_bytes

_LOOKED_AT = 2048  # number of bytes checked at the start of a file


class Kind(NamedTuple):
    """A kind of file, identified by its first bytes and by bytes that occur near the start."""

    name: str
    begin: tuple[bytes, ...]
    hold: bytes = b""


GGUF = Kind("a GGUF file", (b"GGUF",))
GGLA = Kind("a .bin adapter", (b"algg",))
NPZ = Kind("an .npz file", (b"PK\x03\x04", b"PK\x05\x06"))
PAGE = Kind("a run report", (b"<!DOCTYPE html>",), b"<title>Training run: ")
OPTIONS_FILE = Kind("a run's options file", (b"# The options of a run of nbllama ",))
# Every row has the key "iter", either first or after "event". A log can begin with a line feed.
LOG = Kind("a run log", (b'{"iter"', b'{"event"', b'\n{"iter"', b'\n{"event"'), b'"iter"')


def check_kind(path: str, kind: Kind) -> None:
    """Raise `OutputError` if an existing file of a different kind would be lost.

    Files that cannot be read or are not regular are left for the writer to check.
    """
    try:
        start = first_bytes(path, _LOOKED_AT)
    except OSError:
        return
    if start.strip(b"\0") and not (start.startswith(kind.begin) and kind.hold in start):
        raise other_kind(path, f"is not {kind.name}")


def other_kind(path: str | os.PathLike[str], what: str) -> OutputError:
    """Return an error about a file that must not be replaced."""
    return OutputError(
        f"{shown(path, 400)}: the existing file {what} and is not replaced; choose a different "
        "name, or move the file"
    )
