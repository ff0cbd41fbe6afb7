"""Training files come in as UTF-8, or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from nbllama.errors import DataError, shown

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_bytes(path: str | os.PathLike[str], what: str = "training data") -> bytes:
    """The whole file; `what` it is, for an error's line. Raises `DataError` when it cannot be read
    or is empty.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as e:
        raise DataError(f"cannot read {what} {shown(os.fspath(path))}: {e.strerror or e}") from e
    if not content:
        raise DataError(f"{what} {shown(os.fspath(path))} is empty")
    return content


def decode_utf8(content: bytes, path: str | os.PathLike[str], *, keep_mark: bool = False) -> str:
    """`content` as text, without a leading byte-order mark unless `keep_mark`; nothing else is
    changed.

    Raises `DataError` with the offset of the first byte that is not UTF-8 (counted from 0, a
    byte-order mark included) and its line.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        hint = " (it looks like UTF-16)" if content.startswith(_UTF16) else ""
        raise DataError(
            f"{shown(os.fspath(path))} is not UTF-8: byte 0x{content[e.start]:02x} at offset "
            f"{e.start}, line {line}{hint}; convert the file to UTF-8"
        ) from e
    return text if keep_mark else text.removeprefix("\ufeff")


def sha256_parts(*parts: bytes | str | int) -> str:
    """Hex sha256 over `parts`, each with its length, so that no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
