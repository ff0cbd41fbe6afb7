"""The tasks of each kind of phase, which call the ops' row kernels on arrays at given addresses."""

from __future__ import annotations

import numpy as np
from numba import carray

from nbllama.kernels.jit import kernel
from nbllama.kernels.threads import pointer
from nbllama.ops.activation import gelu_row, silu_row
from nbllama.ops.attention.few import CHUNK, attend_chunk, join_chunks
from nbllama.ops.attention.sinks import sink_factor
from nbllama.ops.attention.tiles import cap_and_bias
from nbllama.ops.layer_norm import layer_norm_row
from nbllama.ops.linear.int8_rows import int8_row, int8_sum
from nbllama.ops.out_gate import out_gate_row
from nbllama.ops.rms_norm import norm_row
from nbllama.ops.rope import turn_halves, turn_interleaved
from nbllama.ops.token.tables import INT8_32, INT8_256
from nbllama.ops.ungated import ungated_row
from nbllama.quants.dot import SUMMED

LEAST_ROWS, MOST_ROWS = 32, 1024  # minimum and maximum number of rows of W per task
# Drawing a task can take 0.5 us on two cores, which is as long as computing two rows.
TASKS = 4  # tasks per thread and phase
GATE_PART = 1024  # numbers of the feed-forward layer per task, in whole int8 blocks
CAP_PART = 8192  # logits per task


@kernel(inline=True)
def floats(address, n):
    """Return the n float32 numbers at an address as an array."""
    return carray(pointer(address), n, np.float32)


@kernel(inline=True)
def int8_numbers(address, n):
    """Return the n int8 numbers at an address as an array."""
    return carray(pointer(address), n, np.int8)


@kernel(inline=True)
def int16_numbers(address, n):
    """Return the n int16 numbers at an address as an array."""
    return carray(pointer(address), n, np.int16)


@kernel(inline=True)
def int32_numbers(address, n):
    """Return the n int32 numbers at an address as an array."""
    return carray(pointer(address), n, np.int32)


@kernel()
def expert_of(address):
    """Return the expert index at an address, or 0 if the address is 0."""
    if address == 0:
        return np.int64(0)
    return np.int64(int32_numbers(address, 1)[0])


@kernel(inline=True)
def raw_bytes(address, n):
    """Return the n bytes at an address as an array."""
    return carray(pointer(address), n, np.uint8)


@kernel()
def to_int8(x, lo, hi, forms, step):
    """Quantise x[lo:hi] to each int8 format set in `forms`; lo and hi are block boundaries."""
    if forms & INT8_32:
        q, d = int8_numbers(step.q32, step.width), floats(step.d32, step.width // 32)
        sums = floats(step.s32, step.width // 32)
        int8_row(x[lo:hi], 32, q[lo:hi], d[lo // 32 : hi // 32])
        for b in range(lo // 32, hi // 32):
            sums[b] = d[b] * np.float32(int8_sum(q[32 * b : 32 * b + 32]))
    if forms & INT8_256:
        q, d = int8_numbers(step.q256, step.width), floats(step.d256, step.width // 256)
        totals = int16_numbers(step.s256, step.width // SUMMED)
        int8_row(x[lo:hi], 256, q[lo:hi], d[lo // 256 : hi // 256])
        for s in range(lo // SUMMED, hi // SUMMED):
            totals[s] = np.int16(int8_sum(q[SUMMED * s : SUMMED * s + SUMMED]))


@kernel()
def norm_task(p, step):
    """Normalise a row, and also store it as the int8 blocks that the next products read."""
    x, w, out = floats(p.x, p.n), floats(p.w, p.n), floats(p.out, p.n)
    if p.centred:
        layer_norm_row(
            x, floats(p.w, p.n if p.w else 0), floats(p.b, p.n if p.b else 0), p.eps, out
        )
    elif p.w != 0:
        norm_row(x, w, p.eps, out)
    else:
        for c in range(p.n):
            out[c] = x[c]
    if p.scale != np.float32(1.0):
        for c in range(p.n):
            out[c] *= p.scale
    to_int8(out, np.int64(0), p.n, p.forms, step)


@kernel(fast=True)
def dot(a, b, n):
    """Return the dot product of two float32 rows."""
    total = np.float32(0.0)
    for k in range(n):
        total += a[k] * b[k]
    return total


@kernel()
def hidden_task(pairs, first, task):
    """Compute one element of h for one LoRA pair.

    `task` is an index into the concatenated h of all pairs, starting with pair `first`.
    """
    s, r = first, task
    while r >= pairs[s].rank:
        r -= pairs[s].rank
        s += 1
    p = pairs[s]
    row = expert_of(p.chosen) * p.rank + r
    a, x = floats(p.a + 4 * row * p.n_in, p.n_in), floats(p.x, p.n_in)
    floats(p.h, p.rank)[r] = p.scale * dot(a, x, p.n_in)


@kernel()
def part_of(products, first, task):
    """Return two indices for a PRODUCT task: the row of the table, and the part of W.

    W is divided into parts of `rows` rows.
    """
    s, part = first, task
    parts = (products[s].n_out + products[s].rows - 1) // products[s].rows
    while part >= parts:
        part -= parts
        s += 1
        parts = (products[s].n_out + products[s].rows - 1) // products[s].rows
    return s, part


@kernel()
def finish_row(p, n, row, value):
    """Add the bias and the LoRA product to `value`, and write the sum to y[n].

    If `p.add` is set, the sum is added to y[n] instead. `value` is the product of row n of W and
    the input. `row` is the index of the same row in the matrix that contains the rows of all
    experts.
    """
    if p.bias != 0:
        value += floats(p.bias + 4 * row, 1)[0]
    if p.rank > 0:
        value += dot(floats(p.b + 4 * row * p.rank, p.rank), floats(p.h, p.rank), p.rank)
    y = floats(p.y, p.n_out)
    y[n] = y[n] + value if p.add else value


@kernel()
def _norm_heads(row, norm, p):
    if norm != 0:
        w = floats(norm, p.head_dim)
        for h in range(row.shape[0]):
            norm_row(row[h], w, p.eps, row[h])


@kernel()
def _turn(row, norm, cos, sin, p):
    """Normalise heads `[n, D]` if there is a norm, and rotate them.

    With `norm_last`, they are rotated first.
    """
    if not p.norm_last:
        _norm_heads(row, norm, p)
    if p.half > 0:
        if p.halves:
            turn_halves(row, cos, sin, np.float32(1.0))
        else:
            turn_interleaved(row, cos, sin, np.float32(1.0))
    if p.norm_last:
        _norm_heads(row, norm, p)


@kernel()
def heads_task(p, g, step):
    """Process the queries of KV head g, and its key and value if the block computes them."""
    at = step.at
    d, group = p.head_dim, p.n_head // p.n_head_kv
    cos, sin = floats(p.cos + 4 * at * p.half, p.half), floats(p.sin + 4 * at * p.half, p.half)
    queries = carray(pointer(p.q + 4 * g * group * d), (group, d), np.float32)
    if p.gates != 0:
        gated = carray(pointer(p.gates + 8 * g * group * d), (group, 2, d), np.float32)
        for h in range(group):
            for c in range(d):
                queries[h, c] = gated[h, 0, c]
    _turn(queries, p.q_norm, cos, sin, p)
    if p.temper != 0:
        factor = floats(p.temper, p.n_ctx)[at]
        for h in range(group):
            for c in range(d):
                queries[h, c] *= factor
    if p.k == 0:
        return
    value = floats(p.v + 4 * g * d, d)
    where = 4 * (at * p.n_head_kv + g) * d
    keys, values = floats(p.k_cache + where, d), floats(p.v_cache + where, d)
    for c in range(d):
        values[c] = value[c]
    if p.v_norm != 0:
        norm_row(values, floats(p.v_norm, d), p.eps, values)
    # k is processed after v, because they can be the same array.
    key = carray(pointer(p.k + 4 * g * d), (1, d), np.float32)
    _turn(key, p.k_norm, cos, sin, p)
    for c in range(d):
        keys[c] = key[0, c]


@kernel()
def scores_task(p, task, step):
    """Attend to one chunk of keys for one KV head."""
    at = step.at
    g, c = task % p.n_head_kv, task // p.n_head_kv
    lo, hi = c * CHUNK, min((c + 1) * CHUNK, at + 1)
    if p.window > 0:
        lo = max(lo, at - p.window + 1)
    if lo < hi:
        shape = (at + 1, p.n_head_kv, p.head_dim)
        keys = carray(pointer(p.k_cache), shape, np.float32)
        values = carray(pointer(p.v_cache), shape, np.float32)
        q, slopes = floats(p.q, p.n_head * p.head_dim), floats(p.slopes, p.n_head)
        scores = carray(pointer(step.scores), (step.chunks, p.n_head, CHUNK), np.float32)
        found = carray(pointer(step.found), (step.chunks, p.n_head, 2 + p.head_dim), np.float32)
        attend_chunk(q, 0, keys, values, g, lo, hi, at, p.scale, slopes, p.cap, scores[c], found[c])


@kernel()
def join_task(p, step):
    """Combine the chunks' results for each head, and prepare the output for the next product."""
    at = step.at
    found = carray(pointer(step.found), (step.chunks, p.n_head, 2 + p.head_dim), np.float32)
    first = max(0, at - p.window + 1) // CHUNK if p.window > 0 else 0
    size = p.n_head * p.head_dim
    for h in range(p.n_head):
        head = floats(p.out + 4 * h * p.head_dim, p.head_dim)
        lse = join_chunks(found[:, h], first, at // CHUNK + 1, head)
        if p.sinks != 0:
            factor, _ = sink_factor(lse, floats(p.sinks, p.n_head)[h])
            for c in range(p.head_dim):
                head[c] *= factor
        if p.gates != 0:
            out_gate_row(head, floats(p.gates + 4 * (2 * h + 1) * p.head_dim, p.head_dim), head)
    out = floats(p.out, size)
    to_int8(out, np.int64(0), size, p.forms, step)


@kernel()
def branch_task(p):
    """Normalise and scale a branch's output, and add it to the residual stream.

    Without a norm, the output is only scaled.
    """
    y, x = floats(p.y, p.n), floats(p.x, p.n)
    if p.w != 0:
        norm_row(y, floats(p.w, p.n), p.eps, y)
    for c in range(p.n):
        x[c] += p.scale * y[c]


@kernel()
def gate_task(p, task, step):
    """Compute one part of the gated activation."""
    gate, up, out = floats(p.gate, p.n), floats(p.up, p.n), floats(p.out, p.n)
    lo, hi = task * GATE_PART, min((task + 1) * GATE_PART, p.n)
    if p.gelu:
        gelu_row(gate[lo:hi], up[lo:hi], out[lo:hi])
    else:
        silu_row(gate[lo:hi], up[lo:hi], out[lo:hi])
    to_int8(out, lo, hi, p.forms, step)


@kernel()
def act_task(p, task, step):
    """Compute one part of the activation in a layer without a gate."""
    x, out = floats(p.x, p.size), floats(p.out, p.size)
    lo, hi = task * GATE_PART, min((task + 1) * GATE_PART, p.size)
    ungated_row(x[lo:hi], p.code, p.p, p.n, p.beta, p.eps, out[lo:hi])
    to_int8(out, lo, hi, p.forms, step)


@kernel()
def cap_task(p, task):
    """Soft-cap one part of the logits."""
    lo, hi = task * CAP_PART, min((task + 1) * CAP_PART, p.n)
    cap_and_bias(floats(p.y, p.n), lo, hi, p.cap, np.float32(0.0), 0)
