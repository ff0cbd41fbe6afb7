"""`decode_blocks` inside kernels: which decoder, which bits, and the cache between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbllama.kernels.jit import kernel
from nbllama.quants import DECODERS, decode_blocks
from tests.quants.blocks import assert_same_bits, random_blocks, reference

Q4_1 = 3


@kernel()
def _literal(raw, out):
    decode_blocks(2, raw, 0, out.shape[0] // 32, out, 0)


@kernel()
def _global_constant(raw, out):
    decode_blocks(Q4_1, raw, 0, out.shape[0] // 32, out, 0)


@kernel()
def _unsigned_offsets(raw, out):
    for b in range(out.shape[0] // 32):
        i = np.uint64(b)
        decode_blocks(2, raw, i * np.uint64(18), np.uint32(1), out, i * np.uint64(32))


@kernel()
def _not_literal(type_id, raw, out):
    decode_blocks(type_id, raw, 0, 1, out, 0)


@kernel()
def _unknown(raw, out):
    decode_blocks(15, raw, 0, 1, out, 0)


@pytest.mark.parametrize(
    "entry, type_id", [(_literal, 2), (_global_constant, Q4_1), (_unsigned_offsets, 2)]
)
def test_the_literal_picks_the_decoder(entry, type_id: int) -> None:
    raw = random_blocks(type_id, 8)
    out = np.empty(256, np.float32)
    entry(raw, out)
    assert_same_bits(out, reference(type_id, raw))
    # offsets of any integer type are int64 in the decoder
    assert {str(s[i]) for s in DECODERS[type_id].signatures for i in (1, 2, 4)} <= {"int64"}
    out[:] = 0
    decode_blocks(type_id, raw, 0, 8, out, 0)
    assert_same_bits(out, reference(type_id, raw))


def test_types_must_be_known_when_compiling() -> None:
    out = np.empty(256, np.float32)
    with pytest.raises(Exception, match="literal integer"):
        _not_literal(2, random_blocks(2, 1), out)
    with pytest.raises(Exception, match="no decoder for weight type 15"):
        _unknown(random_blocks(2, 1), out)
    assert 15 not in DECODERS


# Run in separate processes: a parallel kernel with relaxed arithmetic is the first to compile the
# decoders, as in a matmul. Their own arithmetic must stay strict, and a second process must find
# everything in the cache.
PROGRAM = """
import sys
import numpy as np
from numba import prange
from nbllama.kernels.jit import kernel
from nbllama.quants import DECODERS, decode, decode_blocks
from tests.quants.blocks import QUANTS, random_blocks, reference

Q5_1 = 7

@kernel(parallel=True, fast=True)
def tiles(raw, n_blocks, out):
    for tile in prange(4):
        decode_blocks(12, raw, tile * n_blocks * 144, n_blocks, out, tile * n_blocks * 256)

@kernel(fast=True)
def whole(raw, n_blocks, out):
    decode_blocks(Q5_1, raw, 0, n_blocks, out, 0)
    out[0] = out[0] * np.float32(1)

raw = random_blocks(12, 40)
out = np.empty(40 * 256, np.float32)
tiles(raw, 10, out)
assert (out.view(np.int32) == reference(12, raw).view(np.int32)).all()
raw = random_blocks(7, 40)
out = np.empty(40 * 32, np.float32)
whole(raw, 40, out)
assert (out.view(np.int32) == reference(7, raw).view(np.int32)).all()
decode(8, random_blocks(8, 2), 64)
used = [tiles, whole, DECODERS[12], DECODERS[7], DECODERS[8]]
print(sum(sum(k.stats.cache_misses.values()) for k in used))
print(sum(sum(k.stats.cache_hits.values()) for k in used))
"""


def _run(program: Path, cache: Path) -> tuple[int, int]:
    env = dict(os.environ, NBLLAMA_CACHE_DIR=str(cache))
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(program)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    misses, hits = done.stdout.split()
    return int(misses), int(hits)


def test_second_process_compiles_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    cache = tmp_path / "cache"
    misses, hits = _run(program, cache)
    assert misses >= 5 and hits == 0

    def files() -> dict[str, tuple[int, int]]:
        stats = {str(p): p.stat() for p in cache.rglob("*.kernel")}
        return {name: (s.st_mtime_ns, s.st_size) for name, s in stats.items()}

    before = files()
    assert len(before) >= 5
    misses, hits = _run(program, cache)
    assert misses == 0 and hits >= 3
    assert files() == before
