"""Open files with demanding headers, and print the cost of each; run as a child process.

    python -m tests.gguf_io.heavy FOLDER

prints one JSON line per file: name, message ("" if it loads), CPU seconds of the fastest of three
attempts, peak resident set in bytes of the first attempt above the one before it. A busy machine
can double the CPU time of a single attempt.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nbllama.errors import GGUFError
from nbllama.gguf_io import limits, open_gguf
from tests.gguf_io.build import (
    F32,
    F64,
    STRING,
    U8,
    Gguf,
    kv,
    kv_array,
    kv_str,
    kv_u32,
    string,
    u32,
    u64,
)
from tests.gguf_io.cases import CASES

MIB = 1 << 20
DANGEROUS = "G08 G09 G14 G15 G22 G24 G25 G27 G28 G40 G43 G44 G45 G46 G47 G51 G52".split()
Build = Callable[[Path], None]


def _bytes(make: Callable[[], bytes]) -> Build:
    def write(path: Path) -> None:
        path.write_bytes(make())

    return write


def _sparse(make: Callable[[], bytes], size: int) -> Build:
    """`make()` and then zeros up to `size`, which take no room on most file systems."""

    def write(path: Path) -> None:
        path.write_bytes(make())
        os.truncate(path, size)

    return write


def _open_array(kind: int, count: int, first: bytes = b"") -> Callable[[], bytes]:
    return lambda: Gguf(kvs=(kv_array("x", kind, count, first),), n_kv=2).header()


def _many_tensors(n: int) -> bytes:
    records = b"".join(
        string(f"blk.{i}.x") + u32(1) + u64(1) + u32(24) + u64(32 * i) for i in range(n)
    )
    head = b"GGUF" + u32(3) + u64(n) + u64(0) + records
    return head + bytes(-len(head) % 32) + bytes(32 * n)


def heavy_files() -> Iterator[tuple[str, Build]]:
    """At the limits, just beyond them, and far beyond them in files that are really that large."""
    n = limits.MAX_ARRAY_STRINGS
    yield "strings-at-limit", _bytes(Gguf(kvs=(kv_array("x", STRING, n, u64(0) * n),)).build)
    yield "strings-over", _sparse(_open_array(STRING, n + 1), 20 << 30)
    yield "string-of-10-GiB", _sparse(_open_array(STRING, 2, u64(10 << 30)), 20 << 30)
    half = (kv_array("x", U8, 32 * MIB, bytes(32 * MIB)), kv_array("y", F32, 0, b""))
    yield "numbers-32-MiB", _bytes(Gguf(kvs=half).build)
    yield "numbers-8-GiB", _sparse(_open_array(F64, 1 << 30), 20 << 30)
    yield "numbers-64-MiB", _sparse(_open_array(U8, 64 * MIB), 20 << 30)
    wide = "x" * (16 * MIB - 100) + "\U0001f600"
    yield "text-at-limit", _bytes(Gguf(kvs=(kv_str("x", wide),)).build)
    full = (kv_str("x", wide), kv_array("y", U8, 31 * MIB, bytes(31 * MIB)))
    yield "everything-at-limit", _bytes(Gguf(kvs=full).build)
    yield "text-over", _bytes(Gguf(kvs=(kv_str("x", wide), kv_str("y", "z" * 200))).build)
    keys = tuple(kv_u32(f"key.{i}", i) for i in range(limits.MAX_KV))
    yield "keys-at-limit", _bytes(Gguf(kvs=keys).build)
    yield "keys-over", _bytes(Gguf(kvs=(*keys, kv("z", U8, b"\0"))).build)
    yield (
        "keys-of-64-KiB",
        _bytes(Gguf(kvs=tuple(kv_u32("k" * 65_000 + str(i), i) for i in range(300))).build),
    )
    yield "tensors-at-limit", _bytes(lambda: _many_tensors(limits.MAX_TENSORS))
    yield "tensors-over", _bytes(lambda: _many_tensors(limits.MAX_TENSORS + 1))
    head = b"GGUF" + struct.pack("<I", 3)
    yield "zeros-keys", _sparse(lambda: head + u64(0) + u64(limits.MAX_KV), 20 << 30)
    yield "zeros-tensors", _sparse(lambda: head + u64(limits.MAX_TENSORS) + u64(0), 20 << 30)
    yield "zeros-nothing", _sparse(lambda: head + u64(0) + u64(0), 20 << 30)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _open(path: Path) -> tuple[str, float]:
    """The error message of opening `path`, "" if there is none, and the CPU seconds."""
    began = time.process_time()
    try:
        open_gguf(path).close()
        message = ""
    except GGUFError as e:
        message = str(e)
    return message, time.process_time() - began


def main(folder: Path) -> None:
    files: list[tuple[str, Build]] = list(heavy_files())
    files += [(name, _bytes(make)) for name, make, _ in CASES if name[:3] in DANGEROUS]
    path = folder / "f.gguf"
    for name, write in files:
        pid = os.fork()  # building the file must not count
        if pid == 0:
            write(path)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, name
        read, send = os.pipe()
        if os.fork() == 0:
            before = _peak()
            message, seconds = _open(path)
            peak = _peak() - before
            cost = [name, message, min(seconds, _open(path)[1], _open(path)[1]), peak]
            os.write(send, json.dumps(cost).encode() + b"\n")
            os._exit(0)
        os.close(send)
        with open(read, encoding="utf-8") as answer:
            print(answer.read(), end="", flush=True)
        os.wait()
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
