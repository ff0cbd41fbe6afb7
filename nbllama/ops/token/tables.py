"""The kinds of phases in a token's program, and a parameter table for each kind.

`PHASE` is the program itself. For each phase, it contains the kind, the first row in the table for
that kind, the number of rows, and the number of tasks. A field that is named after an array
contains the address of that array. The code that builds the program
(`nbllama.generation.token_program`) checks sizes and keeps the arrays alive. All arrays are float32
unless stated otherwise.
"""

from __future__ import annotations

import numpy as np

NORM, HIDDEN, PRODUCT, HEADS, SCORES, JOIN, BRANCH, GATE, CAP, ACT = range(10)
ROUTE, EXPERT, SUM, CONV, DELTA_CONV, DELTA, DELTA_OUT = range(10, 17)

# Bits of the `forms` fields, which specify the kinds of int8 blocks that the next products read.
INT8_32, INT8_256 = 1, 2

_address, _size, _float = np.int64, np.int64, np.float32


def _table(**fields: type) -> np.dtype:
    return np.dtype(list(fields.items()), align=True)


PHASE = _table(kind=_size, first=_size, rows=_size, tasks=_size)

# out[c] = x[c] * rstd * w[c] * scale. With `centred`, the phase computes LayerNorm:
# out[c] = ((x[c] - mean) * rstd * w[c] + b[c]) * scale. If w is 0 and `centred` is off, there is no
# norm, and out[c] = x[c] * scale.
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

# h[r] = scale * sum_k a[r, k] x[k]; for `chosen`, see the next table
HIDDEN_ROW = _table(
    a=_address, x=_address, h=_address, rank=_size, n_in=_size, scale=_float, chosen=_address,
)  # fmt: skip

# y[n] = w[n] . x + bias[n] + sum_r b[n, r] h[r]; with `add`, this sum is added to y[n]. `code` is
# the index of w's type in the entry function's list of types. In the int8 blocks, x begins at index
# `at`. If `chosen` is not 0, w, bias, a and b contain one matrix (or row) per expert, and the int32
# at the address `chosen` selects the expert.
PRODUCT_ROW = _table(
    w=_address, row_bytes=_size, w_bytes=_size, code=_size, n_out=_size, n_in=_size, x=_address,
    y=_address, add=_size, bias=_address, h=_address, b=_address, rank=_size, rows=_size,
    at=_size, chosen=_address,
)  # fmt: skip

# Queries and keys are normalised and rotated in place; with `norm_last`, they are rotated first. If
# there is an array `temper` [n_ctx], the queries are multiplied by the factor for their position.
# Then the key and the value are written to the cache [n_ctx, G, D]. If k is 0, an earlier block has
# already written them. `v_norm` contains the weights of a norm that is applied only to the values
# in the cache, because v can be the same array as k. If there is an array `gates` [H, 2, D], its
# part 0 contains the queries, and the attention output is multiplied by the sigmoid of part 1. For
# `sinks` [H], see `ops.attention.sinks`.
HEADS_ROW = _table(
    q=_address, k=_address, v=_address, q_norm=_address, k_norm=_address, norm_last=_size,
    eps=_float, temper=_address, v_norm=_address,
    cos=_address, sin=_address, half=_size, halves=_size, n_positions=_size,
    k_cache=_address, v_cache=_address, n_ctx=_size, n_head=_size, n_head_kv=_size, head_dim=_size,
    scale=_float, cap=_float, window=_size, slopes=_address, out=_address, forms=_size,
    gates=_address, sinks=_address,
)  # fmt: skip

# x += scale * norm(y), or x += scale * y if w is 0
BRANCH_ROW = _table(y=_address, w=_address, x=_address, n=_size, eps=_float, scale=_float)

# out = act(gate) * up
GATE_ROW = _table(gate=_address, up=_address, out=_address, n=_size, gelu=_size, forms=_size)

# out = act(x), for a feed-forward layer without a gate (see `ops.ungated`)
ACT_ROW = _table(
    x=_address, out=_address, size=_size, code=_size, p=_float, n=_float, beta=_float, eps=_float,
    forms=_size,
)  # fmt: skip

# y = cap tanh(y / cap)
CAP_ROW = _table(y=_address, n=_size, cap=_float)

# `ops.experts.router` for one token: z [E] is overwritten with the scores. The `chosen` experts
# (int32 [K]) and their `weights` [K] are sorted by expert in ascending order. If there is an array
# `gate_w` [C], the weight of the shared expert is written to `shared`: the sigmoid of gate_w . x.
ROUTE_ROW = _table(
    z=_address, bias=_address, experts=_size, used=_size, code=_size, normed=_size, scale=_float,
    chosen=_address, weights=_address, gate_w=_address, x=_address, n=_size, shared=_address,
)  # fmt: skip

# out[at + f] = weight act(gate[f], up[f]) for one expert; for `code`, see `ops.experts.gate`. If
# the address `weight` is 0, the weight is 1.
EXPERT_ROW = _table(
    gate=_address, up=_address, out=_address, n=_size, at=_size, weight=_address, code=_size,
    forms=_size,
)  # fmt: skip

# x[c] += scale * (sum_k (y[k, c] + weights[k] bias[chosen[k], c]) + shared[c]); y is overwritten
SUM_ROW = _table(
    y=_address, used=_size, x=_address, n=_size, scale=_float, bias=_address, experts=_size,
    chosen=_address, weights=_address, shared=_address,
)  # fmt: skip

# `ops.short_conv` for one token: bcx is [3 C], w is [K, C], and y is [C]. b x is appended to the
# state [K - 1, C], and the oldest row of the state is dropped.
CONV_ROW = _table(
    bcx=_address, w=_address, state=_address, y=_address, n=_size, taps=_size, forms=_size,
)  # fmt: skip

# `ops.delta_net.conv` for one token: u and y are [W], w is [K, W], and the state is [K - 1, W]. The
# first `normed` heads of `size` numbers are divided by their L2 norms. `one` and `eps` are the same
# as in `mixers.delta_net`.
DELTA_CONV_ROW = _table(
    u=_address, w=_address, state=_address, y=_address, n=_size, taps=_size, size=_size,
    normed=_size, one=_address, eps=_float,
)  # fmt: skip

# `ops.delta_net` for one token: qkv is y of `DELTA_CONV_ROW`. alpha, beta, a and dt are [H], the
# state is [H, D, D], and o is [H, D].
DELTA_ROW = _table(
    qkv=_address, alpha=_address, beta=_address, a=_address, dt=_address, state=_address,
    o=_address, heads=_size, key_heads=_size, size=_size, scale=_float,
)  # fmt: skip

# out = silu(z) * norm(o) for each head of `size` numbers; a task processes `part` heads
DELTA_OUT_ROW = _table(
    o=_address, z=_address, w=_address, out=_address, heads=_size, size=_size, eps=_float,
    part=_size, forms=_size,
)  # fmt: skip

# The input of the threads: the token's position, the program, and memory that all phases share.
# This memory consists of `scores` [chunks, H, CHUNK], `found` [chunks, H, 2 + D], scratch memory
# `[width]` for each thread, the newest input in int8 blocks (`ops.linear.int8_rows`), and the
# counters for `nbllama.kernels.threads`.
STEP = _table(
    at=_size, n_phases=_size, most_rows=_size, width=_size, chunks=_size, program=_address,
    norms=_address, pairs=_address, products=_address, heads=_address, branches=_address,
    gates=_address, caps=_address, acts=_address, routes=_address, experts=_address, sums=_address,
    convs=_address, delta_convs=_address, deltas=_address, delta_outs=_address,
    scores=_address, found=_address, scratch=_address,
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
    ROUTE: ("routes", ROUTE_ROW),
    EXPERT: ("experts", EXPERT_ROW),
    SUM: ("sums", SUM_ROW),
    CONV: ("convs", CONV_ROW),
    DELTA_CONV: ("delta_convs", DELTA_CONV_ROW),
    DELTA: ("deltas", DELTA_ROW),
    DELTA_OUT: ("delta_outs", DELTA_OUT_ROW),
}
"""Table and row dtype of each kind; SCORES and JOIN use the row of the preceding HEADS phase."""
