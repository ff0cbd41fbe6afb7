"""Integer dot products of bytes, and the Numba types that they use in addition to those of `_vec`.

| type | meaning |
|---|---|
| `Codes(32)` | 32 bytes of a row of W (0..127, or signed) or of x (-127..127) |
| `Dots` | 8 int32 sums, each of four neighbouring products |
| `Scales` | 16 int16 factors, one for every two neighbouring bytes |
| `Weights(8)` | 8 float32 sums |

The integers in every lane are the same on every CPU. With AVX2, multiplying 32 bytes takes two
instructions (`vpmaddubsw`, `vpmaddwd`), and two more if the codes are signed. On other CPUs,
generic LLVM vector arithmetic computes the same sums. Sums of two products are stored in 16 bits,
so each product must be below 2^14, which is true for the ranges in the table.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.extending import lower_builtin, register_model, type_callable

from nbllama.quants._raw import half_by_integers, has_half, intrinsic, mark_raw_load
from nbllama.quants._vec import Codes, Weights

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_BYTES, _SHORTS = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16)
_INTS, _FLOATS = ir.VectorType(_I32, 8), ir.VectorType(_F32, 8)


class _Ints(types.Type):
    """A vector of integers with the LLVM type `vector`."""

    def __init__(self, name: str, vector: Any) -> None:
        self.vector = vector
        super().__init__(name=name)


@register_model(_Ints)
class _IntsModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.vector)


DOTS, SCALES = _Ints("Dots", _INTS), _Ints("Scales", _SHORTS)


def _both_dots(context: Any) -> Any:
    return lambda a, b: DOTS if a == b == DOTS else None


def _dots_and_int(context: Any) -> Any:
    return lambda a, b: DOTS if a == DOTS and isinstance(b, types.Integer) else None


def _times(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.mul(args[0], _splat(builder, builder.trunc(args[1], _I32), 8))


type_callable(operator.add)(_both_dots)
type_callable(operator.sub)(_both_dots)
type_callable(operator.mul)(_dots_and_int)
lower_builtin(operator.add, _Ints, _Ints)(lambda context, builder, sig, args: builder.add(*args))
lower_builtin(operator.sub, _Ints, _Ints)(lambda context, builder, sig, args: builder.sub(*args))
lower_builtin(operator.mul, _Ints, types.Integer)(_times)


def _has_avx2(context: Any) -> bool:
    return "+avx2" in context.codegen().magic_tuple()[2].split(",")


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _lanes(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return _lanes(builder, one, undefined, [0] * lanes)


def _neighbours(builder: Any, products: Any) -> Any:
    """Add lanes 2i and 2i + 1."""
    n = products.type.count
    even = _lanes(builder, products, products, list(range(0, n, 2)))
    return builder.add(even, _lanes(builder, products, products, list(range(1, n, 2))))


def _pairs(context: Any, builder: Any, w: Any, x: Any, signed: bool) -> Any:
    """Return w[2i] x[2i] + w[2i+1] x[2i+1] for i = 0 .. 15, as <16 x i16>."""
    if _has_avx2(context):
        if signed:
            x = _call(builder, "llvm.x86.avx2.psign.b", _BYTES, x, w)
            w = _call(builder, "llvm.abs.v32i8", _BYTES, w, ir.Constant(ir.IntType(1), 0))
        return _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS, w, x)
    wide = ir.VectorType(_I16, 32)
    extended = builder.sext(w, wide) if signed else builder.zext(w, wide)
    return _neighbours(builder, builder.mul(extended, builder.sext(x, wide)))


def _fours(context: Any, builder: Any, pairs: Any, factors: Any) -> Any:
    """Return pairs[2i] factors[2i] + pairs[2i+1] factors[2i+1] for i = 0 .. 7, as <8 x i32>."""
    if _has_avx2(context):
        return _call(builder, "llvm.x86.avx2.pmadd.wd", _INTS, pairs, factors)
    wide = ir.VectorType(_I32, 16)
    products = builder.mul(builder.sext(pairs, wide), builder.sext(factors, wide))
    return _neighbours(builder, products)


def _load(builder: Any, context: Any, kind: Any, array: Any, at: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    place = builder.bitcast(builder.gep(data, [at]), vector.as_pointer())
    return builder.load(place, align=1)


@intrinsic
def bytes32(typingctx, q, i):
    """Load numbers i .. i+31 of an int8 array as Codes(32)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, context, signature.args[0], args[0], args[1], _BYTES)

    return Codes(32)(q, types.int64), codegen


@intrinsic
def join(typingctx, low, high):
    """Concatenate two Codes(16)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _lanes(builder, args[0], args[1], list(range(32)))

    return Codes(32)(Codes(16), Codes(16)), codegen


@intrinsic
def nibbles(typingctx, raw, i):
    """Read 16 bytes at byte i of `raw` as 32 codes: the low halves, then the high halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        half = ir.VectorType(_I8, 16)
        packed = builder.load(builder.bitcast(builder.gep(data, [args[1]]), half.as_pointer()))
        mark_raw_load(builder, packed)
        high = builder.lshr(packed, ir.Constant(half, [4] * 16))
        both = _lanes(builder, packed, high, list(range(32)))
        return builder.and_(both, ir.Constant(_BYTES, [15] * 32))

    return Codes(32)(raw, types.int64), codegen


@intrinsic
def bits32(typingctx, bits):
    """Return Codes(32) with 16 in each lane whose bit in `bits` is set (lowest first), else 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = builder.bitcast(builder.trunc(args[0], _I32), ir.VectorType(ir.IntType(1), 32))
        sixteen, zero = ir.Constant(_BYTES, [16] * 32), ir.Constant(_BYTES, [0] * 32)
        return builder.select(where, sixteen, zero)

    return Codes(32)(types.int64), codegen


@intrinsic
def bytes_of(typingctx, low, high):
    """Return the 8 bytes of the int64 `low` and the 8 bytes of `high`, as Codes(16)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair = ir.Constant(ir.VectorType(ir.IntType(64), 2), ir.Undefined)
        for lane, number in enumerate(args):
            pair = builder.insert_element(pair, number, _I32(lane))
        return builder.bitcast(pair, ir.VectorType(_I8, 16))

    return Codes(16)(types.int64, types.int64), codegen


@intrinsic
def each_twice(typingctx, codes):
    """Return Codes(16) in which each of the first 8 lanes of `codes` appears twice in a row."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _lanes(builder, args[0], args[0], [i // 2 for i in range(16)])

    return Codes(16)(Codes(16)), codegen


def _widen(signed: bool) -> Any:
    @intrinsic
    def widen(typingctx, codes):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return (builder.sext if signed else builder.zext)(args[0], _SHORTS)

        return SCALES(Codes(16)), codegen

    return widen


# These functions convert 16 codes to 16 factors of 16 bits.
unsigned_scales, signed_scales = _widen(False), _widen(True)


@intrinsic
def scale_of(typingctx, scales, g):
    """Return Scales with factor `g` of `scales` in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factor = builder.extract_element(args[0], builder.trunc(args[1], _I32))
        return _splat(builder, factor, 16)

    return SCALES(SCALES, types.int64), codegen


@intrinsic
def scales_of(typingctx, scales, g):
    """Return Scales with factor `g` of `scales` in the lower half and `g + 1` in the upper half."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        g = builder.trunc(args[1], _I32)
        low = _splat(builder, builder.extract_element(args[0], g), 8)
        g = builder.add(g, _I32(1))
        high = _splat(builder, builder.extract_element(args[0], g), 8)
        return _lanes(builder, low, high, list(range(16)))

    return SCALES(SCALES, types.int64), codegen


def _dot(signed: bool, scaled: bool) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pairs = _pairs(context, builder, args[0], args[1], signed)
        return _fours(
            context, builder, pairs, args[2] if scaled else ir.Constant(_SHORTS, [1] * 16)
        )

    return codegen


@intrinsic
def dot(typingctx, w, x):
    """Return the Dots of codes w (0..127) and numbers x (-127..127), both Codes(32)."""
    return DOTS(Codes(32), Codes(32)), _dot(False, False)


@intrinsic
def dot_signed(typingctx, w, x):
    """Return the Dots of signed codes w (-128..127) and numbers x (-127..127)."""
    return DOTS(Codes(32), Codes(32)), _dot(True, False)


@intrinsic
def dot_scaled(typingctx, w, x, scales):
    """Return the Dots of codes w (0..127) and numbers x (-127..127).

    Each sum of two neighbouring products is multiplied by its factor in `scales`.
    """
    return DOTS(Codes(32), Codes(32), SCALES), _dot(False, True)


@intrinsic
def dot_sums(typingctx, scales, sums, i):
    """Multiply 16 factors by the int16 `sums[i : i + 16]`; add neighbouring products into Dots."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loaded = _load(builder, context, signature.args[1], args[1], args[2], _SHORTS)
        return _fours(context, builder, args[0], loaded)

    return DOTS(SCALES, sums, types.int64), codegen


@intrinsic
def no_dots(typingctx):
    """Return Dots that are all zero."""
    return DOTS(), lambda context, builder, signature, args: ir.Constant(_INTS, [0] * 8)


@intrinsic
def halves8(typingctx, low, high):
    """Return Weights(8) with `low` in the first four lanes and `high` in the last four."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair = ir.Constant(ir.VectorType(_F32, 2), ir.Undefined)
        for lane, value in enumerate(args):
            pair = builder.insert_element(pair, value, _I32(lane))
        return _lanes(builder, pair, pair, [0, 0, 0, 0, 1, 1, 1, 1])

    return Weights(8)(types.float32, types.float32), codegen


@intrinsic
def zeros8(typingctx):
    """Return Weights(8) that are all zero."""
    zeros = ir.Constant(_FLOATS, [0.0] * 8)
    return Weights(8)(), lambda context, builder, signature, args: zeros


@intrinsic
def add_scaled(typingctx, total, dots, d):
    """Compute total + dots * d in every lane, as one fused operation if the CPU supports it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, dots, d = args
        number = builder.sitofp(dots, _FLOATS)
        return _call(builder, "llvm.fmuladd.v8f32", _FLOATS, number, d, total)

    return Weights(8)(Weights(8), DOTS, Weights(8)), codegen


@intrinsic
def half8(typingctx, raw, i):
    """Read the IEEE half at byte i of `raw` as float32 into 8 lanes.

    The half is copied to all lanes before it is converted. If a single number were converted, LLVM
    could put it in a register that is also used for a sum, and each block would have to wait for
    the previous one.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        field = builder.load(builder.bitcast(builder.gep(data, [args[1]]), _I16.as_pointer()))
        mark_raw_load(builder, field)
        if not has_half(context):
            return _splat(builder, half_by_integers(builder, field), 8)
        halves = builder.bitcast(_splat(builder, field, 8), ir.VectorType(ir.HalfType(), 8))
        return builder.fpext(halves, _FLOATS)

    return Weights(8)(raw, types.int64), codegen


@intrinsic
def first(typingctx, weights):
    """Return lane 0 of `weights`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], _I32(0))

    return types.float32(Weights(8)), codegen


@intrinsic
def sum8(typingctx, total):
    """Return the sum of the 8 lanes: add lane i + 4 to lane i, then i + 2, then i + 1."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = args[0]
        for half in (4, 2, 1):
            low = _lanes(builder, lanes, lanes, list(range(half)))
            lanes = builder.fadd(low, _lanes(builder, lanes, lanes, list(range(half, 2 * half))))
        return builder.extract_element(lanes, _I32(0))

    return types.float32(Weights(8)), codegen
