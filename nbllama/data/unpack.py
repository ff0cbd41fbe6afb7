"""Read the contents of a file, which can be compressed or a zip archive.

The unpacked size is checked during unpacking, so that a small file cannot exhaust the memory.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from nbllama.data.magic import binary_kind, office_kind
from nbllama.data.splits import choose, is_hidden, says_records
from nbllama.data.text_file import read_bytes
from nbllama.errors import DataError, shown

MAX_UNPACKED = 1 << 29
"""Limit on the unpacked size of a compressed file or archive, in bytes."""
MAX_MEMBERS = 100_000

EXTRA = "pip install 'nbllama[data]'"
_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_CHUNK = 1 << 20
_ZSTD_WINDOW = 1 << 27  # zstd's default for decoders
_ZSTD_STEP = 1 << 10  # compressed bytes per step; each can unpack to 32 KiB


class Content(NamedTuple):
    """The bytes of one file; `name` is its path, or "ARCHIVE/MEMBER" for a member of an archive."""

    name: str
    content: bytes


class Unpacked(NamedTuple):
    """The contents of a file, and messages about parts that were not read."""

    contents: list[Content]
    notes: list[str]


def read_contents(path: str | os.PathLike[str]) -> Unpacked:
    """Read a file, unpacking it if it is compressed or an archive.

    Raises `DataError` if `read_bytes` refuses the file, or if a compressed file or archive is
    damaged, unpacks to more than `MAX_UNPACKED`, or requires a missing package.
    """
    return unpack(os.fspath(path), read_bytes(path))


def unpack(name: str, content: bytes) -> Unpacked:
    """Unpack `content`. Raises the same errors as `read_contents`."""
    where = shown(name, 400)
    if content.startswith(_ZIP):
        return _archive(name, content)
    if content.startswith(_GZIP):
        with gzip.open(io.BytesIO(content)) as stream:
            content = _bounded(_parts(stream), f"{where} (gzip)")
    elif content.startswith(_ZSTD):
        content = _bounded(_unzstd(content, where), f"{where} (Zstandard)")
    else:
        packed = name.lower().endswith((".zip", ".gz", ".zst"))
        if packed and not says_records(name):
            raise DataError(f"{where} is named like a compressed file but is not one; rename it")
        return Unpacked([Content(name, content)], [])
    if content.startswith((_GZIP, _ZSTD, _ZIP)):
        raise DataError(f"{where} is compressed twice; unpack it first")
    return Unpacked([Content(name, content)], [])


def _parts(stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while part := stream.read(_CHUNK):
        yield part


def _bounded(parts: Iterator[bytes], where: str, budget: int | None = None) -> bytes:
    """Join the unpacked bytes. Raises `DataError` above `budget` (default `MAX_UNPACKED`)."""
    out = bytearray()
    budget = MAX_UNPACKED if budget is None else budget
    try:
        for part in parts:
            out += part
            if len(out) > budget:
                raise DataError(
                    f"{where} is larger than the limit of {MAX_UNPACKED >> 20} MiB when "
                    "unpacked; unpack it yourself and pass the files"
                )
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as e:
        raise DataError(f"{where} is damaged: {shown(e)}") from e
    if not out:
        raise DataError(f"{where} is empty")
    return bytes(out)


def _unzstd(content: bytes, where: str) -> Iterator[bytes]:
    """Yield the decompressed contents of all frames in a Zstandard file, in pieces."""
    try:
        from compression.zstd import ZstdError, ZstdFile  # Python 3.14
    except ImportError:
        pass
    else:
        try:
            yield from _parts(ZstdFile(io.BytesIO(content)))
        except ZstdError as e:
            raise ValueError(str(e)) from e
        return
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{where} is a Zstandard file; reading it requires the zstandard package: {EXTRA}"
        ) from None
    at = 0
    try:
        while at < len(content):
            frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
            while not frame.eof:
                if at >= len(content):
                    raise ValueError("the last frame is incomplete")
                yield frame.decompress(content[at : at + _ZSTD_STEP])
                at += _ZSTD_STEP
            at = min(at, len(content)) - len(frame.unused_data)
    except zstandard.ZstdError as e:
        raise ValueError(str(e)) from e


def _archive(name: str, content: bytes) -> Unpacked:
    """Return the data files in a zip archive, sorted by name."""
    where = shown(name, 400)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            listed = [i for i in archive.infolist() if not i.filename.endswith("/")]
            infos = {i.filename: i for i in listed}
            if len(infos) < len(listed):
                raise DataError(
                    f"{where} contains two files with the same name; unpack it yourself"
                )
            if (kind := office_kind(list(infos))) is not None:
                raise DataError(f"{where} is {kind}")
            if len(infos) > MAX_MEMBERS:
                raise DataError(f"{where} contains {len(infos)} files; the limit is {MAX_MEMBERS}")
            chosen = choose(where, [n for n in infos if not is_hidden(n)])
            contents = list(_members(name, archive, [infos[n] for n in chosen.files]))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise DataError(f"{where} (zip) is damaged or uses an unsupported feature: {e}") from e
    return Unpacked(contents, chosen.notes)


def _members(
    name: str, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]
) -> Iterator[Content]:
    left = MAX_UNPACKED
    for info in infos:
        member = f"{name}/{info.filename}"
        if info.flag_bits & 1:
            raise DataError(f"{shown(member, 400)} is encrypted; unpack the archive yourself")
        with archive.open(info) as stream:
            content = _bounded(_parts(stream), shown(member, 400), left)
        left -= len(content)
        if content.startswith((_GZIP, _ZSTD)):
            content = unpack(member, content).contents[0].content
            left -= len(content)
        elif content.startswith(_ZIP):
            kind = binary_kind(content) or "an archive"
            raise DataError(f"{shown(member, 400)} is {kind}: unpack it first")
        yield Content(member, content)
