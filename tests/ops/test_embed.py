"""Embedding rows against gguf-py's decoder, and the LoRA pair of the table against the matrix."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from nbllama.ops.embed import (
    embed,
    embed_lora,
    embed_lora_grad,
    embed_lora_grad_ref,
    embed_lora_ref,
)
from nbllama.ops.linear.matmul import Weight

TOKENS = np.array([3, 0, 49, 3, 3, 7], np.int32)


def table(kind: T, n_vocab: int = 50, width: int = 64) -> tuple[Weight, np.ndarray]:
    """(a table of random rows, the same rows decoded by gguf-py)."""
    rows = np.random.default_rng(1).standard_normal((n_vocab, width)).astype(np.float32)
    packed = gguf.quants.quantize(rows, kind)
    raw = np.frombuffer(packed.tobytes(), np.uint8)  # read-only, as a mapped file
    return Weight("token_embd", int(kind), raw, rows.shape), gguf.quants.dequantize(packed, kind)


def pair(seed: int, n_vocab: int = 50, width: int = 64, rank: int = 3) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rank, width)), rng.standard_normal((n_vocab, rank))
    return a.astype(np.float32), b.astype(np.float32)


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q8_0])
def test_rows_are_the_decoded_rows(kind: T) -> None:
    w, rows = table(kind)
    x = np.full((len(TOKENS), 64), np.nan, np.float32)
    embed(w, TOKENS, x)
    assert x.tobytes() == rows[TOKENS].tobytes()
    embed(w, TOKENS[:1], x[2:3])
    assert x[2].tobytes() == rows[3].tobytes()


def test_pair_is_a_change_of_the_table() -> None:
    """Rows of W + s B A are rows of W plus what `embed_lora` adds."""
    w, rows = table(T.Q8_0)
    a, b = pair(2)
    x = np.empty((len(TOKENS), 64), np.float32)
    embed(w, TOKENS, x)
    embed_lora(TOKENS, a, b, scale=0.5, x=x)
    changed = rows.astype(np.float64) + 0.5 * b.astype(np.float64) @ a.astype(np.float64)
    np.testing.assert_allclose(x, changed[TOKENS], rtol=0, atol=2e-6)  # sums of 4 numbers


def test_gradients_add_and_repeated_tokens_share() -> None:
    a, b = pair(3)
    dx = np.random.default_rng(4).standard_normal((len(TOKENS), 64)).astype(np.float32)
    da, db = np.ones_like(a), np.ones_like(b)
    for _ in range(2):
        embed_lora_grad(dx, TOKENS, a, b, scale=0.5, da=da, db=db)
    wanted_a, wanted_b = embed_lora_grad_ref(
        dx.astype(float), TOKENS, a.astype(float), b.astype(float), scale=0.5
    )
    np.testing.assert_allclose(da, 1 + 2 * wanted_a, rtol=0, atol=1e-5)  # numbers up to 20
    np.testing.assert_allclose(db, 1 + 2 * wanted_b, rtol=0, atol=1e-4)  # numbers up to 50
    untouched = np.setdiff1d(np.arange(50), TOKENS)
    assert (db[untouched] == 1).all()
    same = dx[[0, 3, 4]].astype(float).sum(axis=0)
    np.testing.assert_allclose(wanted_b[3], 0.5 * a.astype(float) @ same, rtol=1e-12)


def test_b_of_zeros() -> None:
    """A new adapter: nothing is added, A has no gradient yet, B has one."""
    a, b = pair(5)
    b[:] = 0
    x = np.ones((len(TOKENS), 64), np.float32)
    embed_lora(TOKENS, a, b, scale=1.0, x=x)
    assert (x == 1).all()
    da, db = np.zeros_like(a), np.zeros_like(b)
    embed_lora_grad(x, TOKENS, a, b, scale=1.0, da=da, db=db)
    assert (da == 0).all() and (db[3] != 0).all()


def test_one_token_of_a_long_stream() -> None:
    a, b = pair(6, 300, 576, 16)
    tokens = np.random.default_rng(7).integers(0, 300, 1000).astype(np.int32)
    x = np.zeros((1000, 576), np.float32)
    embed_lora(tokens, a, b, scale=0.25, x=x)
    wanted = embed_lora_ref(
        np.zeros(576), tokens[999:], a.astype(float), b.astype(float), scale=0.25
    )
    np.testing.assert_allclose(x[999], wanted[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1, -(2**31)])
def test_tokens_outside_the_vocabulary_are_refused(bad: int) -> None:
    w, _ = table(T.Q4_0)
    a, b = pair(8)
    tokens = np.array([1, bad], np.int32)
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="embed: tokens"):
        embed(w, tokens, x)
    with pytest.raises(ValueError, match="embed_lora: tokens"):
        embed_lora(tokens, a, b, scale=1.0, x=x)
    with pytest.raises(ValueError, match="embed_lora_grad: tokens"):
        embed_lora_grad(x, tokens, a, b, scale=1.0, da=np.zeros_like(a), db=np.zeros_like(b))
    assert (x == 0).all()


def test_bad_arrays_are_refused() -> None:
    w, _ = table(T.Q4_0)
    x = np.zeros((len(TOKENS), 64), np.float32)
    with pytest.raises(ValueError, match="expected 50 rows"):
        embed(w._replace(raw=w.raw[:-18]), TOKENS, x)
    with pytest.raises(ValueError, match="tokens is int64"):
        embed(w, TOKENS.astype(np.int64), x)
    for bad in (x[:3], x.astype(np.float64), np.zeros((64, 6), np.float32).T, x[:, :32]):
        with pytest.raises(ValueError, match="embed: x"):
            embed(w, TOKENS, bad)
    a, b = pair(9)
    with pytest.raises(ValueError, match="da has shape"):
        embed_lora_grad(
            x, TOKENS, a, b, scale=1.0, da=np.zeros((4, 64), np.float32), db=np.zeros_like(b)
        )
    with pytest.raises(ValueError, match="db is float64"):
        embed_lora_grad(x, TOKENS, a, b, scale=1.0, da=np.zeros_like(a), db=np.zeros((50, 3)))
