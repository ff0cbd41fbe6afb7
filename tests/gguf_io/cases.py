"""Malformed GGUF files by name: (id, bytes, what the message must contain).

Ids are those of the table of malformed files that the reader must refuse; letters mark variants.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial

from tests.gguf_io.build import (
    ARRAY,
    BOOL,
    F64,
    I32,
    SMALL,
    STRING,
    TYPE_F32,
    TYPE_Q4_0,
    U8,
    U32,
    Gguf,
    T,
    kv,
    kv_array,
    kv_str,
    kv_u32,
    small,
    string,
    u32,
    u64,
    with_kv,
    with_tensors,
)

Case = tuple[str, Callable[[], bytes], str]
Q = 1 << 64
GOOD = SMALL.build()
HEADER = len(SMALL.header())
DATA = HEADER + -HEADER % 32
SIZES = [t.nbytes() for t in SMALL.tensors]  # 512, 144, 20
ENDS = [DATA + 512, DATA + 512 + 144, DATA + 512 + 160 + 20]
BYTES = T("t", (8,), data=bytes(32))


def _nested(levels: int) -> bytes:
    """An array of arrays, `levels` deep, with one byte at the bottom."""
    return kv("a", ARRAY, (u32(ARRAY) + u64(1)) * levels + u32(U8) + u64(1) + b"\0")


def _first(size: int) -> Callable[[], bytes]:
    return lambda: GOOD[:size]


def counts() -> Iterator[Case]:
    yield "G01", lambda: b"", "the file is empty"
    for n in (1, 2, 3, 4, 8, 12, 23):
        yield f"G02-{n}", _first(n), f"needs 24 bytes, but the file has only {n} (truncated?)"
    yield (
        "G03a",
        lambda: small(magic=b"FUGG"),
        "magic: b'FUGG' at byte 0, expected b'GGUF'; this is not a GGUF file",
    )
    yield "G03b", lambda: b"PK\x03\x04" + bytes(60), "magic: a zip file"
    yield "G03c", lambda: u64(100) + b'{"a":' + bytes(95), "magic: a safetensors file"
    yield "G03d", lambda: b"\x80\x02}q\x00." + bytes(40), "magic: a Python pickle"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    yield "G03e", lambda: pointer, "file: a Git LFS pointer instead of the file; run git lfs pull"
    for i, start in enumerate((b"<!DOCTYPE html>\n<html>", b"\n  <html lang='en'>", b"<?xml ?>")):
        page = start + bytes(60)
        yield f"G03f-{i}", partial(bytes, page), "file: a web page instead of the file; download"
    yield "G03g", lambda: b"Entry not found" + bytes(60), "file: a server's error message instead"
    yield "G03h", lambda: b'{"error":"Gated"}' + bytes(9), "file: a server's error message instead"
    yield "G04a", lambda: b"lmgg" + bytes(60), "GGML file from 2023 (old format; convert it to"
    yield "G04b", lambda: b"fmgg" + bytes(60), "GGMF file from 2023 (old format; convert"
    yield "G04c", lambda: b"tjgg" + bytes(60), "GGJT file from 2023 (old format; convert"
    yield "G04d", lambda: b"algg" + bytes(60), "'ggla' LoRA adapter"
    yield "G05a", lambda: small(version=u32(0)), "version: 0; supported: 2 and 3"
    yield "G05b", lambda: small(version=u32(1)), "version: 1; supported: 2 and 3"
    yield "G06a", lambda: small(version=u32(4)), "version: 4; supported: 2 and 3"
    yield "G06b", lambda: small(version=u32(-1)), "version: 4294967295; supported"
    yield "G07a", lambda: small(version=struct.pack(">I", 3)), "big-endian GGUF (version 3)"
    yield "G07b", lambda: small(version=struct.pack(">I", 2)), "big-endian GGUF (version 2)"
    yield "G08a", lambda: small(n_tensors=-1), f"tensor count: {Q - 1} need at least {33 * (Q - 1)}"
    yield "G08b", lambda: small(n_tensors=10**7), "tensor count: 10000000 need at least 330000000"
    yield "G09a", lambda: small(n_kv=-1), f"key count: {Q - 1} need at least {14 * (Q - 1)}"
    yield "G09b", lambda: small(n_kv=10**7), "key count: 10000000 need at least 140000000"
    yield "G10", lambda: small(n_kv=7), "name of tensor 0 of 3: length 11258999"
    yield "G11", lambda: small(n_kv=5), "tensor 'general.flag': 7 dimensions"
    yield "G12", lambda: small(n_tensors=4), "name of tensor 3 of 4"
    yield "G13", lambda: small(n_tensors=2), "padding before the data: bytes"
    yield "G13b", _one_tensor_less_aligned, "end of file: at byte"


def _one_tensor_less_aligned() -> bytes:
    """States one tensor less, and the records end where no padding would reveal it."""
    head = Gguf(kvs=(kv_str("k", "x" * 10),), tensors=(T("abc", (8,)),))
    fill = -len(head.header()) % 32
    kvs = (kv_str("k", "x" * (10 + fill)),)
    extra = T("d", (8,), offset=32)
    return Gguf(kvs=kvs, tensors=(T("abc", (8,)), extra), n_tensors=1).build()


def keys() -> Iterator[Case]:
    def long_key(size: int) -> bytes:
        return small(kvs=(string("k", length=size) + bytes(80),))

    yield (
        "G14a",
        lambda: long_key(Q - 1),
        f"key 0 of 1: length {Q - 1} at byte 24; the limit is 65535",
    )
    yield "G14b", lambda: long_key(1 << 63), f"length {1 << 63} at byte 24; the limit is 65535"
    yield "G14c", lambda: long_key(1 << 40), f"length {1 << 40} at byte 24; the limit is 65535"
    yield (
        "G14d",
        lambda: small(kvs=(string("k", length=60_000),), tensors=()),
        "needs bytes 32..60032",
    )
    yield "G15", lambda: with_kv(kv_u32("k" * 65_536, 1)), "length 65536 at byte"
    yield "G16", lambda: with_kv(kv_u32("", 1)), "key 6 of 7: empty at byte"
    yield "G17", lambda: with_kv(kv(b"a\xffb", U32, u32(1))), "key 6 of 7: not UTF-8 at byte"
    yield "G18a", lambda: with_kv(kv_u32("a\nb", 1)), r"'a\nb': control characters"
    yield "G18b", lambda: with_kv(kv_u32("a\x1b[31mb", 1)), r"'a\x1b[31mb': control characters"
    yield "G18c", lambda: with_kv(kv_u32("a\u202eb", 1)), r"'a\u202eb': control characters"
    yield "G19", lambda: with_kv(kv_u32("llama.block_count", 2)), "'llama.block_count': appears tw"
    yield "G20a", lambda: with_kv(kv("x", 13, u32(1))), "key 'x': unknown value type 13 at byte"
    yield "G20b", lambda: with_kv(kv("x", -1, u32(1))), "key 'x': unknown value type 4294967295"


def values() -> Iterator[Case]:
    def last(entry: bytes) -> Callable[[], bytes]:
        """The file ends with this key: no tensor follows."""
        return lambda: small(kvs=(*SMALL.kvs, entry), tensors=())

    def at_end(entry: bytes) -> Callable[[], bytes]:
        """As `last`, but not one byte of padding after it."""
        return lambda: Gguf(kvs=(entry,)).header()

    yield (
        "G21",
        at_end(kv("s", STRING, string("abc", length=4))),
        "needs bytes 45..49, but the file has only 48",
    )
    yield "G22a", last(kv("s", STRING, string("abc", length=1 << 40))), "the limit is 16777216"
    yield "G22b", last(kv_str("s", "x" * ((16 << 20) + 1))), "length 16777217 at byte"
    yield "G22c", last(kv("s", STRING, string("", length=Q - 1))), f"length {Q - 1} at byte"
    yield "G23a", lambda: with_kv(kv_str("general.name", b"a\xff")), "'general.name': not UTF-8 at"
    yield "G23b", lambda: with_kv(kv_str("tokenizer.chat_template", b"{{\xc3")), "not UTF-8 at"
    for name, count in (("a", 1 << 63), ("b", 1 << 40), ("c", 1 << 30), ("d", Q - 1)):
        yield f"G24{name}", last(kv_array("x", U8, count, b"")), "(truncated?)"
        yield f"G24{name}-f64", last(kv_array("x", F64, count, b"")), "(truncated?)"
        yield f"G24{name}-str", last(kv_array("x", STRING, count, b"")), f"{count} strings from by"
    yield "G25", last(kv_array("x", F64, 5_000_000, bytes(5_200_000))), "(truncated?)"
    yield "G26a", lambda: with_kv(kv_array("x", 13, 1, bytes(8))), "unknown value type 13"
    yield "G26b", lambda: with_kv(kv_array("x", -1, 1, bytes(8))), "unknown value type 4294967295"
    yield "G27a", lambda: with_kv(_nested(1)), "key 'a': array of arrays at byte"
    yield "G27b", lambda: with_kv(_nested(2000)), "key 'a': array of arrays at byte"
    one_past = string("abc") + string("abc", length=4)
    yield "G28a", at_end(kv_array("x", STRING, 2, one_past)), "x'[1]: needs bytes"
    yield "G28b", at_end(kv_array("x", STRING, 2, string("a" * 20))), "x'[1]: needs bytes"
    huge = string("abc") + string("", length=Q - 1)
    yield "G28c", last(kv_array("x", STRING, 2, huge)), "x'[1]: needs bytes"
    yield "G29a", lambda: with_kv(kv("x", BOOL, b"\7")), "is 7; it must be 0 or 1"
    yield "G29b", lambda: with_kv(kv_array("x", BOOL, 2, b"\1\2")), "is 2; it must be 0 or 1"


def cuts() -> Iterator[Case]:
    yield "G30", lambda: GOOD[:8], "header: needs 24 bytes, but the file has only 8 (truncated?)"
    yield "G31", lambda: GOOD[:60], "(truncated?)"
    yield "G31b", lambda: Gguf(kvs=SMALL.kvs[:2]).header()[:-2], "'llama.block_count': needs bytes"
    yield "G32", lambda: GOOD[: HEADER - 3], "'blk.0.attn_norm.weight' offset: needs bytes"
    yield (
        "G33",
        _first(HEADER + (DATA - HEADER) // 2),
        f"padding before the data: needs bytes {HEADER}..{DATA}",
    )
    yield "G33b", lambda: small(pad_byte=b"\1"), f"bytes {HEADER}..{DATA} are not zero"
    yield "G33c", lambda: GOOD[: ENDS[2] + 5], f"end of file: at byte {ENDS[2] + 5}, but the last"


def alignments() -> Iterator[Case]:
    def aligned(kind: int, payload: bytes) -> Callable[[], bytes]:
        return lambda: with_kv(kv("general.alignment", kind, payload))

    yield "G34", aligned(U32, u32(0)), "'general.alignment': 0, but must be a power of two"
    yield "G35", aligned(U32, u32(13)), "'general.alignment': 13, but must be a power of two"
    yield "G35b", aligned(U32, u32(4)), "'general.alignment': 4, but must be a power of two from 8"
    yield "G36a", aligned(I32, u32(32)), "'general.alignment': type INT32, but must be UINT32"
    yield "G36b", aligned(STRING, string("32")), "type STRING, but must be UINT32"
    yield "G36c", aligned(ARRAY, u32(U32) + u64(1) + u32(32)), "type ARRAY, but must be UINT32"
    yield "G37", aligned(U32, u32(1 << 31)), "but must be a power of two from 8 to 1048576"


def shapes() -> Iterator[Case]:
    def shaped(ne: tuple[int, ...], kind: int = TYPE_F32, **more: int) -> Callable[[], bytes]:
        return lambda: with_tensors(T("t", ne, kind, data=bytes(64), **more))

    yield "G38", shaped((), n_dims=0), "tensor 't': 0 dimensions at byte"
    yield "G39", shaped((1, 1, 1, 1, 1)), "tensor 't': 5 dimensions at byte"
    yield "G40a", shaped((8,), n_dims=10**6), "tensor 't': 1000000 dimensions at byte"
    yield "G40b", shaped((8,), n_dims=-1), "tensor 't': 4294967295 dimensions at byte"
    yield "G41", shaped((8, 0)), "tensor 't': dimension 1 is 0 at byte"
    yield "G42a", shaped((8, -1)), f"tensor 't': dimension 1 is {Q - 1} at byte"
    yield "G42b", shaped(((1 << 31) + 8,)), "dimension 0 is 2147483656"
    yield "G43", shaped((4194305, 4194305, 211106198978564)), "dimension 2 is 211106198978564"
    yield "G43b", shaped((1 << 31, 1 << 31, 4)), "tensor 't': needs bytes"
    yield "G44a", shaped((1 << 32, 1 << 32)), "dimension 0 is 4294967296"
    yield "G44b", shaped((0, 1 << 62)), "dimension 0 is 0"
    yield "G44c", shaped((1 << 31, 1 << 31, 1 << 2)), "tensor 't': needs bytes"
    yield "G45", shaped((1 << 31, 1 << 31)), f"needs bytes 384..{384 + (1 << 64)}, but the file has"
    yield (
        "G45b",
        shaped((1 << 31, 1 << 30), 28),
        f"needs bytes 384..{384 + (1 << 64)}, but the file has only",
    )
    yield "G46", shaped(((1 << 62) - 1,)), f"dimension 0 is {(1 << 62) - 1}"
    yield "G46b", shaped(((1 << 31) - 1, 1 << 31)), "tensor 't': needs bytes"
    yield "G47a", shaped((1 << 40,)), f"dimension 0 is {1 << 40}"
    yield (
        "G47b",
        shaped((1 << 30, 1 << 10)),
        f"needs bytes 384..{384 + (1 << 42)}, but the file has only",
    )
    for name, kind in (("a", 99), ("b", -1), ("c", 42)):
        yield f"G48{name}", shaped((32,), kind), f"type {kind % (1 << 32)} at byte"
    yield "G49a", shaped((32,), 4), "type Q4_2 (removed from ggml) is not supported; supported:"
    yield "G49b", shaped((32,), 5), "type Q4_3 (removed from ggml) is not supported"
    yield (
        "G49c",
        shaped((32,), 36),
        "type IQ4_NL_4_4 (removed from ggml) is not supported",
    )
    yield "G49d", shaped((32,), 9), "Q8_1 (an intermediate type, never stored) is not supported"
    yield "G49e", shaped((96,), 40), "row length 96 is not a multiple of the NVFP4 block size 64"
    yield (
        "G50a",
        shaped((33,), TYPE_Q4_0),
        "row length 33 is not a multiple of the Q4_0 block size 32",
    )
    yield (
        "G50b",
        shaped((16, 2), TYPE_Q4_0),
        "row length 16 is not a multiple of the Q4_0 block size 32",
    )
    yield "G50c", shaped((128,), 12), "row length 128 is not a multiple of the Q4_K block size 256"


def ranges() -> Iterator[Case]:
    def second(offset: int, data: bytes | None = None) -> Callable[[], bytes]:
        return lambda: with_tensors(BYTES, T("u", (8,), offset=offset), data=data)

    yield "G51a", second(-1), f"tensor 'u': offset {Q - 1} is not a multiple of the alignment 32"
    yield "G51b", second(1 << 63), f"tensor 'u': offset {1 << 63} leaves a gap, expected 32"
    yield "G52", second(Q - 64), f"tensor 'u': offset {Q - 64} leaves a gap, expected 32"
    yield "G53", second(33), "tensor 'u': offset 33 is not a multiple of the alignment 32"
    yield "G54a", second(0), "tensor 'u': offset 0 overlaps the previous tensor, expected 32"
    yield "G54b", lambda: with_tensors(T("t", (16,)), T("u", (8,), offset=32)), "offset 32 overlaps"
    yield "G55a", second(64, bytes(96)), "tensor 'u': offset 64 leaves a gap, expected 32"
    yield "G55b", lambda: with_tensors(T("t", (8,), offset=32), data=bytes(64)), "leaves a gap"
    swapped = (T("t", (8,), offset=32), T("u", (8,), offset=0))
    yield "G56", lambda: with_tensors(*swapped), "tensor 't': offset 32 leaves a gap, expected 0"
    yield "G57", lambda: with_tensors(T("t", (8,)), T("t", (8,))), "tensor 't': appears twice"


def names() -> Iterator[Case]:
    def named(name: str | bytes) -> Callable[[], bytes]:
        return lambda: with_tensors(T(name, (8,)))

    yield "G58a", named(""), "name of tensor 0 of 1: empty at byte"
    yield "G58b", named("x" * 64), "name of tensor 0 of 1: length 64 at byte"
    yield "G58c", named("x" * 200), "the limit is 63"
    yield "G59a", named(b"a\xff"), "name of tensor 0 of 1: not UTF-8 at byte"
    yield "G59b", named("a\0b"), r"'a\x00b': control characters"
    yield "G59c", named("a\nb"), r"'a\nb': control characters"
    yield "G59d", named("a\x1b[2J"), r"'a\x1b[2J': control characters"


def ends() -> Iterator[Case]:
    of_two = kv_u32("split.count", 2), kv_u32("split.no", 1)
    span = f"'blk.0.attn_norm.weight': needs bytes {ENDS[2] - 20}..{ENDS[2]}, but the file has only"
    yield "G60", lambda: GOOD[: ENDS[2] - 1], f"{span} {ENDS[2] - 1} (truncated?)"
    yield "G61", lambda: GOOD[: ENDS[1] - 9], "'blk.0.attn_q.weight': needs bytes"
    yield "G62a", lambda: GOOD[:DATA], "'token_embd.weight': needs bytes"
    yield "G62b", lambda: GOOD[:HEADER], "padding before the data"
    yield "G63a", lambda: GOOD + b"\0", f"end of file: at byte {len(GOOD) + 1}, but the last tensor"
    yield "G63b", lambda: GOOD + bytes(32), f"end of file: at byte {len(GOOD) + 32}, but the last"
    yield "G63c", lambda: Gguf(tail=b"x" * 100).build(), "end of file: at byte 132"
    yield "G66a", lambda: with_kv(kv("split.count", 2, b"\3\0")), "key 'split.no': is missing"
    yield (
        "G66b",
        lambda: with_kv(*of_two),
        "one of 2 parts of a split model; rename it to NAME-00002-of-00002.gguf so that the ",
    )
    yield "G66c", lambda: with_kv(kv_u32("split.count", 2), kv_u32("split.no", 2)), "'split.no': 2,"
    yield "G66d", lambda: with_kv(kv_str("split.count", "2")), "'split.count': must be a count"


CASES: list[Case] = [
    case
    for part in (counts, keys, values, cuts, alignments, shapes, ranges, names, ends)
    for case in part()
]
