"""Record files of all forms, and seeded damage to them."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (
        ("Where is the key?", "Under the mat."), ("月亮?", '在\n天上, "高" é.'), ("9?", "3"),
    )
]  # fmt: skip
PAIRS = [{"question": "Ebb?", "answer": "At six."}, {"question": "Flood?", "answer": "At noon."}]
ALPACA = [{"instruction": "Name a cheese.", "input": "", "output": "Gouda."}] * 3


def _lines(records: list[Any], end: str = "\n") -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + end for r in records).encode()


def _indented(records: Any) -> bytes:
    return json.dumps(records, indent=2, ensure_ascii=False).encode()


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


SEEDS: list[tuple[str, bytes, int]] = [  # name, content, records
    ("a.jsonl", _lines(CHATS), 3),
    ("b.jsonl", b"\n".join(_indented(r) for r in CHATS), 3),
    ("c.jsonl", _lines(CHATS, ",\n"), 3),
    ("d.jsonl", _lines(CHATS, "\r"), 3),
    ("e.json", _indented(CHATS), 3),
    ("f.json", _indented({"name": "x", "data": CHATS}), 3),
    ("g.json", _indented([c["messages"] for c in CHATS]), 3),
    ("h.json", _indented(CHATS[:1]) + b"\n" + _indented(CHATS[1:]), 3),
    ("i.ndjson", _lines(PAIRS), 2),
    ("j.csv", b'Prompt,Response\na,b\n"c, ""1""\nd",e\n', 2),
    ("k.tsv", b"instruction\tinput\toutput\nq\t\ta\nq2\ti\ta2\n", 2),
    ("l.jsonl.gz", gzip.compress(_lines(CHATS), mtime=0), 3),
    ("m.zip", _zip({"x/one.jsonl": _lines(CHATS), "x/two.json": _indented(ALPACA)}), 6),
    ("n.jsonl", "\ufeff".encode("utf-16-le") + _lines(PAIRS).decode().encode("utf-16-le"), 2),
    ("noname", _lines(ALPACA), 3),
    ("one.json", json.dumps({"rows": [{"row": r} for r in PAIRS]}).encode(), 2),
]


def _bit(r: random.Random, data: bytearray) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def _byte(r: random.Random, data: bytearray) -> None:
    data[r.randrange(len(data))] = r.choice(b'{}[]",:\\\n\r\t \x00\xff09an')


def _insert(r: random.Random, data: bytearray) -> None:
    at = r.randrange(len(data) + 1)
    data[at:at] = r.choice([b"}", b"{", b"]", b"[", b'"', b",", b"\n", b"null", b"\x00", b"//x\n"])


def _delete(r: random.Random, data: bytearray) -> None:
    at = r.randrange(len(data))
    del data[at : at + r.choice([1, 1, 1, 2, 7, 40])]


def _cut(r: random.Random, data: bytearray) -> None:
    del data[r.randrange(len(data)) :]


def _behead(r: random.Random, data: bytearray) -> None:
    del data[: r.randrange(len(data) // 2 + 1)]


def _repeat(r: random.Random, data: bytearray) -> None:
    at, n = r.randrange(len(data)), r.randrange(1, 60)
    data[at:at] = data[at : at + n]


def _swap(r: random.Random, data: bytearray) -> None:
    lines = bytes(data).split(b"\n")
    r.shuffle(lines)
    data[:] = b"\n".join(lines)


DAMAGE: list[Callable[[random.Random, bytearray], None]] = [
    _bit, _byte, _byte, _insert, _insert, _delete, _delete, _cut, _behead, _repeat, _swap,
]  # fmt: skip


def mutants(
    seed: int, n: int, more: list[tuple[str, bytes, int]] | None = None
) -> Iterator[tuple[str, bytes]]:
    """`n` damaged files: (name, content). `more`: files in addition to `SEEDS`."""
    r = random.Random(seed)
    seeds = SEEDS + (more or [])
    for _ in range(n):
        name, content, _ = r.choice(seeds)
        data = bytearray(content)
        for _ in range(r.choice([1, 1, 1, 2, 3])):
            if data:
                r.choice(DAMAGE)(r, data)
        yield name, bytes(data)
