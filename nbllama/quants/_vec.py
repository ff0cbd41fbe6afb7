"""Numba types for short vectors, with operators: `Codes` (n bytes), `Weights` (n float32 numbers).

A line such as `store(out, to, d * signed((load16(raw, at) & 15) - 8))` becomes a few vector
instructions on any CPU. The operators emit generic LLVM vector arithmetic, and LLVM distributes 16
float32 lanes over registers (one with AVX-512, two with AVX2, four with SSE2 or NEON). LLVM would
not vectorise plain loops over 16 or 32 bytes, because it unrolls them before its loop vectoriser
runs, and Numba disables the vectoriser for straight-line code.

| expression | meaning, in each lane |
|---|---|
| `load4/8/16/32(raw, i)` | the bytes starting at `i`, as Codes |
| `q & k`, `q >> k`, `q << k`, `q - k`, `q * k` | the same integer k in all lanes; modulo 256 |
| `q OR p` (Python's bar operator) | bitwise or of two Codes |
| `unsigned(q)`, `signed(q)` | byte (0..255, -128..127) converted to float32, as Weights |
| `d * w`, `w + m`, `w - m` | the same float32 d or m in all lanes; every step is rounded (no FMA) |
| `store(out, i, w)` | out[i ...] = w |

Floating-point results are bit-identical to scalar code. Bounds are not checked. As in `_raw`, `raw`
and `out` never overlap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.extending import lower_builtin, register_model, type_callable

from nbllama.quants._raw import intrinsic, mark_raw_load, mark_store_outside

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class Codes(types.Type):
    """A vector of `lanes` bytes."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.lane = lanes, _I8
        super().__init__(name=f"Codes({lanes})")


class Weights(types.Type):
    """A vector of `lanes` float32 numbers."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.lane = lanes, _F32
        super().__init__(name=f"Weights({lanes})")


@register_model(Codes)
@register_model(Weights)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(kind.lane, kind.lanes))


def _spread(builder: Any, scalar: Any, lanes: int) -> Any:
    """Return a vector with `scalar` in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, undefined, zeros)


def _operator(symbol: Any, left: type, right: type, emit: Callable[[Any, Any, Any], Any]) -> None:
    """Define an operator for operands of the types `left` and `right`.

    `emit(builder, a, b)` generates the code; a and b are the operands as vectors.
    """

    def typing(context: Any) -> Callable[[Any, Any], Any]:
        def result(a: Any, b: Any) -> Any:
            if not (isinstance(a, left) and isinstance(b, right)):
                return None
            vectors = [x for x in (a, b) if isinstance(x, (Codes, Weights))]
            return vectors[0] if vectors[0] == vectors[-1] else None

        return result

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = signature.return_type
        wide = []
        for kind, value in zip(signature.args, args, strict=True):
            if isinstance(kind, types.Integer):
                value = _spread(builder, builder.trunc(value, _I8), vector.lanes)
            elif isinstance(kind, types.Float):
                value = _spread(builder, value, vector.lanes)
            wide.append(value)
        return emit(builder, *wide)

    type_callable(symbol)(typing)
    lower_builtin(symbol, left, right)(lower)


_operator(operator.and_, Codes, types.Integer, lambda builder, a, b: builder.and_(a, b))
_operator(operator.or_, Codes, Codes, lambda builder, a, b: builder.or_(a, b))
_operator(operator.rshift, Codes, types.Integer, lambda builder, a, b: builder.lshr(a, b))
_operator(operator.lshift, Codes, types.Integer, lambda builder, a, b: builder.shl(a, b))
_operator(operator.sub, Codes, types.Integer, lambda builder, a, b: builder.sub(a, b))
_operator(operator.mul, Codes, types.Integer, lambda builder, a, b: builder.mul(a, b))
_operator(operator.mul, types.Float, Weights, lambda builder, a, b: builder.fmul(a, b))
_operator(operator.add, Weights, types.Float, lambda builder, a, b: builder.fadd(a, b))
_operator(operator.sub, Weights, types.Float, lambda builder, a, b: builder.fsub(a, b))


def _load(lanes: int, raw: Any) -> Any:
    if not isinstance(raw, types.Array) or raw.dtype != types.uint8:
        raise TypeError(f"raw must be a uint8 array, not {raw}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        kind = ir.VectorType(_I8, lanes).as_pointer()
        codes = builder.load(builder.bitcast(builder.gep(array.data, [args[1]]), kind))
        mark_raw_load(builder, codes)
        return codes

    return Codes(lanes)(raw, types.int64), codegen


@intrinsic
def load4(typingctx, raw, i):
    """Load bytes i .. i+3 of `raw`."""
    return _load(4, raw)


@intrinsic
def load8(typingctx, raw, i):
    """Load bytes i .. i+7 of `raw`."""
    return _load(8, raw)


@intrinsic
def load16(typingctx, raw, i):
    """Load bytes i .. i+15 of `raw`."""
    return _load(16, raw)


@intrinsic
def load32(typingctx, raw, i):
    """Load bytes i .. i+31 of `raw`."""
    return _load(32, raw)


@intrinsic
def nibbles8(typingctx, raw, i):
    """Read bytes i .. i+7 of `raw` as 16 codes: the low halves, then the high halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        half = ir.VectorType(_I8, 8)
        packed = builder.load(builder.bitcast(builder.gep(data, [args[1]]), half.as_pointer()))
        mark_raw_load(builder, packed)
        high = builder.lshr(packed, ir.Constant(half, [4] * 8))
        order = ir.Constant(ir.VectorType(_I32, 16), list(range(16)))
        both = builder.shuffle_vector(packed, high, order)
        return builder.and_(both, ir.Constant(both.type, [15] * 16))

    return Codes(16)(raw, types.int64), codegen


@intrinsic
def unsigned(typingctx, codes):
    """Convert bytes 0..255 to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.zext(args[0], ir.VectorType(_I32, codes.lanes))
        return builder.sitofp(wide, ir.VectorType(_F32, codes.lanes))

    return Weights(codes.lanes)(codes), codegen


@intrinsic
def signed(typingctx, codes):
    """Convert bytes -128..127 to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.sext(args[0], ir.VectorType(_I32, codes.lanes))
        return builder.sitofp(wide, ir.VectorType(_F32, codes.lanes))

    return Weights(codes.lanes)(codes), codegen


@intrinsic
def times_over_256(typingctx, codes, factor):
    """Compute (code * factor) // 256 for codes in 0..255 and a factor in 0..255."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.zext(args[0], ir.VectorType(_I16, codes.lanes))
        factors = _spread(builder, builder.trunc(args[1], _I16), codes.lanes)
        high = builder.lshr(builder.mul(wide, factors), ir.Constant(wide.type, [8] * codes.lanes))
        return builder.trunc(high, args[0].type)

    return codes(codes, types.int64), codegen


@intrinsic
def bits16(typingctx, bits):
    """Return the 16 low bits of an integer as 16 codes, each 0 or 1, lowest bit first."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = builder.bitcast(builder.trunc(args[0], _I16), ir.VectorType(ir.IntType(1), 16))
        return builder.zext(lanes, ir.VectorType(_I8, 16))

    return Codes(16)(types.int64), codegen


@intrinsic
def two_rows_of_4(typingctx, book, i, k):
    """Load bytes i .. i+3 and k .. k+3 of `book` as 8 codes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        kind = ir.VectorType(_I8, 4).as_pointer()
        rows = [
            builder.load(builder.bitcast(builder.gep(array.data, [at]), kind)) for at in args[1:]
        ]
        for row in rows:
            mark_raw_load(builder, row)
        order = ir.Constant(ir.VectorType(_I32, 8), list(range(8)))
        return builder.shuffle_vector(rows[0], rows[1], order)

    return Codes(8)(book, types.int64, types.int64), codegen


@intrinsic
def negative_where(typingctx, weights, bits):
    """Negate lane i of a Weights(8) for every bit i (lowest first) that is set in `bits`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = builder.bitcast(builder.trunc(args[1], _I8), ir.VectorType(ir.IntType(1), 8))
        return builder.select(where, builder.fneg(args[0]), args[0])

    return Weights(8)(Weights(8), types.int64), codegen


@intrinsic
def lookup(typingctx, table, codes):
    """Look up 16 codes, each of which must be below 16, in a table of 16 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        vector = ir.VectorType(_I8, 16)
        values = builder.load(builder.bitcast(array.data, vector.as_pointer()))
        values.align = 1
        triple, _, features = context.codegen().magic_tuple()
        machine = triple.split("-")[0]
        name = None
        if "+ssse3" in features.split(","):
            name = "llvm.x86.ssse3.pshuf.b.128"
        elif machine in ("aarch64", "arm64"):
            name = "llvm.aarch64.neon.tbl1.v16i8"
        if name:
            kind = ir.FunctionType(vector, [vector, vector])
            shuffle = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(shuffle, [values, args[1]])
        out = ir.Constant(vector, ir.Undefined)
        for lane in range(16):
            code = builder.extract_element(args[1], _I32(lane))
            value = builder.extract_element(values, builder.zext(code, _I32))
            out = builder.insert_element(out, value, _I32(lane))
        return out

    return Codes(16)(table, Codes(16)), codegen


@intrinsic
def store(typingctx, out, i, weights):
    """Set out[i + lane] = weights[lane] for a float32 array that does not overlap any `raw`."""
    if not isinstance(out, types.Array) or out.dtype != types.float32 or not out.mutable:
        raise TypeError(f"out must be a writable float32 array, not {out}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        kind = ir.VectorType(_F32, weights.lanes).as_pointer()
        place = builder.bitcast(builder.gep(array.data, [args[1]]), kind)
        mark_store_outside(builder, builder.store(args[2], place))
        return context.get_dummy_value()

    return types.void(out, types.int64, weights), codegen
