"""Attention sinks: each head has a learned score that enters the softmax but has no value vector.

    p[j] = exp(s[j]) / (sum_j exp(s[j]) + exp(sink[h]))

A sink lets a head attend to nothing. `attention` computes o and lse without the sink; then

    lse' = log(exp(lse) + exp(sink))          o' = o exp(lse - lse')

The gradient is computed as in `nbllama.ops.attention.grad`, but with o' and lse'. Recomputing p
from lse' yields the p above. The sink has no value vector, so delta = do . o' is still the sum of
p[j] (do . v[j]). The sinks are frozen.

o is `[N, H, D]`, lse is `[N, H]`, and sinks is `[H]`, all float32. o and lse are modified in place.

Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2023); gpt-oss.
llama.cpp: `ggml_soft_max_add_sinks`, `ggml_flash_attn_ext_add_sinks`. finetune.cpp does not support
sinks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.ops.attention.attention import (
    alibi_slopes,
    attention,
    attention_grad_ref,
    attention_ref,
)
from nbllama.ops.attention.grad import attention_grad
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

_ONE = np.float32(1.0)


@kernel()
def sink_factor(lse, sink):
    """Return exp(lse - lse') and lse' for one query and head."""
    top = lse if lse > sink else sink
    both = top + np.float32(math.log(math.exp(lse - top) + math.exp(sink - top)))
    return np.float32(math.exp(lse - both)), both


@kernel(parallel=True)
def _add_sinks(o, lse, sinks):
    for n in prange(o.shape[0]):
        for h in range(o.shape[1]):
            factor, lse[n, h] = sink_factor(lse[n, h], sinks[h])
            for d in range(o.shape[2]):
                o[n, h, d] *= factor


def add_sinks(o: np.ndarray, lse: np.ndarray, sinks: np.ndarray) -> None:
    """Apply the sinks `[H]` in place to o `[N, H, D]` and lse `[N, H]`, computed by `attention`.

    Raises ValueError for mismatched arrays.
    """
    if np.ndim(o) != 3:
        raise ValueError(f"add_sinks: o has shape {np.shape(o)}, expected [N, H, D]")
    check_output("add_sinks", "o", o, o.shape)
    check_output("add_sinks", "lse", lse, o.shape[:2])
    check_array("add_sinks", "sinks", sinks, o.shape[1:2])
    _add_sinks(o, lse, readonly(sinks))


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    lengths, h, g, d = {
        "tiny": ((1, 4), 4, 2, 3),
        "one": ((1,), 3, 1, 32),
        "odd": ((7, 1, 55), 6, 3, 33),
    }[size]
    n = sum(lengths)
    return {
        "q": rng.standard_normal((n, h, d)).astype(dtype),
        "k": rng.standard_normal((n, g, d)).astype(dtype),
        "v": rng.standard_normal((n, g, d)).astype(dtype),
        "offsets": np.cumsum((0, *lengths), dtype=np.int32),
        "sinks": tuple(rng.standard_normal(h)),
    }


def _constants(q: np.ndarray) -> dict[str, Any]:
    return {"scale": 1 / math.sqrt(q.shape[2]), "slopes": alibi_slopes(q.shape[1], 0)}


def _attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, offsets: np.ndarray, sinks: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    o, lse = np.empty_like(q, order="C"), np.empty(q.shape[:2], np.float32)
    both: dict[str, Any] = {"q_offsets": offsets, "k_offsets": offsets}
    attention(q, k, v, **both, **_constants(q), o=o, lse=lse)
    add_sinks(o, lse, np.array(sinks, np.float32))
    return o, lse


def _gradients(
    dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, offsets: np.ndarray,
    sinks: tuple[float, ...],
) -> Gradients:  # fmt: skip
    o, lse = _attend(q, k, v, offsets, sinks)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    more = _constants(q) | {"o": o, "lse": lse, "offsets": offsets}
    attention_grad(dy, q, k, v, **more, dq=dq, dk=dk, dv=dv)
    return {"q": dq, "k": dk, "v": dv}


def _forward_ref(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, offsets: np.ndarray, sinks: tuple[float, ...]
) -> np.ndarray:
    both: dict[str, Any] = {"q_offsets": offsets, "k_offsets": offsets}
    return attention_ref(q, k, v, **both, **_constants(q), sinks=np.array(sinks))


def _gradients_ref(
    dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, offsets: np.ndarray,
    sinks: tuple[float, ...],
) -> Gradients:  # fmt: skip
    more = _constants(q) | {"offsets": offsets, "sinks": np.array(sinks)}
    return dict(zip("qkv", attention_grad_ref(dy, q, k, v, **more), strict=True))


OPS = (
    Op(
        name="attention with sinks",
        sizes=("tiny", "one", "odd"),
        sample=_sample,
        forward_ref=_forward_ref,
        grad_ref=_gradients_ref,
        forward=lambda **inputs: _attend(**inputs)[0],
        grad=_gradients,
        tolerance=4e-6,
        why="float32 sums of up to 55 products, and an exponential accurate to 2.7e-7",
        ggml="ggml_soft_max_ext with ggml_soft_max_add_sinks; no gradient",
    ),
)
