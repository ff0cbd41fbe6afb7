"""Token embedding: look up rows in a quantised table, and add the output of its LoRA pair.

    x[n]  = W[tok[n]]                           rows decoded from the GGUF bytes
    x[n] += s B[tok[n]] A                       LoRA: one row of B, all of A

The base model is frozen, so only the pair has gradients:

    dB[v] += s sum over n with tok[n] = v of A dx[n]        dA += s sum_n B[tok[n]]^T dx[n]

W is an undecoded matrix `[V, C]`, and tok is int32 `[N]`. x and dx are `[N, C]`, A is `[R, C]`, and
B is `[V, R]`, all float32. In memory, the pair for token_embd has the same layout as every other
pair, although GGUF adapters store its A and B swapped. The gradient needs only tok from the forward
pass. Sums over tokens are computed in ascending order.

Source: Hu et al., "LoRA" (2021). llama.cpp: `ggml_get_rows`, `ggml_get_rows_back`,
`llm_graph_context::build_inp_embd`. finetune.cpp calls the tensors t00 and t01.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL
from nbllama.ops.linear.lora import outer_product, packed_rows
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.linear.panels import n_panels
from nbllama.ops.op import (
    Gradients,
    Inputs,
    Op,
    check_array,
    check_output,
    copy_as_laid_out,
    readonly,
)
from nbllama.quants import DECODERS, as_readonly, nbytes, quant_type


def embed_lora_ref(
    x: np.ndarray, tokens: np.ndarray, a: np.ndarray, b: np.ndarray, *, scale: float
) -> np.ndarray:
    """Compute x + s B[tok] A in plain numpy, in the dtype of x."""
    return x + scale * b[tokens] @ a


def embed_lora_grad_ref(
    dx: np.ndarray, tokens: np.ndarray, a: np.ndarray, b: np.ndarray, *, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients (dA, dB) of `embed_lora_ref`; the gradient with respect to x is dx."""
    db = np.zeros_like(b)
    np.add.at(db, tokens, scale * dx @ a.T)
    return scale * b[tokens].T @ dx, db


@kernel(parallel=True)
def _lora(tokens, a, b, scale, x):
    for n in prange(x.shape[0]):
        for r in range(a.shape[0]):
            _add_scaled(scale * b[tokens[n], r], a[r], x[n])


@kernel(fast=True)
def _add_scaled(factor, row, out):
    for c in range(out.shape[0]):
        out[c] += factor * row[c]


@kernel(fast=True)
def _dot(u, v):
    total = np.float32(0.0)
    for c in range(u.shape[0]):
        total += u[c] * v[c]
    return total


@kernel(parallel=True)
def _project(dx, a, scale, projected):
    for n in prange(dx.shape[0]):
        for r in range(a.shape[0]):
            projected[n, r] = scale * _dot(dx[n], a[r])


@kernel()
def _scatter(projected, tokens, db):
    # Equal tokens share a row of dB, so a single thread adds all rows, in token order.
    for n in range(projected.shape[0]):
        for r in range(projected.shape[1]):
            db[tokens[n], r] += projected[n, r]


def embed(w: Weight, tokens: np.ndarray, x: np.ndarray) -> None:
    """Decode the rows `tokens` (int32 `[N]`) of the table `w` `[V, C]` into x `[N, C]`.

    Raises ValueError for mismatched arrays or a token outside 0 .. V-1.
    """
    n_vocab, width = w.shape
    row_bytes = nbytes(w.type_id, width)
    raw = as_readonly(w.raw)
    if raw.size != n_vocab * row_bytes:
        raise ValueError(
            f"{w.name} has {raw.size} bytes, expected {n_vocab} rows of {row_bytes} bytes"
        )
    _check_tokens("embed", tokens, n_vocab)
    check_output("embed", "x", x, (len(tokens), width))
    decode, n_blocks = DECODERS[w.type_id], width // quant_type(w.type_id).block_size
    flat = x.reshape(-1)
    for n, token in enumerate(tokens.tolist()):
        decode(raw, token * row_bytes, n_blocks, flat, n * width)


def embed_lora(
    tokens: np.ndarray, a: np.ndarray, b: np.ndarray, *, scale: float, x: np.ndarray
) -> None:
    """Add scale * B[tokens] A to x `[N, C]`, with A `[R, C]` and B `[V, R]`.

    Raises ValueError for mismatched arrays or a token outside 0 .. V-1.
    """
    _check_pair("embed_lora", tokens, a, b)
    check_output("embed_lora", "x", x, (len(tokens), a.shape[1]))
    _lora(readonly(tokens), readonly(a), readonly(b), np.float32(scale), x)


def embed_lora_grad(
    dx: np.ndarray,
    tokens: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    *,
    scale: float,
    da: np.ndarray,
    db: np.ndarray,
) -> None:
    """Add the pair's gradients for a given dx `[N, C]` to da `[R, C]` and db `[V, R]`.

    Raises ValueError for mismatched arrays or a token outside 0 .. V-1.
    """
    _check_pair("embed_lora_grad", tokens, a, b)
    check_array("embed_lora_grad", "dx", dx, (len(tokens), a.shape[1]))
    check_output("embed_lora_grad", "da", da, a.shape)
    check_output("embed_lora_grad", "db", db, b.shape)
    dx, tokens, factor = readonly(dx), readonly(tokens), np.float32(scale)
    projected = np.empty((len(tokens), len(a)), np.float32)
    _project(dx, readonly(a), factor, projected)
    _scatter(readonly(projected), tokens, db)
    da += outer_product(_packed(factor * b[tokens]), dx, len(a))


def _packed(h: np.ndarray) -> np.ndarray:
    """Return h `[N, R]` packed into the panels `[P, R6, PANEL]` that `outer_product` reads."""
    n, rank = h.shape
    lanes = np.zeros((n_panels(n) * PANEL, packed_rows(rank)), np.float32)
    lanes[:n, :rank] = h
    return np.ascontiguousarray(lanes.reshape(-1, PANEL, packed_rows(rank)).transpose(0, 2, 1))


def _check_tokens(op: str, tokens: np.ndarray, n_vocab: int) -> None:
    check_array(op, "tokens", tokens, np.shape(tokens)[:1], dtype=np.int32)
    if tokens.size and (tokens.min() < 0 or tokens.max() >= n_vocab):
        raise ValueError(
            f"{op}: tokens range from {tokens.min()} to {tokens.max()}, expected 0..{n_vocab - 1}"
        )


def _check_pair(op: str, tokens: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    if np.ndim(a) != 2 or np.ndim(b) != 2:
        raise ValueError(
            f"{op}: A has shape {np.shape(a)}, expected [R, C], and B has shape {np.shape(b)}, "
            f"expected [V, R]"
        )
    check_array(op, "a", a, a.shape)
    check_array(op, "b", b, (b.shape[0], a.shape[0]))
    _check_tokens(op, tokens, b.shape[0])


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    n, c, v, r = {
        "tiny": (4, 3, 3, 2),
        "one": (1, 64, 50, 4),
        "odd": (37, 101, 20, 3),
        "wide": (130, 576, 1000, 16),
    }[size]
    return {
        "x": rng.standard_normal((n, c)).astype(dtype),
        "tokens": rng.integers(0, v, n).astype(np.int32),
        "a": rng.standard_normal((r, c)).astype(dtype),
        "b": rng.standard_normal((v, r)).astype(dtype),
        "scale": 0.75,
    }


def _forward(x: np.ndarray, **pair: Any) -> np.ndarray:
    out = copy_as_laid_out(x)
    embed_lora(x=out, **pair)
    return out


def _gradients(
    dx: np.ndarray, x: np.ndarray, tokens: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float
) -> Gradients:
    da, db = np.zeros_like(a), np.zeros_like(b)
    embed_lora_grad(dx, tokens, a, b, scale=scale, da=da, db=db)
    return {"x": dx, "a": da, "b": db}


def _gradients_ref(dx: np.ndarray, x: np.ndarray, **pair: Any) -> Gradients:
    da, db = embed_lora_grad_ref(dx, **pair)
    return {"x": dx, "a": da, "b": db}


OPS = (
    Op(
        name="embed_lora",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=embed_lora_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=1e-6,
        why="float32 sums of up to 576 products",
        ggml="ggml_get_rows(B, tokens), ggml_mul_mat with A, ggml_scale, ggml_add",
    ),
)
