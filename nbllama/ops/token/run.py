"""The kernel that runs a token's program (see the package docstring).

A product W x is computed in integer arithmetic if the type of W has an integer dot product
(`quants.dot`) and `exact` is off. Otherwise, each row of W is decoded to float32 and multiplied.
The order of sums within a task is fixed, so the result is bit-identical for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import carray, prange, types
from numba.core.errors import TypingError
from numba.extending import overload

from nbllama.kernels.jit import kernel, thread_routine
from nbllama.kernels.threading_layer import get_num_threads
from nbllama.kernels.threads import call, count, count_more, pointer, wait_for
from nbllama.ops.attention.few import CHUNK
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.mixer_tasks import (
    conv_task,
    delta_conv_task,
    delta_out_task,
    delta_task,
)
from nbllama.ops.token.mixture_tasks import expert_task, route_task, sum_task
from nbllama.ops.token.tasks import (
    act_task,
    branch_task,
    cap_task,
    dot,
    expert_of,
    finish_row,
    floats,
    gate_task,
    heads_task,
    hidden_task,
    int8_numbers,
    int16_numbers,
    join_task,
    norm_task,
    part_of,
    raw_bytes,
    scores_task,
)
from nbllama.quants import QUANTS, decode_blocks
from nbllama.quants.dot import SUMMED, dot_blocks, int8_block

MOST_TYPES = 6
NO_TYPE = -1  # an unused entry in the list of types

NORM, HIDDEN, PRODUCT, HEADS = kinds.NORM, kinds.HIDDEN, kinds.PRODUCT, kinds.HEADS
SCORES, JOIN, BRANCH, GATE, ACT = (
    kinds.SCORES, kinds.JOIN, kinds.BRANCH, kinds.GATE, kinds.ACT
)  # fmt: skip
PHASE_ROW, STEP = kinds.PHASE, kinds.STEP
NORM_ROW, HIDDEN_ROW, PRODUCT_ROW = kinds.NORM_ROW, kinds.HIDDEN_ROW, kinds.PRODUCT_ROW
HEADS_ROW, BRANCH_ROW, GATE_ROW = kinds.HEADS_ROW, kinds.BRANCH_ROW, kinds.GATE_ROW
CAP_ROW, ACT_ROW = kinds.CAP_ROW, kinds.ACT_ROW
ROUTE, EXPERT, SUM, CONV = kinds.ROUTE, kinds.EXPERT, kinds.SUM, kinds.CONV
DELTA_CONV, DELTA, DELTA_OUT = kinds.DELTA_CONV, kinds.DELTA, kinds.DELTA_OUT
ROUTE_ROW, EXPERT_ROW, SUM_ROW = kinds.ROUTE_ROW, kinds.EXPERT_ROW, kinds.SUM_ROW
CONV_ROW, DELTA_CONV_ROW = kinds.CONV_ROW, kinds.DELTA_CONV_ROW
DELTA_ROW, DELTA_OUT_ROW = kinds.DELTA_ROW, kinds.DELTA_OUT_ROW


def row_product(type_id: int, exact: int, raw: Any, src: Any, p: Any, step: Any, row: Any) -> Any:
    """Return the dot product of a row of W and the input.

    This function can be called only from kernels, and it does not check its arguments. The row
    begins at byte `src` of `raw`. `p` is a row of the `PRODUCT_ROW` table, and `row` is scratch
    memory.
    """
    raise NotImplementedError("row_product can be called only from kernels")


@overload(row_product, prefer_literal=True, inline="always")
def _row_product(type_id, exact, raw, src, p, step, row):
    if not isinstance(type_id, types.IntegerLiteral) or not isinstance(exact, types.IntegerLiteral):
        raise TypingError("row_product: type_id and exact must be literal integers")
    number = type_id.literal_value
    if number == NO_TYPE:
        return lambda type_id, exact, raw, src, p, step, row: np.float32(0.0)
    block = 0 if exact.literal_value else int8_block(number)

    def by_32(type_id, exact, raw, src, p, step, row):
        n, at = p.n_in // 32, 4 * (p.at // 32)
        q = int8_numbers(step.q32 + p.at, p.n_in)
        d, sums = floats(step.d32 + at, n), floats(step.s32 + at, n)
        return dot_blocks(number, raw, src, n, q, d, sums, 0)

    def by_256(type_id, exact, raw, src, p, step, row):
        n = p.n_in // 256
        q = int8_numbers(step.q256 + p.at, p.n_in)
        d = floats(step.d256 + 4 * (p.at // 256), n)
        sums = int16_numbers(step.s256 + 2 * (p.at // SUMMED), p.n_in // SUMMED)
        return dot_blocks(number, raw, src, n, q, d, sums, 0)

    size = QUANTS[number].block_size

    def decoded(type_id, exact, raw, src, p, step, row):
        decode_blocks(number, raw, src, p.n_in // size, row, 0)
        return dot(row, floats(p.x, p.n_in), p.n_in)

    return {0: decoded, 32: by_32, 256: by_256}[block]


def _thread_entry(t0: int, t1: int, t2: int, t3: int, t4: int, t5: int, exact: int) -> Any:
    @thread_routine
    def thread(address, number):
        step = carray(pointer(address), 1, STEP)[0]
        program = carray(pointer(step.program), step.n_phases, PHASE_ROW)
        norms = carray(pointer(step.norms), step.most_rows, NORM_ROW)
        pairs = carray(pointer(step.pairs), step.most_rows, HIDDEN_ROW)
        products = carray(pointer(step.products), step.most_rows, PRODUCT_ROW)
        heads = carray(pointer(step.heads), step.most_rows, HEADS_ROW)
        branches = carray(pointer(step.branches), step.most_rows, BRANCH_ROW)
        gates = carray(pointer(step.gates), step.most_rows, GATE_ROW)
        caps = carray(pointer(step.caps), step.most_rows, CAP_ROW)
        acts = carray(pointer(step.acts), step.most_rows, ACT_ROW)
        routes = carray(pointer(step.routes), step.most_rows, ROUTE_ROW)
        experts = carray(pointer(step.experts), step.most_rows, EXPERT_ROW)
        totals = carray(pointer(step.sums), step.most_rows, SUM_ROW)
        convs = carray(pointer(step.convs), step.most_rows, CONV_ROW)
        delta_convs = carray(pointer(step.delta_convs), step.most_rows, DELTA_CONV_ROW)
        deltas = carray(pointer(step.deltas), step.most_rows, DELTA_ROW)
        delta_outs = carray(pointer(step.delta_outs), step.most_rows, DELTA_OUT_ROW)
        drawn = carray(pointer(step.drawn), step.n_phases, np.int64)
        done = carray(pointer(step.done), step.n_phases, np.int64)
        row = floats(step.scratch + 4 * number * step.width, step.width)
        for i in range(step.n_phases):
            phase = program[i]
            tasks, first = phase.tasks, phase.first
            if phase.kind == SCORES:
                tasks *= step.at // CHUNK + 1
            mine, task = 0, count(drawn, i)
            while task < tasks:
                if phase.kind == PRODUCT:
                    s, part = part_of(products, first, task)
                    p = products[s]
                    raw = raw_bytes(p.w, p.w_bytes)
                    before = expert_of(p.chosen) * p.n_out
                    for n in range(part * p.rows, min((part + 1) * p.rows, p.n_out)):
                        src = (before + n) * p.row_bytes
                        if p.code == 0:
                            value = row_product(t0, exact, raw, src, p, step, row)
                        elif p.code == 1:
                            value = row_product(t1, exact, raw, src, p, step, row)
                        elif p.code == 2:
                            value = row_product(t2, exact, raw, src, p, step, row)
                        elif p.code == 3:
                            value = row_product(t3, exact, raw, src, p, step, row)
                        elif p.code == 4:
                            value = row_product(t4, exact, raw, src, p, step, row)
                        else:
                            value = row_product(t5, exact, raw, src, p, step, row)
                        finish_row(p, n, before + n, value)
                elif phase.kind == NORM:
                    norm_task(norms[first], step)
                elif phase.kind == HIDDEN:
                    hidden_task(pairs, first, task)
                elif phase.kind == HEADS:
                    heads_task(heads[first], task, step)
                elif phase.kind == SCORES:
                    scores_task(heads[first], task, step)
                elif phase.kind == JOIN:
                    join_task(heads[first], step)
                elif phase.kind == BRANCH:
                    branch_task(branches[first])
                elif phase.kind == GATE:
                    gate_task(gates[first], task, step)
                elif phase.kind == ACT:
                    act_task(acts[first], task, step)
                elif phase.kind == ROUTE:
                    route_task(routes[first])
                elif phase.kind == EXPERT:
                    expert_task(experts[first + task], step)
                elif phase.kind == SUM:
                    sum_task(totals[first], task)
                elif phase.kind == CONV:
                    conv_task(convs[first], task, step)
                elif phase.kind == DELTA_CONV:
                    delta_conv_task(delta_convs[first], task)
                elif phase.kind == DELTA:
                    delta_task(deltas[first], task)
                elif phase.kind == DELTA_OUT:
                    delta_out_task(delta_outs[first], task, step)
                else:
                    cap_task(caps[first], task)
                mine, task = mine + 1, count(drawn, i)
            if mine > 0:
                count_more(done, i, mine)
            wait_for(done, i, tasks)

    return thread


thread_entry = cache(_thread_entry)


@kernel(parallel=True)
def _walk(routine, address, threads):
    for thread in prange(threads):
        call(routine, address, thread)


def n_threads() -> int:
    """Return the number of threads that run a program; each has its own row of scratch memory."""
    return get_num_threads()


def walk(types: Sequence[int], exact: bool, step: np.ndarray, threads: int) -> None:
    """Run a program.

    `types` lists the program's weight types; a `code` in `PRODUCT_ROW` is an index into this list.
    `step` is a `STEP` array with one row. The addresses in `step` are not checked.
    """
    if step.dtype != STEP or step.shape != (1,) or len(types) > MOST_TYPES:
        raise ValueError(
            f"walk: expected one STEP record and at most {MOST_TYPES} weight types, not an array "
            f"of shape {step.shape} and {len(types)} weight types"
        )
    routine = thread_entry(*types, *[NO_TYPE] * (MOST_TYPES - len(types)), int(exact))
    _walk(routine.address, step.ctypes.data, threads)
