"""Open a GGUF file (version 2 or 3, little-endian) without trusting it.

`open_one` maps the file read-only, parses the header with a limit on every size, and checks the
byte range of each tensor against the actual file size, because the kernels that read the bytes do
not check anything. The rules are the same as in ggml's reader (`gguf.cpp`), or stricter where no
real model needs the looser rule: arrays of arrays, zero dimensions and control characters in names
are refused, the padding before the data must consist of zeros, and the file must end with its last
tensor (or the padding after it).

A mapping has two weaknesses. If another program truncates the file while it is mapped, reading the
missing pages kills the process with SIGBUS; if it overwrites bytes in place, the mapped bytes
change. `GGUFFile.recheck` detects either change before or after the file is used, but not while it
is being read. Replacing the file by renaming, as this package does, is harmless, because the
mapping still refers to the old file.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator

from nbllama.errors import GGUFError, shown
from nbllama.gguf_io import limits, no_model
from nbllama.gguf_io.cursor import Cursor
from nbllama.gguf_io.file import GGUFFile, TensorInfo
from nbllama.gguf_io.types import TENSOR_TYPES, UNSUPPORTED_TYPES, ValueType
from nbllama.system.downloads import LOOKED_AT, wrong_download
from nbllama.system.regular import kind_of

_NOT_GGUF = (
    (b"lmgg", "a GGML file from 2023 (old format; convert it to GGUF)"),
    (b"fmgg", "a GGMF file from 2023 (old format; convert it to GGUF)"),
    (b"tjgg", "a GGJT file from 2023 (old format; convert it to GGUF)"),
    (b"algg", "a 'ggla' LoRA adapter from 2023, not a model"),
    (b"lcgg", "a 'ggcl' training checkpoint from 2023 (old format)"),
    (b"PK\x03\x04", no_model.PYTORCH),
    (b"\x80", no_model.PICKLE),
)


def open_one(path: str | os.PathLike[str]) -> GGUFFile:
    """Open `path` and check its header; raise `GGUFError` with one line that describes any problem.

    For any file, the check takes less than a second and uses less than 200 MB of memory.
    """
    name = os.fsdecode(os.fspath(path))
    mapping, info = _mapped(name)
    try:
        with memoryview(mapping) as view:
            cursor = Cursor(view, name)
            version, n_tensors, n_kv = _header(cursor)
            metadata, types = _metadata(cursor, n_kv)
            alignment = _alignment(cursor, metadata, types)
            tensors = _tensors(cursor, n_tensors, alignment)
    except BaseException:
        mapping.close()
        raise
    return GGUFFile(
        name,
        info,
        mapping,
        version=version,
        alignment=alignment,
        metadata=metadata,
        types=types,
        tensors=tensors,
    )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, object]:
    """Return the values of all keys, even if the tensors are not supported or incomplete.

    Raises `GGUFError` if the keys cannot be read.
    """
    name = os.fsdecode(os.fspath(path))
    mapping, _ = _mapped(name)
    with mapping, memoryview(mapping) as view:
        cursor = Cursor(view, name)
        _, _, n_kv = _header(cursor)
        return _metadata(cursor, n_kv)[0]


def _mapped(name: str) -> tuple[mmap.mmap, os.stat_result]:
    """Map a file read-only; return the mapping and `os.fstat` result."""
    fd, info = _open_regular(name)
    try:
        if info.st_size == 0:
            raise GGUFError(f"{shown(name, 400)}: the file is empty")
        return mmap.mmap(fd, info.st_size, access=mmap.ACCESS_READ), info
    except (OSError, ValueError, OverflowError) as e:
        raise GGUFError(f"{shown(name, 400)}: cannot be mapped: {e}") from e
    finally:
        os.close(fd)


def _open_regular(name: str) -> tuple[int, os.stat_result]:
    """Open a regular file (not a FIFO or a device); return its descriptor and `os.fstat` result."""
    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode):
            hint = no_model.folder_hint(name) if stat.S_ISDIR(mode) else ""
            raise GGUFError(
                f"{shown(name, 400)}: {_kind(mode)}, not a regular file"
                + (f"; {shown(hint, 300)}" if hint else "")
            )
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(name, flags)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        hint = no_model.name_hint(name) if isinstance(e, FileNotFoundError) else ""
        raise GGUFError(
            f"{shown(name, 400)}: cannot be opened: {reason}"
            + (f"; {shown(hint, 300)}" if hint else "")
        ) from e
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise GGUFError(f"{shown(name, 400)}: {_kind(info.st_mode)}, not a regular file")
    return fd, info


def _kind(mode: int) -> str:
    return "a directory" if stat.S_ISDIR(mode) else kind_of(mode)


def _header(c: Cursor) -> tuple[int, int, int]:
    """Return the version, the number of tensors and the number of keys."""
    magic = bytes(c.buf[:4])
    if c.end < limits.HEADER_BYTES and b"GGUF".startswith(magic):
        raise c.error(
            "header",
            f"needs {limits.HEADER_BYTES} bytes, but the file has only {c.end} (truncated?)",
        )
    if magic != b"GGUF":
        if problem := wrong_download(bytes(c.buf[:LOOKED_AT])):
            raise c.error("file", problem)
        for prefix, what in _NOT_GGUF:
            if magic.startswith(prefix):
                raise c.error("magic", what)
        if bytes(c.buf[8:9]) == b"{":
            raise c.error("magic", no_model.SAFETENSORS)
        raise c.error("magic", f"{magic!r} at byte 0, expected b'GGUF'; this is not a GGUF file")
    c.take(4, "magic")
    version = c.u32("version")
    if version & 0xFFFF == 0 and version:
        raise c.error(
            "version", f"big-endian GGUF (version {version >> 24}); only little-endian is supported"
        )
    if version not in (2, 3):
        raise c.error("version", f"{version}; supported: 2 and 3")
    n_tensors = c.u64("tensor count")
    n_kv = c.u64("key count")
    left = c.end - c.pos
    for what, n, size, limit in (
        ("tensor count", n_tensors, limits.MIN_TENSOR_BYTES, limits.MAX_TENSORS),
        ("key count", n_kv, limits.MIN_KV_BYTES, limits.MAX_KV),
    ):
        if n * size > left:
            raise c.error(
                what, f"{n} need at least {n * size} bytes, but only {left} follow (truncated?)"
            )
        if n > limit:
            raise c.error(what, f"{n}, but the limit is {limit}")
    return version, n_tensors, n_kv


def _metadata(c: Cursor, n_kv: int) -> tuple[dict[str, object], dict[str, ValueType]]:
    """Return the values and types of all keys, in file order."""
    metadata: dict[str, object] = {}
    types: dict[str, ValueType] = {}
    c.cap = min(c.end, c.pos + limits.MAX_METADATA_BYTES)
    for i in range(n_kv):
        key = c.name(f"key {i} of {n_kv}", limits.MAX_KEY_BYTES)
        what = f"key '{key}'" if len(key) < 120 else f"key '{key[:119]}…'"
        if key in metadata:
            raise c.error(what, "appears twice")
        at = c.pos
        type_id = c.u32(what, " type")
        if type_id > max(ValueType):
            raise c.error(what, f"unknown value type {type_id} at byte {at}; known types: 0..12")
        metadata[key] = c.value(type_id, what)
        types[key] = ValueType(type_id)
    c.cap = c.end
    return metadata, types


def _alignment(c: Cursor, metadata: dict[str, object], types: dict[str, ValueType]) -> int:
    """Return `general.alignment`, which must be a power of two of type uint32."""
    key = "general.alignment"
    if key not in metadata:
        return limits.DEFAULT_ALIGNMENT
    if types[key] != ValueType.UINT32:
        raise c.error(f"key '{key}'", f"type {types[key].name}, but must be UINT32")
    value = metadata[key]
    assert isinstance(value, int)
    if value & (value - 1) or not limits.MIN_ALIGNMENT <= value <= limits.MAX_ALIGNMENT:
        raise c.error(
            f"key '{key}'",
            f"{value}, but must be a power of two from {limits.MIN_ALIGNMENT} to"
            f" {limits.MAX_ALIGNMENT}",
        )
    return value


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _tensors(c: Cursor, n_tensors: int, alignment: int) -> dict[str, TensorInfo]:
    """Return all tensors in file order, after checking that their bytes are inside the file."""
    records = list(_records(c, n_tensors))
    start = _padded(c.pos, alignment)
    if n_tensors or c.pos != c.end:
        pad = c.pos
        c.take(start - pad, "padding before the data")
        if any(c.buf[pad:start]):
            raise c.error("padding before the data", f"bytes {pad}..{start} are not zero")
    tensors: dict[str, TensorInfo] = {}
    expected = end = 0
    for t in records:
        what = f"tensor '{t.name}'"
        if t.name in tensors:
            raise c.error(what, "appears twice")
        if t.offset != expected:
            raise c.error(what, _offset_problem(t.offset, expected, alignment))
        first, end = start + t.offset, start + t.offset + t.nbytes
        if t.nbytes > c.end - first:
            raise c.error(
                what, f"needs bytes {first}..{end}, but the file has only {c.end} (truncated?)"
            )
        tensors[t.name] = t._replace(offset=first)
        expected = _padded(t.offset + t.nbytes, alignment)
    last = start + expected
    if records and c.end not in (end, last):
        raise c.error(
            "end of file",
            f"at byte {c.end}, but the last tensor ends at {end} ({last} with padding)",
        )
    if not records and c.end > start:
        raise c.error(
            "end of file",
            f"at byte {c.end}, but the header ends at {start} and there are no tensors",
        )
    return tensors


def _offset_problem(offset: int, expected: int, alignment: int) -> str:
    if offset % alignment:
        return f"offset {offset} is not a multiple of the alignment {alignment}"
    relation = "overlaps the previous tensor" if offset < expected else "leaves a gap"
    return f"offset {offset} {relation}, expected {expected}"


def _records(c: Cursor, n_tensors: int) -> Iterator[TensorInfo]:
    """Yield tensor records, with an unchecked `offset` relative to the data section."""
    for i in range(n_tensors):
        name = c.name(f"name of tensor {i} of {n_tensors}", limits.MAX_NAME_BYTES)
        what = f"tensor '{name}'"
        at = c.pos
        n_dims = c.u32(what, " n_dims")
        if not 1 <= n_dims <= limits.MAX_DIMS:
            raise c.error(
                what, f"{n_dims} dimensions at byte {at}, but must have 1 to {limits.MAX_DIMS}"
            )
        ne = [c.u64(what, " dimension") for _ in range(n_dims)]
        for j, n in enumerate(ne):
            if not 1 <= n <= limits.MAX_DIM:
                raise c.error(
                    what,
                    f"dimension {j} is {n} at byte {at + 4 + 8 * j}, but must be from 1 to 2^31",
                )
        at = c.pos
        type_id = c.u32(what, " type")
        kind = TENSOR_TYPES.get(type_id)
        if kind is None:
            known = UNSUPPORTED_TYPES.get(type_id, f"{type_id} at byte {at} is unknown and")
            supported = " ".join(t.name for t in TENSOR_TYPES.values())
            raise c.error(what, f"type {known} is not supported; supported: {supported}")
        if ne[0] % kind.block_size:
            raise c.error(
                what,
                f"row length {ne[0]} is not a multiple of the {kind.name} block size "
                f"{kind.block_size}",
            )
        n_elements = 1
        for n in ne:
            n_elements *= n
        offset = c.u64(what, " offset")
        yield TensorInfo(name, tuple(reversed(ne)), type_id, offset, kind.nbytes(n_elements))
