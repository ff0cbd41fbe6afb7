"""A copy of a GGUF file with other metadata: keys removed, added, or with values of other types.

It uses the reader of the `gguf` package and the bytes of `tests.gguf_io.build`, not nbllama.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from gguf import GGUFReader

from tests.gguf_io import build as b

_HEAD = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")


def edit(
    source: Path,
    target: Path,
    *,
    drop: Collection[str] = (),
    put: dict[str, bytes] | None = None,
    version: int = 3,
) -> Path:
    """Write `target`: `source` without the keys `drop`, with `put` (whole records) in their place.

    Versions 2 and 3 differ in nothing else. Raises KeyError for a key to drop that is not there.
    """
    reader, put = GGUFReader(source), put or {}
    records = {
        key: b"".join(part.tobytes() for part in field.parts)
        for key, field in reader.fields.items()
        if key not in _HEAD
    }
    for key in drop:
        del records[key]
    records |= put
    tensors = [b"".join(part.tobytes() for part in t.field.parts) for t in reader.tensors]
    header = b"GGUF" + b.u32(version) + b.u64(len(tensors)) + b.u64(len(records))
    out = header + b"".join(records.values()) + b"".join(tensors)
    out += bytes(-len(out) % reader.alignment)
    target.write_bytes(out + source.read_bytes()[reader.data_offset :])
    return target
