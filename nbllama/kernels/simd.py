"""Intrinsics built from llvmlite IR, for vector code that cannot be expressed as Numba loops.

Most of the computation in this package consists of matrix products, and every matrix product uses
one small routine, the *micro-kernel*:

    C[i, 0:PANEL] += sum_k  A[i, k] * B[k, 0:PANEL]        i = 0 .. ROWS-1

`ROWS * NV` vectors of C stay in registers during the loop over k. For each k, the loop loads NV
vectors of B, broadcasts ROWS elements of A and performs `ROWS * NV` multiply-adds, so its speed is
limited by the arithmetic units, not by the loads. A and C are addressed by strides. B is a *panel*,
which stores `PANEL` neighbouring elements for each k. `nbllama.kernels.lanes` defines the sizes.

Each element of C is summed in one lane, in the order of k, so it is bit-identical for any tile
size, panel size or number of threads. `llvm.fmuladd` becomes a fused multiply-add if the CPU
supports it.

`nbllama.kernels.plain` contains the same routines as plain loops; set `NBLLAMA_KERNELS=plain` to
use the loops instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nbllama.kernels import plain
from nbllama.kernels.jit import PLAIN, kernel
from nbllama.kernels.lanes import NV, ROWS, VL

_F32 = ir.FloatType()
_I64 = ir.IntType(64)


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _element(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())


@intrinsic
def fma_tile(typingctx, a, a0, a_row, a_k, b, b0, b_k, n_k, c, c0, c_row, fresh):
    """Run the micro-kernel: C[i, j] += sum over k of A[i, k] * B[k, j], for a ROWS x PANEL tile.

    With `fresh`, the sums start from zero instead of the contents of C, so C need not be cleared
    first. `a`, `b` and `c` are float32 arrays of any rank and layout: only the address of the first
    element is used. A[i, k] is at element `a0 + i*a_row + k*a_k`, B[k, j] at `b0 + k*b_k + j`, and
    C[i, j] at `c0 + i*c_row + j`. Nothing is checked: the caller is responsible for the bounds.
    """
    for array in (a, b, c):
        if not isinstance(array, types.Array) or array.dtype != types.float32:
            raise TypeError(f"fma_tile expects float32 arrays, not {array}")
    ints = [types.int64] * 3
    sig = types.void(a, *ints, b, *ints, c, *ints[:2], types.boolean)

    def codegen(context, builder, signature, args):
        av, a0v, a_rowv, a_kv, bv, b0v, b_kv, n_kv, cv, c0v, c_rowv, freshv = args
        pa = _data(context, builder, signature.args[0], av)
        pb = _data(context, builder, signature.args[4], bv)
        pc = _data(context, builder, signature.args[8], cv)
        vec = ir.VectorType(_F32, VL)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vec, [vec] * 3), f"llvm.fmuladd.v{VL}f32"
        )
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), VL), [0] * VL)
        undef = ir.Constant(vec, ir.Undefined)
        zero = ir.Constant(vec, [0.0] * VL)
        where = []
        for i in range(ROWS):
            row = builder.add(c0v, builder.mul(c_rowv, _I64(i)))
            steps = [builder.add(row, _I64(j * VL)) for j in range(NV)]
            where += [_element(builder, pc, step, vec) for step in steps]
        sums = [cgutils.alloca_once(builder, vec) for _ in where]
        for total, place in zip(sums, where, strict=True):
            value = builder.load(place)
            value.align = 4
            builder.store(builder.select(freshv, zero, value), total)
        with cgutils.for_range(builder, n_kv) as loop:
            at_b = builder.add(b0v, builder.mul(loop.index, b_kv))
            panel = []
            for j in range(NV):
                value = builder.load(_element(builder, pb, builder.add(at_b, _I64(j * VL)), vec))
                value.align = 4
                panel.append(value)
            at_a = builder.add(a0v, builder.mul(loop.index, a_kv))
            for i in range(ROWS):
                index = builder.add(at_a, builder.mul(a_rowv, _I64(i)))
                number = builder.load(builder.gep(pa, [index]))
                one = builder.insert_element(undef, number, ir.IntType(32)(0))
                spread = builder.shuffle_vector(one, undef, lanes)
                for j in range(NV):
                    total = sums[i * NV + j]
                    builder.store(builder.call(fma, [spread, panel[j], builder.load(total)]), total)
        for total, place in zip(sums, where, strict=True):
            builder.store(builder.load(total), place).align = 4
        return context.get_dummy_value()

    return sig, codegen


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose VL vectors of VL lanes by interleaving rows i and i + VL/2 in log2(VL) rounds."""
    half = VL // 2

    def mask(first: int) -> Any:
        lanes = [x for i in range(first, first + half) for x in (i, i + VL)]
        return ir.Constant(ir.VectorType(ir.IntType(32), VL), lanes)

    for _ in range(VL.bit_length() - 1):
        pairs = [(rows[i], rows[i + half]) for i in range(half)]
        rows = [builder.shuffle_vector(a, b, mask(first)) for a, b in pairs for first in (0, half)]
    return rows


def _make_transpose(add: bool) -> Any:
    @intrinsic
    def transpose(typingctx, x, x0, x_row, y, y0, y_row):
        sig = types.void(x, types.int64, types.int64, y, types.int64, types.int64)

        def codegen(context, builder, signature, args):
            xv, x0v, x_rowv, yv, y0v, y_rowv = args
            px = _data(context, builder, signature.args[0], xv)
            py = _data(context, builder, signature.args[3], yv)
            vec = ir.VectorType(_F32, VL)
            rows = []
            for j in range(VL):
                at = builder.add(x0v, builder.mul(x_rowv, _I64(j)))
                rows.append(builder.load(_element(builder, px, at, vec), align=4))
            for i, row in enumerate(_transposed(builder, rows)):
                at = builder.add(y0v, builder.mul(y_rowv, _I64(i)))
                place = _element(builder, py, at, vec)
                if add:
                    row = builder.fadd(builder.load(place, align=4), row)
                builder.store(row, place, align=4)
            return context.get_dummy_value()

        return sig, codegen

    return transpose


# These intrinsics transpose a square tile in registers: the first one sets y[y0 + i*y_row + j] =
# x[x0 + j*x_row + i] for i, j < VL, and the second one adds to y instead. x and y are float32
# arrays; nothing is checked.
transpose_tile = _make_transpose(add=False)
transpose_add_tile = _make_transpose(add=True)


@intrinsic
def next_task(typingctx, counter):
    """Increment counter[0] atomically; return the previous value, which no other thread receives.

    `counter` is an int64 array that must be 0 when the threads start. Threads that draw their tasks
    from a counter finish at about the same time, even if one core is slow or busy with another
    process. If the work were divided in advance, all threads would wait for the one on that core.
    """
    sig = types.int64(counter)

    def codegen(context, builder, signature, args):
        place = _data(context, builder, signature.args[0], args[0])
        return builder.atomic_rmw("add", place, _I64(1), "monotonic")

    return sig, codegen


@intrinsic
def fma(typingctx, a, b, c):
    """Compute a * b + c in float32, fused if the CPU supports it.

    LLVM can vectorise loops that call this function.
    """
    sig = types.float32(types.float32, types.float32, types.float32)

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_F32, [_F32] * 3), "llvm.fmuladd.f32"
        )
        return builder.call(function, args)

    return sig, codegen


@intrinsic
def float_of_bits(typingctx, bits):
    """Return the float32 whose bit pattern is the given int32."""
    sig = types.float32(types.int32)

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _F32)

    return sig, codegen


@intrinsic
def bits_of_float(typingctx, number):
    """Return the bit pattern of a float32 as an int32."""
    sig = types.int32(types.float32)

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return sig, codegen


@intrinsic
def row_max(typingctx, row, start, n):
    """Return the largest number in `row[start : start + n]` (float32, n >= 1).

    NaNs are ignored, because LLVM vectorises the loop only if it can assume that there are none.
    To detect a NaN, check a sum instead.
    """
    sig = types.float32(row, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        array, startv, nv = args
        p = builder.gep(_data(context, builder, signature.args[0], array), [startv])
        vec = ir.VectorType(_F32, VL)
        lowest = ir.Constant(_F32, float("-inf"))
        best = cgutils.alloca_once(builder, vec)
        builder.store(ir.Constant(vec, [lowest] * VL), best)
        whole = builder.sdiv(nv, _I64(VL))
        with cgutils.for_range(builder, whole) as loop:
            value = builder.load(
                _element(builder, p, builder.mul(loop.index, _I64(VL)), vec), align=4
            )
            old = builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", value, old), value, old), best)
        top = cgutils.alloca_once_value(builder, lowest)

        def consider(value: Any) -> None:
            old = builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", value, old), value, old), top)

        lanes = builder.load(best)
        for lane in range(VL):
            consider(builder.extract_element(lanes, ir.IntType(32)(lane)))
        done = builder.mul(whole, _I64(VL))
        with cgutils.for_range(builder, builder.sub(nv, done)) as loop:
            consider(builder.load(builder.gep(p, [builder.add(done, loop.index)])))
        return builder.load(top)

    return sig, codegen


# exp(x) = 2^n * exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2; ln 2 is split into two
# numbers to make r exact.
_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it puts round(x) in the low bits
_ROUND_BITS = np.int32(0x4B400000)
_EXP_MAX = np.float32(88.02)
_EXP_MIN = np.float32(-87.0)
_P2 = np.float32(0.49999997)
_P3 = np.float32(0.16666577)
_P4 = np.float32(0.041668226)
_P5 = np.float32(0.0083371)
_P6 = np.float32(0.0013813)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@kernel()
def exp_f32(x):
    """Compute exp of a float32 by range reduction and a polynomial.

    The relative error is below 2.7e-7 on [-87, 88]. The result is 0 for x below -87, is at most
    exp(88.02), and is NaN if x is NaN. LLVM can vectorise loops that call this function.
    """
    y = _EXP_MAX if x > _EXP_MAX else x
    y = _EXP_MIN if y < _EXP_MIN else y
    shifted = fma(y, _LOG2E, _ROUND)
    n = shifted - _ROUND
    r = fma(n, -_LN2_HIGH, y)
    r = fma(n, -_LN2_LOW, r)
    p = fma(_P6, r, _P5)
    p = fma(p, r, _P4)
    p = fma(p, r, _P3)
    p = fma(p, r, _P2)
    p = fma(p, r, _ONE)
    p = fma(p, r, _ONE)
    power = (bits_of_float(shifted) - _ROUND_BITS + np.int32(127)) << np.int32(23)
    value = p * float_of_bits(np.int32(power))
    return _ZERO if x < _EXP_MIN else value


if PLAIN:
    fma_tile, row_max, exp_f32 = plain.fma_tile, plain.row_max, plain.exp_f32
    transpose_tile, transpose_add_tile = plain.transpose_tile, plain.transpose_add_tile
