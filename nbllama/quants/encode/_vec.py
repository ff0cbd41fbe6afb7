"""The two inner steps of each scale search, as straight-line vector code for groups of 16 or 32.

A search tries several scales. For each scale, it rounds all weights of a group to codes and sums
products. A quantiser spends nearly all its time in these two steps. LLVM unrolls such short loops
before its vectoriser runs, so this module uses explicit vectors, which LLVM distributes over
registers.

A code is `clamp(round(inverse * (x - least)), low, high)`, with ties rounded to even. `x` and `w`
are float32 scratch arrays of at least `n` elements; their sizes are not checked. LLVM chooses the
order of the additions for the CPU. On a given CPU, the order does not depend on the number of
threads.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic  # its annotation includes the first argument, which callers omit
_F32, _I32 = ir.FloatType(), ir.IntType(32)
_SUM = ("reassoc", "contract", "nsz")


def _lanes(n: Any) -> int:
    if not isinstance(n, types.IntegerLiteral) or n.literal_value not in (16, 32):
        raise TypingError("the size of a group must be the literal 16 or 32")
    return int(n.literal_value)


class _Vectors:
    """Short names for vector operations on `lanes` float32 numbers."""

    def __init__(self, context: Any, builder: Any, lanes: int) -> None:
        self.context, self.builder, self.lanes = context, builder, lanes
        self.kind = ir.VectorType(_F32, lanes)

    def spread(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.kind, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def load(self, array_type: Any, array: Any) -> Any:
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        loaded = self.builder.load(self.builder.bitcast(data, self.kind.as_pointer()))
        loaded.align = 4
        return loaded

    def call(self, name: str, kinds: list[Any], *args: Any) -> Any:
        signature = ir.FunctionType(self.kind, kinds)
        module = self.builder.module
        f = cgutils.get_or_insert_function(module, signature, f"{name}.v{self.lanes}f32")
        return self.builder.call(f, args)

    def codes(self, x: Any, least: Any, inverse: Any, low: Any, high: Any) -> Any:
        b = self.builder
        scaled = b.fmul(b.fsub(x, self.spread(least)), self.spread(inverse))
        q = self.call("llvm.rint", [self.kind], scaled)
        low, high = self.spread(low), self.spread(high)
        q = b.select(b.fcmp_ordered("<", q, high), q, high)
        return b.select(b.fcmp_ordered(">", q, low), q, low)

    def total(self, vector: Any) -> Any:
        signature = ir.FunctionType(_F32, [_F32, self.kind])
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f32"
        f = cgutils.get_or_insert_function(self.builder.module, signature, name)
        result = self.builder.call(f, [_F32(-0.0), vector])
        for flag in _SUM:
            result.fastmath.add(flag)
        return result


@intrinsic(prefer_literal=True)
def code_sums(typingctx, n, x, w, least, inverse, low, high):
    """Return the sums of w * q, w * q * q and w * q * x over a group with the codes q."""
    lanes = _lanes(n)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder, lanes)
        xs, ws = v.load(signature.args[1], args[1]), v.load(signature.args[2], args[2])
        q = v.codes(xs, *args[3:])
        wq = builder.fmul(ws, q)
        sums = [v.total(wq)]
        sums += [v.total(builder.fmul(wq, other, flags=_SUM)) for other in (q, xs)]
        return context.make_tuple(builder, signature.return_type, sums)

    f = types.float32
    return types.UniTuple(f, 3)(n, x, w, f, f, f, f), codegen


@intrinsic(prefer_literal=True)
def code_error(typingctx, n, x, w, least, inverse, high, scale, offset, power):
    """Return the sum of w * |scale * q + offset - x| ** power over the group's codes q.

    `power` is a literal 1 or 2. `least` and `inverse` determine the codes, which are limited to
    0..high; `scale` and `offset` determine the weights that the codes represent.
    """
    lanes = _lanes(n)
    if not isinstance(power, types.IntegerLiteral) or power.literal_value not in (1, 2):
        raise TypingError("power must be the literal 1 or 2")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder, lanes)
        xs, ws = v.load(signature.args[1], args[1]), v.load(signature.args[2], args[2])
        least, inverse, high, scale, offset = args[3:8]
        q = v.codes(xs, least, inverse, _F32(0.0), high)
        made = builder.fadd(builder.fmul(v.spread(scale), q), v.spread(offset))
        miss = builder.fsub(made, xs)
        if power.literal_value == 1:
            miss = v.call("llvm.fabs", [v.kind], miss)
        else:
            miss = builder.fmul(miss, miss)
        return v.total(builder.fmul(ws, miss))

    f = types.float32
    return f(n, x, w, f, f, f, f, f, power), codegen


@intrinsic
def single_bits(typingctx, value):
    """Return the 32-bit pattern of a float32 as an int64 in 0..2^32-1."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], _I32), ir.IntType(64))

    return types.int64(types.float32), codegen
