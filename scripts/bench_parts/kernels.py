"""Matmul, attention and loss against numpy's sgemm, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from numba import njit, prange

from bench_parts.timing import QUICK, interleaved, ratio
from nbllama.ops.attention.attention import alibi_slopes, attention
from nbllama.ops.attention.grad import attention_grad
from nbllama.ops.linear.matmul import Weight, matmul, matmul_grad
from nbllama.ops.linear.panels import pack, panel_floats
from nbllama.ops.loss import LossBuffers, output_loss
from nbllama.quants import DECODERS, QUANTS, as_readonly
from tests.quants.blocks import random_blocks

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
TYPES += ("F16", "BF16", "F32")
TYPE_IDS = {q.name: q.id for q in QUANTS.values()}
SHAPES = ((576, 1536), (1536, 576), (2048, 5632), (4096, 4096))  # (n_in, n_out)
SECONDS = 0.3 if QUICK else 1.0  # per case


def weight(name: str, n_in: int, n_out: int) -> Weight:
    """Return a weight of finite random blocks; the values do not affect the time."""
    kind = QUANTS[TYPE_IDS[name]]
    raw = random_blocks(kind.id, n_in * n_out // kind.block_size)
    return Weight("w", kind.id, as_readonly(raw.reshape(-1)), (n_out, n_in))


def decoder(w: Weight) -> Callable[[np.ndarray], None]:
    """Return a function that decodes all of w to float32 `[n_out * n_in]` on all threads."""
    decode, row_bytes, (n_out, n_in) = DECODERS[w.type_id], w.row_bytes, w.shape
    blocks = n_in // QUANTS[w.type_id].block_size

    @njit(parallel=True)
    def rows(raw, out):  # type: ignore[no-untyped-def]
        for n in prange(n_out):
            decode(raw, n * row_bytes, blocks, out, n * n_in)

    return lambda out: rows(w.raw, out)


def matmul_case(w: Weight, n: int, decode: Callable[[np.ndarray], None]) -> dict[str, Any]:
    """Compare forward and gradient with sgemm on float32 weights; the time includes packing x."""
    n_out, n_in = w.shape
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, n_in)).astype(np.float32)
    dy = rng.standard_normal((n, n_out)).astype(np.float32)
    y, dx = np.empty_like(dy), np.empty_like(x)
    pools = [np.empty(panel_floats(n, k), np.float32) for k in (n_in, n_out)]
    ready = np.empty(n_in * n_out, np.float32)
    decode(ready)
    ready = ready.reshape(n_out, n_in)

    def decode_all(product: Callable[[], Any]) -> None:
        decode(ready.reshape(-1))
        product()

    runs: dict[str, Callable[[], Any]] = {
        "forward": lambda: matmul(w, pack(x, pools[0]), y),
        "sgemm": lambda: np.matmul(x, ready.T, out=y),
        "gradient": lambda: matmul_grad(w, pack(dy, pools[1]), dx),
        "sgemm gradient": lambda: np.matmul(dy, ready, out=dx),
    }
    if n < 256:
        runs["decode, sgemm"] = lambda: decode_all(runs["sgemm"])
        runs["decode, sgemm gradient"] = lambda: decode_all(runs["sgemm gradient"])
    rounds, work = interleaved(runs, SECONDS), 2 * n * n_in * n_out
    found = {
        "type": QUANTS[w.type_id].name, "n_in": n_in, "n_out": n_out, "tokens": n,
        "forward": ratio(rounds, "sgemm", "forward"),
        "gradient": ratio(rounds, "sgemm gradient", "gradient"),
        "forward_gflops": work / min(r["forward"] for r in rounds) / 1e9,
        "gradient_gflops": work / min(r["gradient"] for r in rounds) / 1e9,
        "sgemm_gflops": work / min(r["sgemm"] for r in rounds) / 1e9,
    }  # fmt: skip
    if n < 256:
        found["forward_decode_all"] = ratio(rounds, "decode, sgemm", "forward")
        found["gradient_decode_all"] = ratio(rounds, "decode, sgemm gradient", "gradient")
    return found


def bench_matmul() -> Iterator[dict[str, Any]]:
    """Measure every type and shape with 512 tokens, and three types with few tokens."""
    for name in TYPES[:5:4] if QUICK else TYPES:
        for n_in, n_out in SHAPES[::2] if QUICK else SHAPES:
            if n_in % QUANTS[TYPE_IDS[name]].block_size:
                continue
            w = weight(name, n_in, n_out)
            decode = decoder(w)
            few = (32, 128) if name in ("Q4_0", "Q8_0", "Q4_K") and n_in >= 2048 else ()
            for n in (*few, 512):
                yield matmul_case(w, n, decode)


def few_matmuls() -> dict[str, float]:
    """Return the share of sgemm with 512 tokens for some types, all shapes: median and lowest."""
    found = []
    for name in ("Q4_0",) if QUICK else ("Q4_0", "Q8_0", "Q4_K", "Q6_K"):
        for n_in, n_out in SHAPES[:1] if QUICK else SHAPES:
            if n_in % QUANTS[TYPE_IDS[name]].block_size == 0:
                w = weight(name, n_in, n_out)
                row = matmul_case(w, 512, decoder(w))
                found += [row["forward"], row["gradient"]]
    return {"matmul_median": median(found), "matmul_lowest": min(found)}


def attention_case(h: int, g: int, d: int, t: int) -> dict[str, Any]:
    """Measure causal attention: GF/s for the causal half of the products, and relative to sgemm."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((1024, 1024)).astype(np.float32)
    out = np.empty_like(a)
    q, do = (rng.standard_normal((t, h, d)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((t, g, d)).astype(np.float32) for _ in range(2))
    offsets, slopes = np.array([0, t], np.int32), alibi_slopes(h, 0)
    o, lse = np.empty_like(q), np.empty((t, h), np.float32)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    rounds = interleaved(
        {
            "forward": lambda: attention(
                q,
                k,
                v,
                q_offsets=offsets,
                k_offsets=offsets,
                scale=d**-0.5,
                slopes=slopes,
                o=o,
                lse=lse,
            ),
            "gradient": lambda: attention_grad(
                do,
                q,
                k,
                v,
                o=o,
                lse=lse,
                offsets=offsets,
                scale=d**-0.5,
                slopes=slopes,
                dq=dq,
                dk=dk,
                dv=dv,
            ),
            "sgemm": lambda: np.matmul(a, a, out=out),
        },
        SECONDS,
    )
    work, sgemm = 2 * t * t * h * d, 2 * 1024**3
    found: dict[str, Any] = {"heads": f"{h}/{g}", "head_dim": d, "tokens": t}
    for name, amount in (("forward", work), ("gradient", 2.5 * work)):
        found[f"{name}_gflops"] = amount / min(r[name] for r in rounds) / 1e9
        found[name] = ratio(rounds, "sgemm", name) * amount / sgemm
    return found | {"sgemm_gflops": sgemm / min(r["sgemm"] for r in rounds) / 1e9}


def bench_attention() -> Iterator[dict[str, Any]]:
    for h, g, d, t in ((9, 3, 64, 512), (32, 8, 64, 512), (32, 8, 128, 512)):
        yield attention_case(h, g, d, t)


def bench_loss() -> Iterator[dict[str, Any]]:
    """Measure cross-entropy with the output product and the input's gradient (Q8_0, Q4_1 head)."""
    rng, (m, c, v) = np.random.default_rng(3), (512, 576, 49152)
    x = rng.standard_normal((m, c)).astype(np.float32)
    targets, dx = rng.integers(0, v, m).astype(np.int32), np.empty_like(x)
    a = rng.standard_normal((c, 1536)).astype(np.float32)
    out = np.empty((m, 1536), np.float32)
    for name in ("Q8_0", "Q4_1"):
        w, buffers = weight(name, c, v), LossBuffers(v, c, 0, m)
        rounds = interleaved(
            {
                "loss": lambda w=w, b=buffers: output_loss(
                    w, x, targets, weight=1.0, dx=dx, pair=None, buffers=b
                ),
                "sgemm": lambda: np.matmul(x, a, out=out),
            },
            SECONDS,
        )
        work, sgemm = 4 * m * c * v, 2 * m * c * 1536
        yield {
            "type": name, "rows": m, "n_embd": c, "n_vocab": v,
            "gflops": work / min(r["loss"] for r in rounds) / 1e9,
            "share": ratio(rounds, "sgemm", "loss") * work / sgemm,
        }  # fmt: skip
