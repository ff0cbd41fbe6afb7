"""LoRA dropout: randomly zero values in the LoRA pair's input, but not in the base weight's input.

    x' = x keep / (1 - p)        keep[t, k] = 1 with probability 1 - p, else 0
    y = x Wᵀ + s (x' Aᵀ) Bᵀ      dx = dy W + (dh A) keep / (1 - p),   dA = dhᵀ x',   dh = s dy B

`keep` is not stored. It is computed from each value's position: Philox 4x32 with ten rounds
("Parallel Random Numbers: As Easy as 1, 2, 3", Salmon et al. 2011) turns the counter
(k // 4, t, site, micro-batch) and a key derived from (seed, step) into four 32-bit numbers, one for
each of four neighbouring columns. A value is kept if its random number is at least p 2³². The
forward pass, its recomputation under gradient checkpointing, and the backward pass therefore use
the same mask, whatever the number of threads, and a resumed run uses the same masks as an
uninterrupted run.

Source: `lora_dropout` of Hugging Face PEFT; "Dropout: A Simple Way to Prevent Neural Networks from
Overfitting", Srivastava et al. 2014.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL
from nbllama.ops.linear.panels import n_panels
from nbllama.ops.op import check_array, check_output, readonly

_STREAM = 1 << 33  # separates these Philox keys from the keys for data order and A's initial values
_SITES = 8  # maximum number of different LoRA pair inputs per block


@dataclass(frozen=True)
class Dropout:
    """A dropout mask.

    `p` is the dropout probability, `key` consists of two 32-bit words derived from (seed, step),
    and `micro` is the index of the micro-batch. `site` distinguishes the inputs within one pass.
    """

    p: float
    key: tuple[int, int]
    micro: int = 0
    site: int = 0

    def at(self, layer: int, place: int) -> Dropout:
        """Return the mask for the input at index `place` of block `layer`."""
        return replace(self, site=layer * _SITES + place)


def dropout_for(p: float, seed: int, step: int, micro: int) -> Dropout:
    """Return the mask for a micro-batch. Raises ValueError unless 0 <= `p` < 1."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout is {p}, but must be at least 0 and below 1")
    word = int(np.random.Philox(key=np.array([seed, _STREAM + step], np.uint64)).random_raw())
    return Dropout(p, (word & 0xFFFFFFFF, word >> 32), micro)


def philox_ref(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Compute Philox 4x32-10 in numpy: counters uint32 `[n, 4]` -> random uint32 `[n, 4]`."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
        c = [
            (b >> half) ^ c[1] ^ np.uint64(k0),
            b & low,
            (a >> half) ^ c[3] ^ np.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def keep_ref(mask: Dropout, n: int, width: int) -> np.ndarray:
    """Return keep / (1 - p) as float64 `[n, width]`."""
    fours = -(-width // 4)
    t, k = (a.reshape(-1) for a in np.indices((n, fours)))
    rest = np.full((2, len(t)), [[mask.site], [mask.micro]])
    numbers = philox_ref(np.stack([k, t, *rest], axis=1), mask.key).reshape(n, 4 * fours)
    return (numbers[:, :width] >= _threshold(mask.p)) / (1 - mask.p)


def _threshold(p: float) -> int:
    return int(p * 2**32)


@kernel()
def _philox(c0, c1, c2, c3, k0, k1):
    """Return four random numbers; each argument is a 32-bit number stored as uint64."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    for _ in range(10):
        a = c0 * np.uint64(0xD2511F53)
        b = c2 * np.uint64(0xCD9E8D57)
        c0 = (b >> half) ^ c1 ^ k0
        c1 = b & low
        c2 = (a >> half) ^ c3 ^ k1
        c3 = a & low
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


@kernel()
def _mask_row(t, site, micro, k0, k1, threshold, factor, row):
    """Set row[k] to `factor` if the value of token t in column k is kept, else to 0."""
    width = row.shape[0]
    for k in range(0, width, 4):
        four = _philox(np.uint64(k // 4), np.uint64(t), site, micro, k0, k1)
        for j in range(min(4, width - k)):
            row[k + j] = factor if four[j] >= threshold else np.float32(0.0)


@kernel(parallel=True)
def _dropped(x, site, micro, k0, k1, threshold, factor, out):
    for t in prange(x.shape[0]):
        _mask_row(t, site, micro, k0, k1, threshold, factor, out[t])
        for k in range(x.shape[1]):
            out[t, k] *= x[t, k]


@kernel(parallel=True)
def _add_dropped(dhp, a, site, micro, k0, k1, threshold, factor, dx):
    """Compute dx[t, k] += factor keep[t, k] sum_r dh[t, r] a[r, k]."""
    width = dx.shape[1]
    for t in prange(dx.shape[0]):
        mask = np.empty(width, np.float32)
        total = np.zeros(width, np.float32)
        _mask_row(t, site, micro, k0, k1, threshold, factor, mask)
        for r in range(a.shape[0]):
            h = dhp[t // PANEL, r, t % PANEL]
            for k in range(width):
                total[k] += h * a[r, k]
        for k in range(width):
            dx[t, k] += mask[k] * total[k]


def _words(mask: Dropout) -> tuple[Any, ...]:
    """Return the kernel arguments that describe a mask."""
    words = [np.uint64(w) for w in (mask.site, mask.micro, *mask.key, _threshold(mask.p))]
    return (*words, np.float32(1 / (1 - mask.p)))


def dropped(x: np.ndarray, mask: Dropout, memory: np.ndarray) -> np.ndarray:
    """Compute x' from float32 x `[N, K]`; return it as a view of the start of float32 `memory`."""
    check_array("dropout", "x", x, np.shape(x)[:2])
    if memory.dtype != np.float32 or memory.size < x.size or not memory.flags.c_contiguous:
        raise ValueError(
            f"dropout: a buffer of {memory.size} elements is too small for x of shape {x.shape}"
        )
    out = memory.reshape(-1)[: x.size].reshape(x.shape)
    check_output("dropout", "memory", out, x.shape)
    _dropped(readonly(x), *_words(mask), out)
    return out


def add_dropped(dhp: np.ndarray, a: np.ndarray, mask: Dropout, dx: np.ndarray) -> None:
    """Add (dh A) keep / (1 - p) to dx `[N, K]`.

    dhp is dh packed `[P, R6, PANEL]`, and a is `[R, K]`.
    """
    check_array("add_dropped", "dh", dhp, (n_panels(len(dx)), np.shape(dhp)[1], PANEL))
    check_array("add_dropped", "a", a, (len(a), dx.shape[1]))
    check_output("add_dropped", "dx", dx, dx.shape)
    if dhp.shape[1] < len(a):
        raise ValueError(f"add_dropped: dh has {dhp.shape[1]} rows, expected at least {len(a)}")
    _add_dropped(readonly(dhp), readonly(a), *_words(mask), dx)
