"""The `.bin` adapters that llama.cpp's `finetune` wrote in 2023 and 2024 (`save_as_llama_lora`).

All numbers are little-endian. The header consists of four u32: magic, version 1, r, alpha. Every
pair is scaled by alpha / r. The rest of the file consists of records, one for each half of a pair:

| field | type | |
|---|---|---|
| n_dims | u32 | 1 or 2 |
| length of the name, type, ne[n_dims] | u32 | type: 0 F32, 1 F16, 30 BF16; ne: fastest first |
| name | bytes | name of the base tensor, followed by `.loraA` or `.loraB` |
| padding | zeros | to the next multiple of 32 bytes in the file |
| values | | loraA (n_in, rank), loraB (n_out, rank) in numpy's order |

llama.cpp versions from 2023 accept only two dimensions. The July 2024 version omits a trailing
dimension of 1 (for loraB of norm vectors) and can read both forms.
"""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np

from nbllama.adapter.source import Path, Source
from nbllama.adapter.stored import MAX_RANK, Base, Stored, joined, rounded
from nbllama.errors import UsageError, shown
from nbllama.lora.slots import tensor_index
from nbllama.system.files import atomic_write

MAGIC = 0x67676C61
MAGIC_BYTES = struct.pack("<I", MAGIC)
_VERSION = 1
_ALIGNMENT = 32
_TYPES = {0: "F32", 1: "F16", 30: "BF16"}
_HALVES = (".loraA", ".loraB")
_MAX_NAME = 1024  # the buffer size in the 2023 reader
_MAX_INT = 2**31 - 1  # the largest r and alpha that the 2023 reader accepts


def write_ggla(path: Path, stored: Stored, *, july_2024: bool = False) -> list[str]:
    """Write `stored` atomically; return a line about changes that the format required, if any.

    `july_2024` selects the layout of the July 2024 version, which the 2023 versions refuse if a
    norm vector has a pair. Raises `UsageError` for LoRA on experts, `OutputError` if the file
    cannot be written, and `OverflowError` with the name of a tensor whose values would not be
    finite.
    """
    if routed := next((n for n, pair in stored.pairs.items() if pair.a.ndim > 2), ""):
        raise UsageError(
            f"a .bin file cannot store LoRA on experts, but {routed} has a pair: use .gguf"
        )
    alpha, r, notes = _header(stored)
    records, inexact = [], []
    for name in sorted(stored.pairs, key=tensor_index):
        pair = stored.pairs[name]
        b, exact = stored.scaled(name, alpha * pair.rank / r)
        inexact += [] if exact else [name]
        records += [(name + ".loraA", pair.a.T), (name + ".loraB", b)]
    with atomic_write(path) as file:
        file.write(MAGIC_BYTES + struct.pack("<III", _VERSION, r, alpha))
        at = 16
        for name, x in records:
            ne = [x.shape[1], x.shape[0]]
            if july_2024 and ne[1] == 1:
                ne = ne[:1]
            label = name.encode()
            head = struct.pack(f"<{3 + len(ne)}I", len(ne), len(label), 0, *ne) + label
            head += bytes(-(at + len(head)) % _ALIGNMENT)
            data = np.ascontiguousarray(x, "<f4")
            file.write(head)
            file.write(data.data)
            at += len(head) + data.nbytes
    if notes:
        return notes
    return rounded(inexact, "a .bin file stores one scale for all pairs")


def _header(stored: Stored) -> tuple[int, int, list[str]]:
    """Return alpha and r as integers with the same ratio, and a list of lines about changes.

    If the integers would be too large, `lora_r` is returned for both, and B must be rescaled.
    """
    alpha = Fraction(stored.alpha)
    top, bottom = alpha.numerator, stored.lora_r * alpha.denominator
    if max(top, bottom) <= _MAX_INT:
        return top, bottom, []
    line = (
        f"a .bin file stores alpha and r as whole numbers, but alpha is {stored.alpha:g}: every "
        "lora_b was rescaled to compensate, which rounded its values (relative error at most "
        "1.2e-7)"
    )
    return stored.lora_r, stored.lora_r, [line]


def read_ggla(path: Path) -> Stored:
    """Read a `.bin` adapter. Raises `CheckpointError` for a damaged or unsupported file."""
    halves: dict[str, list[np.ndarray | None]] = {}
    with Source(path) as f:
        magic, version, r, alpha = struct.unpack("<IIII", f.take(16, "header"))
        if magic != MAGIC or version != _VERSION:
            raise f.error("header", f"magic {magic:#x}, version {version}: not a .bin adapter")
        if not 1 <= r <= _MAX_INT or not 1 <= alpha <= _MAX_INT:
            raise f.error("header", f"alpha {alpha} and r {r} must be above 0 and below 2^31")
        while f.left:
            base, half, x = _record(f)
            pair_halves = halves.setdefault(base, [None, None])
            if pair_halves[half] is not None:
                raise f.error(f"tensor '{shown(base)}{_HALVES[half]}'", "appears twice")
            pair_halves[half] = x
        if not halves:
            raise f.error("file", "contains no pairs")
    pairs = {n: joined(path, n, None if a is None else a.T, b) for n, (a, b) in halves.items()}
    scale, lora_r, whole = alpha / r, r, float(alpha)
    if r > MAX_RANK:  # the writer converted a fraction to integers
        lora_r = max(pair.rank for pair in pairs.values())
        whole = alpha * lora_r / r
    alphas = {name: scale * pair.rank for name, pair in pairs.items()}
    return Stored(whole, lora_r, pairs, alphas, Base())


def _record(f: Source) -> tuple[str, int, np.ndarray]:
    """Return the next record's base tensor, half (0: loraA, 1: loraB) and values (n, rank)."""
    where = f"record at {f.at}"
    n_dims, length, kind = struct.unpack("<III", f.take(12, where))
    if n_dims not in (1, 2) or not 1 <= length <= _MAX_NAME or kind not in _TYPES:
        record = f"{n_dims} dimensions, name of {length} bytes, type {kind}"
        raise f.error(where, f"{record}: damaged, or of an unsupported kind")
    ne = struct.unpack(f"<{n_dims}I", f.take(4 * n_dims, where))
    label = f.take(length, where).decode("utf-8", "replace")
    base, half = label[:-6], label[-6:]
    where = f"tensor '{shown(label)}'"
    if half not in _HALVES:
        raise f.error(where, "neither .loraA nor .loraB")
    if min(ne) < 1:
        raise f.error(where, f"dimensions {ne}, but must be above 0")
    f.take(-f.at % _ALIGNMENT, where)
    shape = (ne[1] if n_dims == 2 else 1, ne[0])
    return base, _HALVES.index(half), f.floats(_TYPES[kind], shape, where)
