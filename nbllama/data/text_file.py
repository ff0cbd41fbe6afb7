"""Read and decode training files, and refuse files that are not text."""

from __future__ import annotations

import codecs
import hashlib
import os
import shlex

from nbllama.data.magic import binary_kind, guessed_encoding
from nbllama.errors import DataError, shown
from nbllama.system.regular import read_whole

MAX_BYTES = 4 << 30
"""Maximum number of bytes to read from a file or pipe."""

_MARKS = (  # longer marks first, because the UTF-32 mark begins with the UTF-16 mark
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_bytes(path: str | os.PathLike[str], what: str = "training data") -> bytes:
    """Read a whole file; `what` describes the file in error messages.

    Only regular files and pipes of at most `MAX_BYTES` are read. Raises `DataError` if the path is
    anything else, cannot be read, is an empty file, or is a pipe that delivers no data for 10
    seconds.
    """
    name = shown(os.fspath(path), 400)
    try:
        content = read_whole(path, MAX_BYTES)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise DataError(f"cannot read {what} {name}: {reason}") from e
    if not content:
        raise DataError(f"{what} {name} is empty")
    return content


def decode_text(
    content: bytes,
    path: str | os.PathLike[str],
    *,
    keep_mark: bool = False,
    lenient: bool = False,
) -> str:
    """Decode `content` as UTF-8, or as UTF-16 or UTF-32 if it has a byte-order mark.

    The mark is removed unless `keep_mark` is set; nothing else is changed.

    With `lenient`, bytes that are not UTF-8 become lone surrogates ("surrogateescape"). Raises
    `DataError` for binary files and NUL bytes, with a message that says what the file looks like.
    Also raises `DataError` for text that is not UTF-8, with the line and offset (from 0, including
    a byte-order mark) of the first invalid byte.
    """
    name = shown(os.fspath(path))
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                text = content.decode(encoding)
            except UnicodeDecodeError as e:
                raise DataError(
                    f"{name} begins with the byte-order mark of {encoding.upper()}, but is "
                    "damaged at byte "
                    f"{e.start}: {e.reason}"
                ) from e
            if "\0" in text:
                raise DataError(f"{name} is not text: it contains NUL characters")
            return text
    if (kind := binary_kind(content)) is not None:
        raise DataError(f"{name} is {_with_file(kind, path)}")
    if lenient and not guessed_encoding(content):
        return content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return decode_utf8(content, path, keep_mark=keep_mark)


def decode_utf8(content: bytes, path: str | os.PathLike[str], *, keep_mark: bool = False) -> str:
    """Decode `content` as UTF-8, removing a leading byte-order mark unless `keep_mark` is set.

    Raises `DataError` with the offset and line of the first byte that is not UTF-8.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        hint = guessed_encoding(content) or "; convert the file to UTF-8"
        raise DataError(
            f"{shown(os.fspath(path))} is not UTF-8: byte 0x{content[e.start]:02x} at offset "
            f"{e.start}, line {line}{_with_file(hint, path)}"
        ) from e
    return text if keep_mark else text.removeprefix("\ufeff")


def _with_file(hint: str, path: str | os.PathLike[str]) -> str:
    """Complete the command in a hint that ends with an `iconv` command without files."""
    if not hint.endswith(" -t UTF-8"):
        return hint
    base, ending = os.path.splitext(os.fspath(path))
    old, new = (shown(shlex.quote(name), 400) for name in (base + ending, f"{base}-utf8{ending}"))
    return f"{hint} {old} > {new}"


def sha256_parts(*parts: bytes | str | int) -> str:
    """Return the hex sha256 of `parts` and their lengths; different lists give different hashes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
