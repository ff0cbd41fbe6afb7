"""The gradient of the delta rule, computed from the last chunk of a sequence to the first.

`remember` repeats the forward pass and stores S before each chunk and x for the chunk's tokens.
`chunks_back` then computes the gradient, again with products of small matrices. G, a, x, d and the
layout of the arrays are defined in `nbllama.ops.delta_net.chunks`. In the formulas for one chunk, y
is the gradient with respect to d, u is -beta y, and dS on the right-hand side is the gradient with
respect to S after the chunk:

    y[j]  = G[C, j] dS k[j] + sum over t >= j of G[t, j] scale (q[t] . k[j]) do[t]
                            + sum over t > j of G[t, j] (k[t] . k[j]) u[t]
    dv    = beta y              dbeta = y . x
    dq[t] = scale (a[t] ST do[t] + sum over j <= t of G[t, j] (do[t] . d[j]) k[j])
    dk[t] = a[t] ST u[t] + G[C, t] dST d[t] + sum over i >= t of G[i, t] (do[i] . d[t]) scale q[i]
          + sum over j < t of G[t, j] (u[t] . d[j]) k[j]
          + sum over i > t of G[i, t] (u[i] . d[t]) k[i]
    dS   <- a[C] dS + sum over t of a[t] (scale do[t] q[t]T + u[t] k[t]T)

dg[i] is the sum of all terms with a factor exp(g[i]), each multiplied by its gradient.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS
from nbllama.kernels.simd import fma_tile
from nbllama.ops.delta_net.chunks import (
    CHUNK,
    add_scaled,
    advance,
    dot,
    load,
    load_gates,
    mask,
    missing,
    multiply,
    multiply_lower,
    multiply_upper,
    scaled,
    stride,
    transpose,
    zeros,
)


@kernel()
def remember(k, v, e, beta, first, last, of, h, starts, found):
    """Write S `[M, D]` before each chunk to `starts`, and each chunk's x `[C, M]` to `found`."""
    d, m = k.shape[2], v.shape[2]
    keys, turned, memory = zeros(CHUNK, d), zeros(d, CHUNK), zeros(CHUNK, m)
    x, state = zeros(CHUNK, m), zeros(d, m)
    low, fade = zeros(CHUNK, CHUNK), zeros(CHUNK, CHUNK)
    b, until = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for c in range((last - first + CHUNK - 1) // CHUNK):
        at = first + c * CHUNK
        n = min(CHUNK, last - at)
        load(k, at, n, of, np.float32(1.0), keys)
        load(v, at, n, h, np.float32(1.0), x)
        load_gates(e, beta, at, n, h, b, fade, until)
        transpose(keys, stride(d), CHUNK, d, turned, stride(CHUNK))
        transpose(state, stride(m), d, m, starts[c], stride(d))
        missing(keys, turned, state, fade, until, b, n, d, m, low, memory, x)
        found[c] = x
        advance(keys, fade, until, b, n, d, m, x, state)


@kernel()
def _solve_back(fade, kk, b, n, m, y, u):
    """Solve y[j] += sum over t > j of kk[t, j] u[t] in place, with u = -beta y.

    kk already includes the factor G[t, j].
    """
    ld, c = stride(m), stride(CHUNK)
    for i in range((n - 1) // ROWS * ROWS, -1, -ROWS):
        after = i + ROWS
        if after < n:
            for j in range(0, m, PANEL):
                fma_tile(
                    kk, after * c + i, 1, c, u, after * ld + j, ld, n - after, y, i * ld + j, ld,
                    False,
                )  # fmt: skip
        for j in range(min(after, n) - 1, i - 1, -1):
            row = y[j * ld : j * ld + m]
            for t in range(j + 1, min(after, n)):
                add_scaled(kk[t * c + j], u[t * ld : t * ld + m], row)
            scaled(-b[j], row, u[j * ld : j * ld + m])


@kernel()
def _gate_gradients(fade, qk, kk, dqk, dkk, own, ends, whole, n, dg):
    """Write dg `[n]`: dg[i] sums all terms with a factor exp(g[i]), each times its gradient.

    Three arguments are partial sums of these terms: `own[t]` covers the terms of o[t] and x[t] that
    contain S, `ends[j]` covers the term of the new S that contains d[j], and `whole` covers the
    term that contains the old S. `qk` contains G[t, j] scale (q[t] . k[j]), `kk` contains
    G[t, j] (k[t] . k[j]), and `dqk` and `dkk` are the gradients with respect to `qk` and `kk`.
    """
    ld = stride(CHUNK)
    later, crossing, before = 0.0, 0.0, 0.0
    for t in range(n):
        before += np.float64(ends[t])
    for i in range(n - 1, -1, -1):
        later += np.float64(own[i])
        before -= np.float64(ends[i])
        for t in range(i + 1, n):
            at = t * ld + i
            crossing -= np.float64(dkk[at] * kk[at]) + np.float64(dqk[at] * qk[at])
        for j in range(i):
            at = i * ld + j
            crossing += np.float64(dkk[at] * kk[at]) + np.float64(dqk[at] * qk[at])
        dg[i] = np.float32(later + crossing + before + np.float64(whole))


@kernel()
def chunks_back(do, q, k, v, e, beta, scale, first, last, of, h, starts, found, dq, dk, dv, dg, db):
    """Propagate dS backward through a sequence's chunks.

    Adds the gradients for q and k to dq and dk, and overwrites the other gradients.
    """
    d, m = k.shape[2], v.shape[2]
    kd, ld, c = stride(d), stride(m), stride(CHUNK)
    keys, queries, turned = zeros(CHUNK, d), zeros(CHUNK, d), zeros(d, CHUNK)
    douts, y, u, learnt = zeros(CHUNK, m), zeros(CHUNK, m), zeros(CHUNK, m), zeros(CHUNK, m)
    turned_learnt, to_key, to_query = zeros(m, CHUNK), zeros(CHUNK, d), zeros(CHUNK, d)
    kk, qk, dkk, dqk = (
        zeros(CHUNK, CHUNK), zeros(CHUNK, CHUNK), zeros(CHUNK, CHUNK), zeros(CHUNK, CHUNK),
    )  # fmt: skip
    fade, dstate, turned_dstate = zeros(CHUNK, CHUNK), zeros(d, m), zeros(m, d)
    b, until = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    ones, own, ends = np.ones(CHUNK, np.float32), np.empty(CHUNK), np.empty(CHUNK)
    dgates = np.empty(CHUNK, np.float32)
    one, end = np.float32(1.0), (CHUNK - 1) * c
    for number in range((last - first - 1) // CHUNK, -1, -1):
        at = first + number * CHUNK
        n = min(CHUNK, last - at)
        state, x = starts[number], found[number]
        load(k, at, n, of, one, keys)
        load(q, at, n, of, scale, queries)
        load(do, at, n, h, one, douts)
        load_gates(e, beta, at, n, h, b, fade, until)
        transpose(keys, kd, CHUNK, d, turned, c)
        multiply(keys, kd, 1, turned, c, d, kk, c, n, CHUNK, True)
        mask(fade, ones, n, one, 0, kk)  # G[t, j] (k[t] . k[j])
        multiply(queries, kd, 1, turned, c, d, qk, c, n, CHUNK, True)
        mask(fade, ones, n, one, 1, qk)
        # the gradient with respect to d, via S after the chunk, via o, and via x of later tokens
        multiply(keys, kd, 1, dstate, ld, d, y, ld, n, m, True)
        for t in range(n):
            row, of_t = y[t * ld : t * ld + m], learnt[t * ld : t * ld + m]
            scaled(fade[end + t], row, row)
            scaled(b[t], x[t * ld : t * ld + m], of_t)
            ends[t] = dot(row, of_t)
        multiply_upper(qk, c, douts, ld, n, y, ld, m)
        _solve_back(fade, kk, b, n, m, y, u)
        for t in range(n):
            scaled(-one, u[t * ld : t * ld + m], dv[at + t, h])
            db[at + t, h] = dot(y[t * ld : t * ld + m], x[t * ld : t * ld + m])
        # the gradients with respect to qk and kk
        transpose(learnt, ld, CHUNK, m, turned_learnt, c)
        multiply(u, ld, 1, turned_learnt, c, m, dkk, c, n, CHUNK, True)
        multiply(douts, ld, 1, turned_learnt, c, m, dqk, c, n, CHUNK, True)
        for t in range(n):
            dkk[t * c + t : t * c + CHUNK] = np.float32(0.0)
            dqk[t * c + t + 1 : t * c + CHUNK] = np.float32(0.0)
        # the contributions to dq and dk from S before the chunk
        multiply(douts, ld, 1, state, kd, m, to_query, kd, n, d, True)
        multiply(u, ld, 1, state, kd, m, to_key, kd, n, d, True)
        for t in range(n):
            from_q, from_k = to_query[t * kd : t * kd + d], to_key[t * kd : t * kd + d]
            scaled(until[t], from_q, from_q)
            scaled(until[t], from_k, from_k)
            own[t] = dot(from_q, queries[t * kd : t * kd + d]) + dot(
                from_k, keys[t * kd : t * kd + d]
            )
        transpose(dstate, ld, d, m, turned_dstate, kd)
        whole = np.float64(0.0)
        for i in range(m):
            whole += np.float64(dot(state[i * kd : i * kd + d], turned_dstate[i * kd : i * kd + d]))
        _gate_gradients(fade, qk, kk, dqk, dkk, own, ends, until[CHUNK - 1] * whole, n, dgates)
        dg[at : at + n, h] = dgates[:n]
        # the contributions from the other tokens in the chunk, and from S after the chunk
        mask(fade, ones, n, one, 0, dkk)
        mask(fade, ones, n, one, 1, dqk)
        multiply_lower(dqk, c, keys, kd, n, to_query, kd, d)
        multiply_lower(dkk, c, keys, kd, n, to_key, kd, d)
        multiply_upper(dkk, c, keys, kd, n, to_key, kd, d)
        multiply_upper(dqk, c, queries, kd, n, to_key, kd, d)
        for t in range(n):
            row = learnt[t * ld : t * ld + m]
            scaled(fade[end + t], row, row)
        multiply(learnt, ld, 1, turned_dstate, kd, m, to_key, kd, n, d, False)
        for t in range(n):
            add_scaled(scale, to_query[t * kd : t * kd + d], dq[at + t, of])
            add_scaled(one, to_key[t * kd : t * kd + d], dk[at + t, of])
        # dS before the chunk
        for t in range(n):
            from_o, from_x = douts[t * ld : t * ld + m], u[t * ld : t * ld + m]
            scaled(until[t], from_o, from_o)
            scaled(until[t], from_x, from_x)
        scaled(until[CHUNK - 1], dstate, dstate)
        multiply(queries, 1, kd, douts, ld, n, dstate, ld, d, m, False)
        multiply(keys, 1, kd, u, ld, n, dstate, ld, d, m, False)
