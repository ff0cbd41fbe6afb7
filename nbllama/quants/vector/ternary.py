"""Vectorised decoders for TQ1_0 and TQ2_0.

See `nbllama.quants.ternary` for the layouts and formulas.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16
from nbllama.quants._vec import load4, load16, load32, signed, store, times_over_256


@kernel()
def decode_tq1_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (digit - 1); a byte contains five digits (four in `qh`)."""
    for b in range(n_blocks):
        at, to = src + 54 * b, dst + 256 * b
        d = f16(raw, at + 52)
        long, short, last = load32(raw, at), load16(raw, at + 32), load4(raw, at + 48)
        for n in range(5):
            store(out, to + 32 * n, d * signed(times_over_256(long, 3) - 1))
            store(out, to + 160 + 16 * n, d * signed(times_over_256(short, 3) - 1))
            if n < 4:
                store(out, to + 240 + 4 * n, d * signed(times_over_256(last, 3) - 1))
            long, short, last = long * 3, short * 3, last * 3


@kernel()
def decode_tq2_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (q - 1); a byte contains four codes."""
    for b in range(n_blocks):
        at, to = src + 66 * b, dst + 256 * b
        d = f16(raw, at + 64)
        for half in range(2):
            qs = load32(raw, at + 32 * half)
            for field in range(4):
                q = (qs >> (2 * field)) & 3
                store(out, to + 128 * half + 32 * field, d * signed(q - 1))
