"""Counters that synchronise threads between phases, and functions that access raw memory.

A phase ends when all its tasks are *done*, not when all threads have *arrived*. If the system
starts a thread late or not at all, the other threads draw its tasks and are not delayed.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nbllama.kernels.jit import kernel

_I64 = ir.IntType(64)
_PATIENCE = 4000  # polls of a counter before the thread yields its core

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
    """Add `more` to counters[index] atomically; return the previous value.

    A thread that reads the new value also sees everything that the caller wrote before the call.
    """
    sig = types.int64(counters, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        place = _place(context, builder, signature.args[0], *args[:2])
        return builder.atomic_rmw("add", place, args[2], "acq_rel")

    return sig, codegen


@kernel(inline=True)
def count(counters, index):
    """Increment counters[index] atomically, like `count_more`; return the previous value."""
    return count_more(counters, index, 1)


@intrinsic
def counted(typingctx, counters, index):
    """Read counters[index] from memory and return it.

    All writes that other threads made before they incremented the counter are then visible.
    """
    sig = types.int64(counters, types.int64)

    def codegen(context, builder, signature, args):
        place = _place(context, builder, signature.args[0], *args)
        return builder.load_atomic(place, "acquire", 8)

    return sig, codegen


@kernel()
def wait_for(done, phase, tasks):
    """Wait until the counter done[phase] reaches `tasks`."""
    looks = 0
    while counted(done, phase) < tasks:
        looks += 1
        if looks > _PATIENCE:
            _sched_yield()


@intrinsic
def pointer(typingctx, address):
    """Convert an int64 to a pointer, for `numba.carray`."""
    sig = types.voidptr(types.int64)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return sig, codegen


@intrinsic
def call(typingctx, routine, address, number):
    """Call the machine code at address `routine` (a `jit.thread_routine`) with two integers."""
    sig = types.void(types.int64, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return sig, codegen
