"""Attention of a few queries over many keys, as in generation, against the reference."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from nbllama.ops.attention.attention import alibi_slopes, attention, attention_ref
from nbllama.ops.attention.few import CHUNK, MOST_QUERIES


def run(
    n: int,
    heads: int,
    kv: int,
    d: int,
    keys: int,
    window: int = 0,
    cap: float = 0.0,
    bias: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel output, its lse, and the reference's output."""
    rng = np.random.default_rng(keys)
    q = rng.standard_normal((n, heads, d)).astype(np.float32)
    k, v = (rng.standard_normal((keys, kv, d)).astype(np.float32) for _ in range(2))
    q_off, k_off = np.array([0, n], np.int32), np.array([0, keys], np.int32)
    slopes, o, lse = alibi_slopes(heads, bias), np.empty_like(q), np.empty((n, heads), np.float32)
    attention(
        q,
        k,
        v,
        q_offsets=q_off,
        k_offsets=k_off,
        scale=d**-0.5,
        slopes=slopes,
        o=o,
        lse=lse,
        window=window,
        cap=cap,
    )
    wide = [x.astype(np.float64) for x in (q, k, v)]
    want = attention_ref(
        wide[0],
        wide[1],
        wide[2],
        q_offsets=q_off,
        k_offsets=k_off,
        scale=d**-0.5,
        slopes=slopes,
        window=window,
        cap=cap,
    )
    return o, lse, want


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 9, 3, 64, 300, 0, 0, 0),
        (MOST_QUERIES, 6, 2, 66, 2 * CHUNK + 3, 0, 0, 8),
        (3, 4, 4, 5, 3, 0, 0, 0),
        (3, 4, 1, 32, 2 * CHUNK + 1, 100, 5.0, 0),
        (1, 2, 1, 8, 1, 0, 0, 0),
        (1, 2, 2, 8, CHUNK, 0, 0, 0),
        (4, 2, 1, 8, CHUNK + 2, 3, 0, 0),
        (2, 2, 1, 8, 3 * CHUNK, CHUNK, 0, 0),
    ],
)
def test_few_queries_equal_the_reference(sizes: Any) -> None:
    o, lse, want = run(*sizes)
    assert np.abs(o - want).max() < 1e-6
    assert np.isfinite(lse).all()


def test_same_bits_at_any_number_of_threads() -> None:
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        alone = run(2, 6, 2, 64, 3 * CHUNK)
    finally:
        numba.set_num_threads(before)
    for a, b in zip(alone, run(2, 6, 2, 64, 3 * CHUNK), strict=True):
        np.testing.assert_array_equal(a, b)


def test_few_and_many_queries_meet() -> None:
    """One more query uses the other kernel: common rows and their lse agree."""
    rng = np.random.default_rng(0)
    n, keys = MOST_QUERIES + 1, 400
    q = rng.standard_normal((n, 4, 16)).astype(np.float32)
    k, v = (rng.standard_normal((keys, 2, 16)).astype(np.float32) for _ in range(2))
    slopes, outs = alibi_slopes(4, 0), []
    for part in (q, q[1:]):
        o, lse = np.empty_like(part), np.empty(part.shape[:2], np.float32)
        q_off, k_off = np.array([0, len(part)], np.int32), np.array([0, keys], np.int32)
        attention(
            np.ascontiguousarray(part),
            k,
            v,
            q_offsets=q_off,
            k_offsets=k_off,
            scale=0.25,
            slopes=slopes,
            o=o,
            lse=lse,
        )
        outs.append((o, lse))
    for many, few in zip(*outs, strict=True):
        np.testing.assert_allclose(many[1:], few, atol=2e-6)
