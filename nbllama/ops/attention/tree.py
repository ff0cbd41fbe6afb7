"""Attention for sequences with a common prefix: each shared token has one query, key and value.

Each sequence has its own queries and attends to the keys on its *path*: rows of earlier sequences,
followed by its own rows. `paths` `[P]` is the concatenation of all paths, and each path lists its
rows in position order. K and V are the keys and values of the N rows:

    k' = K[paths]      v' = V[paths]
    o  = attention(q, k', v')            a sequence's queries belong to the last rows of its path
    dK[r] = sum over the indices p with paths[p] = r, in ascending order, of dk'[p]

dV is computed in the same way. Each query attends to the same keys in the same order as without
sharing, so `o` is bit-identical. Only the backward pass differs: the gradient of a shared key or
value is a sum over the sequences that share it, whereas without sharing, this sum is part of the
weight gradients. RoPE is applied before this op, using each row's position in its path.

q and o are float32 `[N, H, D]`, k and v are float32 `[N, G, D]`, paths is int32 `[P]`, and
q_offsets and k_offsets are int32 `[S+1]`. This op uses the kernels in
`nbllama.ops.attention.attention` and `nbllama.ops.attention.grad`, and adds a kernel for the sum.
Copying the `2 P G D` floats of k' and v' takes less than 1 % of the time that a transformer
block takes. `nbllama.data.shared` creates the paths.

Inference servers also compute the keys and values of a common prefix only once (vLLM's prefix
caching, SGLang's RadixAttention), but only in the forward pass. finetune.cpp has no equivalent.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.turns import in_turn
from nbllama.ops.attention.attention import (
    alibi_slopes,
    attention,
    attention_grad_ref,
    attention_ref,
)
from nbllama.ops.attention.grad import attention_grad
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly


@kernel(parallel=True)
def _sum_places(places, order, starts, out):
    """Set out[r] to the sum of places[order[i]] over starts[r] <= i < starts[r + 1].

    The terms are added in ascending order.
    """
    width = out.shape[1]
    for r in prange(out.shape[0]):
        row = out[r]
        row[:] = places[order[starts[r]]]
        for i in range(starts[r] + 1, starts[r + 1]):
            more = places[order[i]]
            for c in range(width):
                row[c] += more[c]


class _Pool:
    """Memory for the keys and values of all paths, kept between calls and enlarged when needed."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)

    def arrays(self, count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Return `count` arrays of the given shape; the next call reuses their memory."""
        size = int(np.prod(shape))
        if self._memory.size < count * size:
            self._memory = np.empty(count * size, np.float32)
        return [self._memory[i * size : (i + 1) * size].reshape(shape) for i in range(count)]


_POOL = _Pool()


def path_floats(n_keys: int, n_kv: int, d: int) -> int:
    """Return how many floats of memory `attention_tree_grad` uses for paths with `n_keys` keys."""
    return 4 * n_keys * n_kv * d


def _gathered(x: np.ndarray, paths: np.ndarray, out: np.ndarray) -> np.ndarray:
    # With mode="clip", numpy writes directly to `out`, without a temporary copy.
    return np.take(x, paths, axis=0, out=out, mode="clip")


def _check_keys(op: str, k: np.ndarray, v: np.ndarray, paths: np.ndarray) -> None:
    if np.ndim(k) != 3:
        raise ValueError(f"{op}: k has shape {np.shape(k)}, expected [N, G, D]")
    check_array(op, "k", k, k.shape)
    check_array(op, "v", v, k.shape)
    check_array(op, "paths", paths, np.shape(paths)[:1], dtype=np.int32)
    if not paths.size or paths.min() < 0 or paths.max() >= len(k):
        raise ValueError(f"{op}: paths must contain row indices from 0 to {len(k) - 1}")


@in_turn
def attention_tree(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, q_offsets: np.ndarray, k_offsets: np.ndarray,
    paths: np.ndarray, scale: float, slopes: np.ndarray, o: np.ndarray, lse: np.ndarray,
    window: int = 0, cap: float = 0.0,
) -> None:  # fmt: skip
    """Compute `attention` for sequences that share keys and values.

    q is `[N, H, D]`, k and v are `[N, G, D]`, and paths is int32 `[P]`; see the module docstring.
    `k_offsets` contains the offsets of the paths. The other parameters are the same as in
    `attention`. Raises ValueError for mismatched arrays.
    """
    _check_keys("attention_tree", k, v, paths)
    keys, values = _POOL.arrays(4, (len(paths), *k.shape[1:]))[:2]
    attention(
        q, _gathered(k, paths, keys), _gathered(v, paths, values), q_offsets=q_offsets,
        k_offsets=k_offsets, scale=scale, slopes=slopes, o=o, lse=lse, window=window, cap=cap,
    )  # fmt: skip


@in_turn
def attention_tree_grad(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, o: np.ndarray, lse: np.ndarray,
    q_offsets: np.ndarray, k_offsets: np.ndarray, paths: np.ndarray, order: np.ndarray,
    starts: np.ndarray, scale: float, slopes: np.ndarray,
    dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, window: int = 0, cap: float = 0.0,
) -> None:  # fmt: skip
    """Overwrite dq `[N, H, D]`, dk and dv `[N, G, D]` with the gradients.

    Every row r occurs in `paths` at least once, at the indices `order[starts[r] : starts[r + 1]]`.
    `order` is int32 `[P]`, and `starts` is int32 `[N + 1]`. o and lse are the results of the
    forward pass. Raises `ValueError` for mismatched arrays.
    """
    _check_keys("attention_tree_grad", k, v, paths)
    check_array("attention_tree_grad", "order", order, paths.shape, dtype=np.int32)
    check_array("attention_tree_grad", "starts", starts, (len(k) + 1,), dtype=np.int32)
    if (
        (np.diff(starts) < 1).any()
        or starts[0]
        or starts[-1] != len(paths)
        or order.min() < 0
        or order.max() >= len(paths)
    ):
        raise ValueError("attention_tree_grad: order and starts do not match paths")
    for name, x in (("dk", dk), ("dv", dv)):
        check_output("attention_tree_grad", name, x, k.shape)
    keys, values, dkeys, dvalues = _POOL.arrays(4, (len(paths), *k.shape[1:]))
    attention_grad(
        do, q, _gathered(k, paths, keys), _gathered(v, paths, values), o=o, lse=lse,
        offsets=q_offsets, k_offsets=k_offsets, scale=scale, slopes=slopes, dq=dq, dk=dkeys,
        dv=dvalues, window=window, cap=cap,
    )  # fmt: skip
    wide = (-1, k.shape[1] * k.shape[2])
    for places, out in ((dkeys, dk), (dvalues, dv)):
        _sum_places(
            readonly(places.reshape(wide)), readonly(order), readonly(starts), out.reshape(wide)
        )


def attention_tree_ref(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, q_offsets: np.ndarray, k_offsets: np.ndarray,
    paths: np.ndarray, scale: float, slopes: np.ndarray, window: int = 0, cap: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Compute o `[N, H, D]` in plain numpy, in the dtype of q."""
    return attention_ref(
        q, k[paths], v[paths], q_offsets=q_offsets, k_offsets=k_offsets, scale=scale,
        slopes=slopes, window=window, cap=cap,
    )  # fmt: skip


def attention_tree_grad_ref(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, q_offsets: np.ndarray,
    k_offsets: np.ndarray, paths: np.ndarray, scale: float, slopes: np.ndarray, window: int = 0,
    cap: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Compute the gradients (dq, dk, dv) of `attention_tree_ref` on whole sequences.

    In each sequence, `do` is 0 for the shared prefix, because the queries of the prefix belong to
    an earlier sequence.
    """
    own = np.concatenate(
        [
            np.arange(end - (last - first), end)
            for first, last, end in zip(q_offsets, q_offsets[1:], k_offsets[1:], strict=False)
        ]
    )
    whole_q, whole_do = (np.zeros((len(paths), *q.shape[1:]), q.dtype) for _ in range(2))
    whole_q[own], whole_do[own] = q, do
    dq, dkeys, dvalues = attention_grad_ref(
        whole_do, whole_q, k[paths], v[paths], offsets=k_offsets, scale=scale, slopes=slopes,
        window=window, cap=cap,
    )  # fmt: skip
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    np.add.at(dk, paths, dkeys)
    np.add.at(dv, paths, dvalues)
    return dq[own], dk, dv


def _sample(kind: dict[str, float], rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    # For each sequence: its number of rows, an earlier sequence, and how many rows of that
    # sequence's path it shares.
    sequences, h, g, d = {
        "tiny": (((4, 0, 0), (1, 0, 2), (2, 1, 3)), 4, 2, 3),
        "one": (((1, 0, 0), (1, 0, 1)), 3, 1, 32),
        "odd": (((7, 0, 0), (1, 0, 7), (55, 1, 8), (2, 0, 1), (3, 2, 50)), 5, 5, 33),
        "gqa": (((100, 0, 0), (61, 0, 90), (49, 1, 120)), 9, 3, 64),
    }[size]
    whole: list[np.ndarray] = []
    n = 0
    for own, other, shared in sequences:
        beginning = whole[other][:shared] if shared else np.empty(0, np.int32)
        whole.append(np.concatenate([beginning, np.arange(n, n + own, dtype=np.int32)]))
        n += own
    return {
        "q": rng.standard_normal((n, h, d)).astype(dtype),
        "k": rng.standard_normal((n, g, d)).astype(dtype),
        "v": rng.standard_normal((n, g, d)).astype(dtype),
        "q_offsets": np.cumsum([0, *(own for own, _, _ in sequences)], dtype=np.int32),
        "k_offsets": np.cumsum([0, *map(len, whole)], dtype=np.int32),
        "paths": np.concatenate(whole),
        "scale": 1 / np.sqrt(d),
        "bias": kind.get("bias", 0.0),
        "window": int(kind.get("window", 0)),
        "cap": kind.get("cap", 0.0),
    }


def _attend(q: np.ndarray, bias: float, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    o, lse = np.empty_like(q, order="C"), np.empty(q.shape[:2], np.float32)
    attention_tree(q, slopes=alibi_slopes(q.shape[1], bias), o=o, lse=lse, **inputs)
    return o, lse


def _gradients(
    dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, paths: np.ndarray, bias: float,
    **inputs: Any,
) -> Gradients:  # fmt: skip
    o, lse = _attend(q, bias, k=k, v=v, paths=paths, **inputs)
    order = np.argsort(paths, kind="stable").astype(np.int32)
    starts = np.searchsorted(paths[order], np.arange(len(k) + 1)).astype(np.int32)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    attention_tree_grad(
        dy, q, k, v, o=o, lse=lse, paths=paths, order=order, starts=starts,
        slopes=alibi_slopes(q.shape[1], bias), dq=dq, dk=dk, dv=dv, **inputs,
    )  # fmt: skip
    return {"q": dq, "k": dk, "v": dv}


def _forward_ref(q: np.ndarray, bias: float, **inputs: Any) -> np.ndarray:
    return attention_tree_ref(q, slopes=alibi_slopes(q.shape[1], bias), **inputs)


def _gradients_ref(dy: np.ndarray, q: np.ndarray, bias: float, **inputs: Any) -> Gradients:
    slopes = alibi_slopes(q.shape[1], bias)
    grads = attention_tree_grad_ref(dy, q, slopes=slopes, **inputs)
    return dict(zip("qkv", grads, strict=True))


def _op(name: str, **kind: float) -> Op:
    return Op(
        name=name,
        sizes=("tiny", "one", "odd", "gqa"),
        sample=partial(_sample, kind),
        forward_ref=_forward_ref,
        grad_ref=_gradients_ref,
        forward=lambda **inputs: _attend(**inputs)[0],
        grad=_gradients,
        tolerance=4e-6,
        why="float32 sums of up to 200 products, and an exponential accurate to 2.7e-7",
        ggml="none: llama.cpp trains on each sequence separately",
    )


OPS = (
    _op("attention with shared prompts"),
    _op("attention with shared prompts and ALiBi", bias=8.0),
    _op("attention with shared prompts and a window", window=20),
    _op("attention with shared prompts and a soft-cap", cap=2.0),
)
