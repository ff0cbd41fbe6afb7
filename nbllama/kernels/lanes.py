"""Sizes of the micro-kernel (`nbllama.kernels.simd`), which depend on the host's vector registers.

VL is the number of floats in a vector. The micro-kernel keeps ROWS * NV vectors of C, NV vectors of
B and one vector of A in registers.

| host | VL | NV | ROWS | registers for C, B and A |
|---|---|---|---|---|
| AVX-512 | 16 | 2 | 6 | 12 + 2 + 1 of 32 |
| AVX2 with FMA, NEON | 8 | 2 | 6 | 12 + 2 + 1 of 16 (NEON: 24 + 4 + 2 of 32) |
| other (SSE2) | 4 | 2 | 6 | 12 + 2 + 1 of 16 |
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numba


def host_vector_length() -> int:
    """Return how many floats fit in a vector of the CPU that Numba compiles for.

    This is the host CPU unless `NUMBA_CPU_NAME` names a different one.
    """
    name = numba.config.CPU_NAME
    if name is None:
        features = llvm.get_host_cpu_features()
        has = {k for k, on in features.items() if on}
    else:
        has = {f[1:] for f in (numba.config.CPU_FEATURES or "").split(",") if f.startswith("+")}
    machine = llvm.get_process_triple().split("-")[0]
    if machine in ("aarch64", "arm64"):
        return 8
    if "avx512f" in has:
        return 16
    return 8 if {"avx2", "fma"} <= has else 4


VL = host_vector_length()
NV = 2
ROWS = 6
PANEL = VL * NV
