"""The kinds of phases of a token's program: one table per kind, one row per phase.

`PHASE` is the program itself: the kind, the first row in the table of that kind, the number of
rows, and the number of tasks of the phase. Fields named after an array hold its address. The code
that writes the program (`nbllama.generation.token_program`) checks sizes and keeps the arrays
alive. Everything is float32 unless stated otherwise.
"""

from __future__ import annotations

import numpy as np

NORM, HIDDEN, PRODUCT, HEADS, SCORES, JOIN, BRANCH, GATE, CAP, ACT = range(10)

INT8_32, INT8_256 = 1, 2  # bits of `forms`: the int8 blocks in which the next products read x

_address, _size, _float = np.int64, np.int64, np.float32


def _table(**fields: type) -> np.dtype:
    return np.dtype(list(fields.items()), align=True)


PHASE = _table(kind=_size, first=_size, rows=_size, tasks=_size)

# out[c] = x[c] * rstd * w[c] * scale, or with `centred` LayerNorm: (x[c] - mean) rstd w[c] + b[c];
# without either (w is 0): x[c] * scale
NORM_ROW = _table(
    x=_address,
    w=_address,
    b=_address,
    out=_address,
    n=_size,
    centred=_size,
    eps=_float,
    scale=_float,
    forms=_size,
)

# h[r] = scale * sum_k a[r, k] x[k]
HIDDEN_ROW = _table(a=_address, x=_address, h=_address, rank=_size, n_in=_size, scale=_float)

# y[n] = (or +=) w[n] . x + bias[n] + sum_r b[n, r] h[r]; `code`: index of w's type in the entry
PRODUCT_ROW = _table(
    w=_address, row_bytes=_size, w_bytes=_size, code=_size, n_out=_size, n_in=_size, x=_address,
    y=_address, add=_size, bias=_address, h=_address, b=_address, rank=_size, rows=_size,
)  # fmt: skip

# Queries and keys are normalised and rotated in place (with `norm_last`, rotated first), queries
# are multiplied by `temper` [n_ctx] if it is not 0, then key and value are written to the cache
# [n_ctx, G, D]. Without k, the cache has them already. `v_norm`: the weights of a norm of the
# values, which is in the cache only; v can be the same as k.
HEADS_ROW = _table(
    q=_address, k=_address, v=_address, q_norm=_address, k_norm=_address, norm_last=_size,
    eps=_float, temper=_address, v_norm=_address,
    cos=_address, sin=_address, half=_size, halves=_size, n_positions=_size,
    k_cache=_address, v_cache=_address, n_ctx=_size, n_head=_size, n_head_kv=_size, head_dim=_size,
    scale=_float, cap=_float, window=_size, slopes=_address, out=_address, forms=_size,
)  # fmt: skip

# x += scale * norm(y), or scale * y without w
BRANCH_ROW = _table(y=_address, w=_address, x=_address, n=_size, eps=_float, scale=_float)

# out = act(gate) * up
GATE_ROW = _table(gate=_address, up=_address, out=_address, n=_size, gelu=_size, forms=_size)

# out = act(x), for a feed-forward layer without a gate: `ops.ungated`
ACT_ROW = _table(
    x=_address, out=_address, size=_size, code=_size, p=_float, n=_float, beta=_float, eps=_float,
    forms=_size,
)  # fmt: skip

# y = cap tanh(y / cap)
CAP_ROW = _table(y=_address, n=_size, cap=_float)

# The input of the threads: the token's position, the program, and memory that all phases share:
# `scores` [chunks, H, CHUNK], `found` [chunks, H, 2 + D], `[width]` of scratch for each thread, the
# newest input in int8 blocks (`ops.linear.int8_rows`), and the counters of
# `nbllama.kernels.threads`.
STEP = _table(
    at=_size, n_phases=_size, most_rows=_size, width=_size, chunks=_size, program=_address,
    norms=_address, pairs=_address, products=_address, heads=_address, branches=_address,
    gates=_address, caps=_address, acts=_address, scores=_address, found=_address, scratch=_address,
    q32=_address, d32=_address, s32=_address, q256=_address, d256=_address, s256=_address,
    drawn=_address, done=_address,
)  # fmt: skip

TABLES = {
    NORM: ("norms", NORM_ROW),
    HIDDEN: ("pairs", HIDDEN_ROW),
    PRODUCT: ("products", PRODUCT_ROW),
    HEADS: ("heads", HEADS_ROW),
    BRANCH: ("branches", BRANCH_ROW),
    GATE: ("gates", GATE_ROW),
    CAP: ("caps", CAP_ROW),
    ACT: ("acts", ACT_ROW),
}
"""SCORES and JOIN read the row of the HEADS phase before them."""
