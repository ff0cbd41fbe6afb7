"""Counters by which threads go through phases together, and what they hand each other by address.

A phase ends when all its tasks are *done*, not when all threads have *arrived*: a thread that the
system starts late, or never, holds nobody up, since the others draw its tasks.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nbllama.kernels.jit import kernel

_I64 = ir.IntType(64)
_PATIENCE = 4000  # looks at a counter before the core is offered to others

if os.name == "posix":
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())
else:

    @kernel()
    def _sched_yield():
        return 0


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def count_more(typingctx, counters, index, more):
    """Compute counters[index] += more as one indivisible step; return the number before it.

    What this thread wrote before is seen by whoever sees the new number.
    """
    sig = types.int64(counters, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        place = _place(context, builder, signature.args[0], *args[:2])
        return builder.atomic_rmw("add", place, args[2], "acq_rel")

    return sig, codegen


@kernel(inline=True)
def count(counters, index):
    """counters[index]++, as `count_more` does it."""
    return count_more(counters, index, 1)


@intrinsic
def counted(typingctx, counters, index):
    """counters[index], read anew each time, with all that was written before it was counted up."""
    sig = types.int64(counters, types.int64)

    def codegen(context, builder, signature, args):
        place = _place(context, builder, signature.args[0], *args)
        return builder.load_atomic(place, "acquire", 8)

    return sig, codegen


@kernel()
def wait_for(done, phase, tasks):
    """Return when `tasks` tasks of a phase are done."""
    looks = 0
    while counted(done, phase) < tasks:
        looks += 1
        if looks > _PATIENCE:
            _sched_yield()


@intrinsic
def pointer(typingctx, address):
    """Return an int64 as a pointer, for `numba.carray`."""
    sig = types.voidptr(types.int64)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return sig, codegen


@intrinsic
def call(typingctx, routine, address, number):
    """Call the machine code at `routine`, a `jit.thread_routine`, with two integers."""
    sig = types.void(types.int64, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return sig, codegen
