"""Seeded files: valid ones made of atoms, and format-aware mutations of the atoms."""

from __future__ import annotations

import random

from tests.gguf_io.build import ARRAY, BLOCKS, BOOL, STRING, u32, u64

SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
INTERESTING = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 31, 32, 33, 63, 64, 65, 255, 256, 4096, 65535]
INTERESTING += [65536, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62 - 1, 2**62]
INTERESTING += [2**63 - 1, 2**63, 2**64 - 2**20, 2**64 - 64, 2**64 - 32, 2**64 - 1]
KEYS = ["general.architecture", "general.alignment", "split.count", "tokenizer.ggml.tokens"]


def _payload(rng: random.Random, kind: int) -> bytes:
    size = SCALAR_SIZES[kind]
    return bytes([rng.randrange(2)]) if kind == BOOL else rng.randbytes(size)


def _key_value(rng: random.Random, i: int) -> list[bytes]:
    key = (rng.choice(KEYS) if rng.random() < 0.2 else f"key.{i}").encode()
    atoms = [u64(len(key)), key]
    if key == b"general.alignment":
        return [*atoms, u32(4), u32(32)]
    kind = rng.choice([*SCALAR_SIZES, STRING, STRING, ARRAY, ARRAY])
    atoms.append(u32(kind))
    if kind == STRING:
        text = rng.choice(["", "x", "{% if x %}", "é" * rng.randrange(20)]).encode()
        return [*atoms, u64(len(text)), text]
    if kind != ARRAY:
        return [*atoms, _payload(rng, kind)]
    element = rng.choice([*SCALAR_SIZES, STRING])
    count = rng.randrange(6)
    atoms += [u32(element), u64(count)]
    for _ in range(count):
        if element == STRING:
            text = rng.randbytes(rng.randrange(6))
            atoms += [u64(len(text)), text]
        else:
            atoms.append(_payload(rng, element))
    return atoms


def _padded(n: int) -> int:
    return -(-n // 32) * 32


def valid_atoms(rng: random.Random) -> tuple[list[bytes], list[bytes]]:
    """A random valid file: the atoms of the header, and those of the data."""
    used: set[bytes] = set()
    keys: list[list[bytes]] = []
    for i in range(rng.randrange(6)):
        entry = _key_value(rng, i)
        if entry[1] not in used and entry[1] != b"split.count":
            used.add(entry[1])
            keys.append(entry)
    records: list[bytes] = []
    data: list[bytes] = []
    n_tensors = rng.randrange(5)
    offset = 0
    for i in range(n_tensors):
        name = f"blk.{i}.{rng.choice(['attn_q', 'ffn_up'])}.weight".encode()
        kind = rng.choice([t for t in BLOCKS if BLOCKS[t][0] <= 32])
        block, size = BLOCKS[kind]
        ne = [block * rng.randrange(1, 4)]
        ne += [rng.randrange(1, 4) for _ in range(rng.randrange(4))]
        n = 1
        for d in ne:
            n *= d
        records += [u64(len(name)), name, u32(len(ne)), *map(u64, ne), u32(kind), u64(offset)]
        body = rng.randbytes(n // block * size)
        padding = bytes(_padded(len(body)) - len(body))
        data += [body, padding if i + 1 < n_tensors or rng.random() < 0.7 else b""]
        offset += _padded(len(body))
    header = [b"GGUF", u32(rng.choice([2, 3, 3])), u64(n_tensors), u64(len(keys))]
    return header + [a for entry in keys for a in entry] + records, data


def join(header: list[bytes], data: list[bytes]) -> bytes:
    """The file, with the padding that the header's length now asks for."""
    head = b"".join(header)
    return head + bytes(-len(head) % 32) + b"".join(data)


def _mutate_atom(rng: random.Random, atom: bytes) -> bytes:
    if len(atom) in (4, 8) and rng.random() < 0.7:
        value = int.from_bytes(atom, "little")
        value = rng.choice([rng.choice(INTERESTING), value + 1, value - 1, value * 2, value ^ 1])
        return (value % (1 << (8 * len(atom)))).to_bytes(len(atom), "little")
    if not atom:
        return rng.randbytes(rng.randrange(3))
    at = rng.randrange(len(atom))
    return atom[:at] + bytes([atom[at] ^ (1 << rng.randrange(8))]) + atom[at + 1 :]


def mutated(rng: random.Random) -> bytes:
    """A valid file with one to three faults; sometimes none."""
    header, data = valid_atoms(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        i = rng.randrange(len(header))
        match rng.randrange(8):
            case 0:
                del header[i]
            case 1:
                header.insert(i, header[i])
            case 2:
                j = rng.randrange(len(header))
                header[i], header[j] = header[j], header[i]
            case 3 if data:
                j = rng.randrange(len(data))
                data[j] = data[j][: rng.randrange(len(data[j]) + 1)]
            case _:
                header[i] = _mutate_atom(rng, header[i])
        if not header:
            header = [b"GGUF"]
    out = join(header, data)
    match rng.randrange(12):
        case 0:
            out = out[: rng.randrange(len(out) + 1)]
        case 1:
            out += rng.randbytes(rng.randrange(40))
    return out
