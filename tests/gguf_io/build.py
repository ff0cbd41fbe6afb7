"""GGUF files as bytes; each part can be replaced by a wrong one.

It does not use nbllama, so a mistake in the package cannot hide in its own test input.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_F32, TYPE_Q4_0 = 0, 2
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144), 24: (1, 1), 28: (1, 8)}


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A length-prefixed string; `length` is the value of the prefix, by default the right one."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def kv(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + u32(kind) + payload


def kv_u32(key: str, value: int) -> bytes:
    return kv(key, U32, u32(value))


def kv_f32(key: str, value: float) -> bytes:
    return kv(key, F32, struct.pack("<f", value))


def kv_str(key: str, value: str | bytes) -> bytes:
    return kv(key, STRING, string(value))


def kv_array(key: str, kind: int, count: int, payload: bytes) -> bytes:
    return kv(key, ARRAY, u32(kind) + u64(count) + payload)


def kv_strings(key: str, values: Sequence[str | bytes]) -> bytes:
    return kv_array(key, STRING, len(values), b"".join(string(v) for v in values))


@dataclass
class T:
    """A tensor record; `ne` in ggml order. `offset` None: the right one; `data` None: a pattern."""

    name: str | bytes
    ne: Sequence[int]
    type_id: int = TYPE_F32
    offset: int | None = None
    data: bytes | None = None
    n_dims: int | None = None

    def nbytes(self) -> int:
        block, size = BLOCKS[self.type_id]
        n = 1
        for d in self.ne:
            n *= d
        return n // block * size

    def record(self, offset: int) -> bytes:
        n_dims = len(self.ne) if self.n_dims is None else self.n_dims
        return (
            string(self.name)
            + u32(n_dims)
            + b"".join(u64(d) for d in self.ne)
            + u32(self.type_id)
            + u64(offset if self.offset is None else self.offset)
        )


@dataclass
class Gguf:
    """A file in parts; `n_tensors` and `n_kv` None: the truth."""

    kvs: Sequence[bytes] = ()
    tensors: Sequence[T] = ()
    magic: bytes = b"GGUF"
    version: bytes = u32(3)
    n_tensors: int | None = None
    n_kv: int | None = None
    alignment: int = 32
    header_tail: bytes = b""  # between the records and the padding
    pad_byte: bytes = b"\0"
    data: bytes | None = None  # the whole data section instead of the tensors' own
    tail: bytes = b""

    def header(self) -> bytes:
        out = self.magic + self.version
        out += u64(len(self.tensors) if self.n_tensors is None else self.n_tensors)
        out += u64(len(self.kvs) if self.n_kv is None else self.n_kv)
        out += b"".join(self.kvs)
        offset = 0
        for t in self.tensors:
            out += t.record(offset)
            known = t.data is not None or t.type_id in BLOCKS
            size = (len(t.data) if t.data is not None else t.nbytes()) if known else 0
            offset += -(-size // self.alignment) * self.alignment
        return out + self.header_tail

    def build(self) -> bytes:
        out = self.header()
        out += self.pad_byte * (-len(out) % self.alignment)
        if self.data is not None:
            return out + self.data + self.tail
        for i, t in enumerate(self.tensors):
            body = bytes((7 * i + j) % 251 for j in range(t.nbytes())) if t.data is None else t.data
            out += body + b"\0" * (-len(body) % self.alignment)
        return out + self.tail


SMALL = Gguf(
    kvs=(
        kv_str("general.architecture", "llama"),
        kv_u32("llama.block_count", 2),
        kv_f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        kv_strings("tokenizer.ggml.tokens", ["<unk>", b"\xff\x01", "", "é"]),
        kv_array("tokenizer.ggml.token_type", I32, 3, struct.pack("<3i", 2, 3, -1)),
        kv("general.flag", BOOL, b"\1"),
    ),
    tensors=(
        T("token_embd.weight", (32, 4)),
        T("blk.0.attn_q.weight", (64, 4), TYPE_Q4_0),
        T("blk.0.attn_norm.weight", (5,)),
    ),
)
"""Three tensors, six keys; the last tensor does not fill its padding."""


def small(**changes: object) -> bytes:
    """`SMALL` with some parts replaced, as bytes."""
    return replace(SMALL, **changes).build()  # type: ignore[arg-type]


def with_kv(*extra: bytes) -> bytes:
    """`SMALL` with more keys at its end."""
    return small(kvs=(*SMALL.kvs, *extra))


def with_tensors(*tensors: T, **changes: object) -> bytes:
    """`SMALL` with other tensors."""
    return small(tensors=tensors, **changes)
