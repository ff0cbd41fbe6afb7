"""Single-instruction intrinsics that read fields of packed blocks and write weights.

Plain `raw[i]` would also work in Numba, but these intrinsics are faster for three reasons:

- By default, the compiler must assume that a write to `out` can change `raw`, so it cannot read
  sixteen bytes at a time. In this package, `raw` (a read-only file) and `out` (float32 scratch)
  never overlap. Loads therefore have an alias scope, and stores are marked as not aliasing it.
- A field of two or four bytes can start at any address, and these loads do not assume alignment.
- In Python, an index can be negative. In this module, an index is an offset from the first byte and
  never wraps around.

Bounds are not checked; the caller is responsible for them. Integers are returned as int64, so that
all arithmetic uses one type. `number` converts a small integer to float32. The conversion shows the
compiler that 32 bits are enough, so that it can vectorise a loop over bytes.

The host must be little-endian, like GGUF data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic

_I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()

intrinsic: Any = _intrinsic  # its annotation includes the first argument, which callers omit


def _raw_scope(builder: Any) -> Any:
    """Return the LLVM metadata for the alias scope that contains all bytes read by this module."""
    module = builder.module
    domain = module.add_metadata(["nbllama.quants"])
    return module.add_metadata([module.add_metadata(["nbllama.quants.raw", domain])])


def mark_raw_load(builder: Any, load: Any) -> None:
    """Mark a load as a read of `raw` that can have any alignment."""
    load.align = 1
    load.set_metadata("alias.scope", _raw_scope(builder))


def mark_store_outside(builder: Any, store: Any) -> None:
    """Mark a store of float32 numbers as not writing to `raw`."""
    store.align = 4
    store.set_metadata("noalias", _raw_scope(builder))


def _load(kind: Any, convert: Callable[[Any, Any, Any], Any], result: Any, raw: Any) -> Any:
    """Return the signature and the code generator of an intrinsic that reads a field at byte i.

    The field has the LLVM type `kind` and is passed to `convert`.
    """
    if not isinstance(raw, types.Array) or raw.dtype != types.uint8:
        raise TypeError(f"raw must be a uint8 array, not {raw}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.bitcast(builder.gep(array.data, [args[1]]), kind.as_pointer())
        field = builder.load(place)
        mark_raw_load(builder, field)
        return convert(context, builder, field)

    return result(raw, types.int64), codegen


def _zero_extend(context: Any, builder: Any, field: Any) -> Any:
    return builder.zext(field, _I64)


def _sign_extend(context: Any, builder: Any, field: Any) -> Any:
    return builder.sext(field, _I64)


def has_half(context: Any) -> bool:
    """Return whether the CPU has an instruction that converts half to float.

    Without this instruction, LLVM would call a library function.
    """
    triple, _, features = context.codegen().magic_tuple()
    machine = triple.split("-")[0]
    return machine in ("aarch64", "arm64") or "+f16c" in features.split(",")


def half_by_integers(builder: Any, field: Any) -> Any:
    """Convert an IEEE half (as i16) to float with integer instructions.

    The result is exact for finite numbers. The steps are:

    1. Move the sign, exponent and mantissa to their positions in the float, and add 112 to the
       exponent to correct its bias.
    2. If the exponent is 31 (infinity or NaN), add 112 again, which gives 255.
    3. If the exponent is 0 (zero or subnormal), the value is mantissa * 2^-24.
    """
    bits = builder.zext(field, _I32)
    size = builder.and_(bits, _I32(0x7FFF))
    bias = _I32(112 << 23)
    normal = builder.add(builder.shl(size, _I32(13)), bias)
    special = builder.icmp_unsigned(">=", size, _I32(0x7C00))
    normal = builder.select(special, builder.add(normal, bias), normal)
    small = builder.fmul(builder.sitofp(size, _F32), _F32(2.0**-24))
    subnormal = builder.icmp_unsigned("<", size, _I32(0x0400))
    value = builder.select(subnormal, builder.bitcast(small, _I32), normal)
    sign = builder.shl(builder.and_(bits, _I32(0x8000)), _I32(16))
    return builder.bitcast(builder.or_(value, sign), _F32)


def _half(context: Any, builder: Any, field: Any) -> Any:
    if has_half(context):
        return builder.fpext(builder.bitcast(field, _F16), _F32)
    return half_by_integers(builder, field)


def _brain_half(context: Any, builder: Any, field: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(field, _I32), _I32(16)), _F32)


@intrinsic
def u8(typingctx, raw, i):
    """Read byte `i` of `raw` as an unsigned number, 0..255, and return it as int64."""
    return _load(_I8, _zero_extend, types.int64, raw)


@intrinsic
def i8(typingctx, raw, i):
    """Read byte `i` of `raw` as a signed number, -128..127, and return it as int64."""
    return _load(_I8, _sign_extend, types.int64, raw)


@intrinsic
def u16(typingctx, raw, i):
    """Read two bytes of `raw`, starting at byte `i`, as an unsigned number; return it as int64."""
    return _load(_I16, _zero_extend, types.int64, raw)


@intrinsic
def u32(typingctx, raw, i):
    """Read four bytes of `raw`, starting at byte `i`, as an unsigned number; return it as int64."""
    return _load(_I32, _zero_extend, types.int64, raw)


@intrinsic
def f32(typingctx, raw, i):
    """Read the float32 at byte `i` of `raw`."""
    return _load(_I32, lambda context, builder, x: builder.bitcast(x, _F32), types.float32, raw)


@intrinsic
def f16(typingctx, raw, i):
    """Read the IEEE half at byte `i` of `raw` as float32.

    The conversion is exact, including infinities and NaN.
    """
    return _load(_I16, _half, types.float32, raw)


@intrinsic
def f16_by_integers(typingctx, raw, i):
    """Do the same as `f16`, but without the CPU's conversion instruction (for tests)."""
    return _load(_I16, lambda context, builder, x: half_by_integers(builder, x), types.float32, raw)


@intrinsic
def bf16(typingctx, raw, i):
    """Read the bfloat16 (the upper half of a float32) at byte `i` of `raw` as float32."""
    return _load(_I16, _brain_half, types.float32, raw)


@intrinsic
def half_of_bits(typingctx, bits):
    """Convert the IEEE half whose 16-bit pattern is `bits` (an int64) to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _half(context, builder, builder.trunc(args[0], _I16))

    return types.float32(types.int64), codegen


@intrinsic
def single_of_bits(typingctx, bits):
    """Return the float32 whose bit pattern is the low 32 bits of an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], _I32), _F32)

    return types.float32(types.int64), codegen


@intrinsic
def number(typingctx, integer):
    """Convert `integer`, which must fit in 32 bits, to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(builder.trunc(args[0], _I32), _F32)

    return types.float32(types.int64), codegen


@intrinsic
def put(typingctx, out, i, value):
    """Set `out[i] = value` for a float32 array that does not overlap any `raw`."""
    if not isinstance(out, types.Array) or out.dtype != types.float32 or not out.mutable:
        raise TypeError(f"out must be a writable float32 array, not {out}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        mark_store_outside(builder, builder.store(args[2], builder.gep(array.data, [args[1]])))
        return context.get_dummy_value()

    return types.void(out, types.int64, types.float32), codegen
