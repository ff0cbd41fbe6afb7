"""Attention of one sequence, plain, with ALiBi, a window or a soft-cap, and its gradient.

ggml has no single op with a gradient: its products, softmax and softmax gradient make the chain
that llama.cpp has for it (and that its graphs run with flash attention off).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from nbllama.ops.attention.attention import (
    alibi_slopes,
    attention,
    attention_grad_ref,
    attention_ref,
)
from nbllama.ops.attention.few import attention_few
from nbllama.ops.attention.grad import attention_grad
from tests.kernels.case import SUM, Arrays, Run, case, normal
from tests.oracle import Graph

KINDS: dict[str, dict[str, Any]] = {
    "attention": {},
    "attention, ALiBi": {"bias": 8.0},
    "attention, window": {"window": 20},
    "attention, soft-cap": {"cap": 2.0},
}
SHAPES = {"one": (1, 3, 1, 32), "odd": (55, 6, 2, 33), "large": (512, 9, 3, 64)}  # T, H, G, D


def causal_mask(n: int, n_keys: int, window: int, alibi: bool) -> np.ndarray:
    """As llama.cpp's: -inf where key j is unseen by query i, else -(i - j) for ALiBi, or 0."""
    i, j = np.arange(n)[:, None] + n_keys - n, np.arange(n_keys)[None, :]
    seen = (j <= i) & ((window == 0) | (j > i - window))
    return np.where(seen, j - i if alibi else 0, -np.inf).astype(np.float32)


def by_heads(x: np.ndarray) -> np.ndarray:
    """[T, H, D] as [H, T, D], and back."""
    return np.ascontiguousarray(x.swapaxes(0, 1))


def turned(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.swapaxes(-1, -2))


def ggml_probabilities(
    g: Graph, q: np.ndarray, k: np.ndarray, mask: np.ndarray, scale: float, bias: float, cap: float
) -> tuple[Any, Any]:
    """(p, tanh or None) `[H, T, Tk]` in a graph; q `[T, H, D]`, k `[Tk, G, D]`."""
    z = g.apply("ggml_mul_mat", by_heads(k), by_heads(q))
    tanh = None
    if cap:
        tanh = g.apply("ggml_tanh", g.apply("ggml_scale", z, float(scale / cap)))
        z, scale = g.apply("ggml_scale", tanh, float(cap)), 1.0
    return g.apply("ggml_soft_max_ext", z, mask, float(scale), float(bias)), tanh


def ggml_attention(
    g: Graph, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float,
    bias: float = 0.0, cap: float = 0.0,
) -> Any:  # fmt: skip
    """o `[H, T, D]` in a graph. ggml repeats KV heads over query heads itself."""
    p, _ = ggml_probabilities(g, q, k, mask, scale, bias, cap)
    return g.apply("ggml_mul_mat", turned(by_heads(v)), p)


def ggml_attention_grad(
    g: Graph, do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, p: np.ndarray,
    tanh: np.ndarray | None, scale: float,
) -> dict[str, Any]:  # fmt: skip
    """dq, dk, dv `[H, T, D]` in a graph, from the probabilities of the forward pass; those of keys
    and values by query head.
    """
    q, k, v, do = (by_heads(x) for x in (q, k, v, do))
    dp = g.apply("ggml_mul_mat", v, do)
    dz = g.apply("ggml_soft_max_ext_back", dp, p, float(scale), 0.0)
    if tanh is not None:
        slope = g.apply("ggml_scale_bias", g.apply("ggml_sqr", tanh), -1.0, 1.0)
        dz = g.apply("ggml_mul", dz, slope)
    across = g.apply("ggml_cont", g.apply("ggml_transpose", dz))
    return {
        "dq": g.apply("ggml_mul_mat", turned(k), dz),
        "dk": g.apply("ggml_mul_mat", turned(q), across),
        "dv": g.apply("ggml_mul_mat", turned(do), turned(p)),
    }


def of_groups(found: Arrays, n_kv: int) -> Arrays:
    """dq, dk, dv as `[T, H, D]`, `[T, G, D]`: query heads of a group summed up."""
    out = {"dq": by_heads(found["dq"])}
    for name in ("dk", "dv"):
        x = found[name]
        out[name] = by_heads(x.reshape(n_kv, len(x) // n_kv, *x.shape[1:]).sum(axis=1))
    return out


def ggml_saved(
    q: np.ndarray, k: np.ndarray, mask: np.ndarray, scale: float, bias: float, cap: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """(p, tanh) `[H, T, Tk]` of ggml as arrays."""
    shape = (q.shape[1], len(q), len(k))
    with Graph() as g:
        p, tanh = ggml_probabilities(g, q, k, mask, scale, bias, cap)
        found = g.compute(*(x for x in (p, tanh) if x is not None))
    return found[0].reshape(shape), found[1].reshape(shape) if cap else None


class _Sample:
    """Numbers of one size and kind, and what every run needs of them."""

    def __init__(self, size: str, bias: float = 0.0, window: int = 0, cap: float = 0.0) -> None:
        self.t, h, self.g, d = SHAPES[size]
        self.q, self.do = normal(1, self.t, h, d), normal(2, self.t, h, d)
        self.k, self.v = normal(3, self.t, self.g, d), normal(4, self.t, self.g, d)
        self.offsets = np.array([0, self.t], np.int32)
        self.scale, self.bias, self.window, self.cap = d**-0.5, bias, window, cap
        self.slopes = alibi_slopes(h, bias)
        self.mask = causal_mask(self.t, self.t, window, bias > 0)
        self.o, self.lse = np.empty_like(self.q), np.empty((self.t, h), np.float32)
        seen = min(window, self.t) if window else self.t
        pairs = seen * (seen + 1) / 2 + (self.t - seen) * seen
        self.work = 4 * pairs * h * d  # two products over the keys that a query sees

    def attend(self) -> Arrays:
        attention(
            self.q, self.k, self.v, q_offsets=self.offsets, k_offsets=self.offsets,
            scale=self.scale, slopes=self.slopes, o=self.o, lse=self.lse, window=self.window,
            cap=self.cap,
        )  # fmt: skip
        return {"o": self.o}


def _forward(size: str, kind: dict[str, Any]) -> Run:
    s = _Sample(size, **kind)

    def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Arrays:
        o = attention_ref(
            q,
            k,
            v,
            q_offsets=s.offsets,
            k_offsets=s.offsets,
            scale=s.scale,
            slopes=s.slopes.astype(q.dtype),
            window=s.window,
            cap=s.cap,
        )
        return {"o": by_heads(o)}

    def theirs(g: Graph) -> dict[str, Any]:
        return {"o": ggml_attention(g, s.q, s.k, s.v, s.mask, s.scale, s.bias, s.cap)}

    inputs = {"q": s.q, "k": s.k, "v": s.v}
    return Run(
        inputs, s.attend, reference, theirs, s.work, lambda found: {"o": by_heads(found["o"])}
    )


def _gradient(size: str, kind: dict[str, Any]) -> Run:
    s = _Sample(size, **kind)
    s.attend()
    dq, dk, dv = np.empty_like(s.q), np.empty_like(s.k), np.empty_like(s.v)

    def ours() -> Arrays:
        attention_grad(
            s.do, s.q, s.k, s.v, o=s.o, lse=s.lse, offsets=s.offsets, scale=s.scale,
            slopes=s.slopes, dq=dq, dk=dk, dv=dv, window=s.window, cap=s.cap,
        )  # fmt: skip
        return {"dq": dq, "dk": dk, "dv": dv}

    def reference(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Arrays:
        slopes = s.slopes.astype(q.dtype)
        found = attention_grad_ref(
            do, q, k, v, offsets=s.offsets, scale=s.scale, slopes=slopes, window=s.window, cap=s.cap
        )
        return dict(zip(("dq", "dk", "dv"), found, strict=True))

    def theirs(g: Graph) -> dict[str, Any]:
        p, tanh = ggml_saved(s.q, s.k, s.mask, s.scale, s.bias, s.cap)
        return ggml_attention_grad(g, s.do, s.q, s.k, s.v, p, tanh, s.scale)

    inputs = {"do": s.do, "q": s.q, "k": s.k, "v": s.v}
    return Run(
        inputs, ours, reference, theirs, 2.5 * s.work,
        their_seen=lambda found: of_groups(found, s.g),
    )  # fmt: skip


SOFTMAX = "ggml_mul_mat, ggml_soft_max_ext, ggml_mul_mat"
BACK = "ggml_mul_mat (4), ggml_soft_max_ext_back"
for _name, _kind in KINDS.items():
    _capped = ", ggml_tanh" if "cap" in _kind else ""
    case(
        _name, "attention", attention, bound=4e-6, llama=SOFTMAX + _capped, llama_bound=SUM,
        unit="GF/s", shape="512 tokens, 9 heads of 64, 3 KV heads",
    )(partial(_forward, kind=_kind))  # fmt: skip
    case(
        f"{_name}, gradient", "attention", attention_grad, bound=4e-6, llama=BACK,
        llama_bound=SUM, unit="GF/s", shape="512 tokens, 9 heads of 64, 3 KV heads",
    )(partial(_gradient, kind=_kind))  # fmt: skip


@case("attention, one query", "attention", attention_few, attention, bound=2e-6, llama=SOFTMAX,
      unit="GF/s", shape="1 query over 1024 keys, 9 heads of 64, 3 KV heads")  # fmt: skip
def _few(size: str) -> Run:
    n, keys, h, g, d = {
        "one": (1, 1, 3, 1, 32),
        "odd": (3, 301, 6, 2, 33),
        "large": (1, 1024, 9, 3, 64),
    }[size]
    q, k, v = normal(1, n, h, d), normal(2, keys, g, d), normal(3, keys, g, d)
    q_off, k_off = np.array([0, n], np.int32), np.array([0, keys], np.int32)
    slopes, o, lse = alibi_slopes(h, 0), np.empty_like(q), np.empty((n, h), np.float32)

    def ours() -> Arrays:
        attention(
            q, k, v, q_offsets=q_off, k_offsets=k_off, scale=d**-0.5, slopes=slopes, o=o, lse=lse
        )
        return {"o": o}

    def theirs(graph: Graph) -> dict[str, Any]:
        mask = causal_mask(n, keys, 0, False)
        return {"o": ggml_attention(graph, q, k, v, mask, d**-0.5)}

    return Run(
        {"q": q, "k": k, "v": v},
        ours,
        lambda q, k, v: {
            "o": by_heads(
                attention_ref(
                    q, k, v, q_offsets=q_off, k_offsets=k_off, scale=d**-0.5, slopes=slopes
                )
            )
        },
        theirs,
        4 * n * keys * h * d,
        lambda found: {"o": by_heads(found["o"])},
    )
