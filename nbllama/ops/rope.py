"""Rotary position embedding: rotate pairs of numbers in each head by position-dependent angles.

    theta[p, i] = p * freq_base^(-2i / n_rot)                  i = 0 .. n_rot/2 - 1
    y[a] = x[a] cos - x[b] sin      y[b] = x[a] sin + x[b] cos

The pair (a, b) for i is (2i, 2i + 1) in *interleaved* mode (llama) and (i, i + n_rot/2) in *halves*
mode (qwen, gemma). Numbers at index n_rot and above are unchanged. The gradient uses the transposed
matrix, which rotates by the opposite angle:

    dx[a] = dy[a] cos + dy[b] sin      dx[b] = dy[b] cos - dy[a] sin

x and y are float32 `[N, H, D]`, and positions is int32 `[N]`. The tables cos and sin are float32
`[P, n_rot/2]` for P positions. The gradient needs only the positions and the tables.

The tables support YaRN: the angle is a mix of the interpolated and the extrapolated angle, and cos
and sin are multiplied by a magnitude factor (Peng et al., "YaRN", 2023, sections 3.2 to 3.4). The
tables reproduce ggml step by step: theta is multiplied repeatedly by freq_base^(-2/n_rot), in
float32. At position 8191, the result differs from the exact angle by up to 1.3e-3 radians (n_rot
128, base 10000), but it is the angle that llama.cpp will use with the adapter. Compared with
`ggml_rope_ext` in an x86-64 build, 1 % of the numbers differ by one unit in the last place. With
YaRN, numbers differ by up to 1e-5, because in that build the compiler fused some of the operations
that mix the angles.

Source: Su et al., "RoFormer" (2021). llama.cpp: `ggml_rope_ext`, `ggml_rope_yarn_corr_dims`,
`ggml_rope_ext_back`. finetune.cpp calls the tensors t07 and t10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.ops.op import (
    SERIAL,
    Inputs,
    Op,
    check_array,
    check_output,
    copy_as_laid_out,
    readonly,
)


def rope_tables(
    n_positions: int,
    n_rot: int,
    freq_base: float,
    *,
    freq_scale: float = 1.0,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    n_ctx_orig: int = 0,
    factors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (cos, sin), float32 `[n_positions, n_rot/2]`, rounded as in ggml's cache of angles.

    The parameters are the same as in `ggml_rope_ext`. The angles are divided by `factors`, float32
    `[n_rot/2]` (the tensor rope_freqs.weight). Raises ValueError if `n_rot` is odd or `factors` has
    a different length.
    """
    if n_rot <= 0 or n_rot % 2 or n_positions < 0:
        raise ValueError(
            f"rope_tables: n_rot is {n_rot}, expected an even number above 0, and n_positions is "
            f"{n_positions}, expected 0 or more"
        )
    if factors is not None:
        check_array("rope_tables", "factors", factors, (n_rot // 2,))
    f32 = np.float32
    scale, ext, magnitude = f32(freq_scale), f32(ext_factor), f32(attn_factor)
    if ext != 0:
        low, high = yarn_range(
            n_rot, n_ctx_orig, freq_base, beta_fast=beta_fast, beta_slow=beta_slow
        )
        magnitude *= f32(1) + f32(0.1) * f32(np.log(np.float64(f32(1) / scale)))
    step = f32(np.float64(f32(freq_base)) ** np.float64(f32(-2.0) / f32(n_rot)))
    theta = np.arange(n_positions, dtype=f32)
    angles = np.empty((n_positions, n_rot // 2), f32)
    for i in range(n_rot // 2):
        outer = theta if factors is None else theta / factors[i]
        inner = scale * outer
        if ext != 0:
            ramp = (f32(i) - low) / max(f32(0.001), high - low)
            mix = (f32(1) - min(f32(1), max(f32(0), ramp))) * ext
            inner = inner * (f32(1) - mix) + outer * mix
        angles[:, i] = inner
        theta = theta * step
    # Compute in float64 and round, because numpy's float32 sine is off by a few units in the last
    # place.
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(f32) * magnitude, np.sin(wide).astype(f32) * magnitude


def yarn_range(
    n_rot: int, n_ctx_orig: int, freq_base: float, *, beta_fast: float, beta_slow: float
) -> tuple[np.float32, np.float32]:
    """Return the range of pairs over which YaRN moves from extrapolation to interpolation.

    Pair i makes n_ctx_orig * freq_base^(-2i/n_rot) / (2 pi) turns within the original context. The
    range begins where the number of turns is `beta_fast` and ends where it is `beta_slow`
    (llama.cpp: ggml_rope_yarn_corr_dims).
    """
    f32 = np.float32

    def pair(turns: float) -> np.float32:
        ratio = f32(n_ctx_orig) / (f32(turns) * f32(2) * f32(np.pi))
        logs = f32(np.log(np.float64(ratio))), f32(np.log(np.float64(f32(freq_base))))
        return f32(n_rot) * logs[0] / (f32(2) * logs[1])

    low, high = np.floor(pair(beta_fast)), np.ceil(pair(beta_slow))
    return max(f32(0), low), min(f32(n_rot - 1), high)


def rope_ref(
    x: np.ndarray,
    positions: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    *,
    halves: bool,
    inverse: bool = False,
) -> np.ndarray:
    """Compute y in plain numpy, in the dtype of x; with `inverse`, compute the gradient."""
    half = cos.shape[1]
    a = slice(0, half) if halves else slice(0, 2 * half, 2)
    b = slice(half, 2 * half) if halves else slice(1, 2 * half, 2)
    c, s = cos[positions][:, None, :], sin[positions][:, None, :]
    s = -s if inverse else s
    y = x.copy()
    y[:, :, a] = x[:, :, a] * c - x[:, :, b] * s
    y[:, :, b] = x[:, :, a] * s + x[:, :, b] * c
    return y


@kernel()
def turn_halves(x, cos, sin, sign):
    """Rotate the pairs (i, i + n_rot/2) in one token's heads, in place."""
    half = cos.shape[0]
    for h in range(x.shape[0]):
        a = x[h, :half]
        b = x[h, half : 2 * half]
        for i in range(half):
            s = sin[i] * sign
            u = a[i]
            v = b[i]
            a[i] = u * cos[i] - v * s
            b[i] = u * s + v * cos[i]


@kernel()
def turn_interleaved(x, cos, sin, sign):
    """Rotate the pairs (2i, 2i + 1) in one token's heads, in place."""
    for h in range(x.shape[0]):
        row = x[h]
        for i in range(cos.shape[0]):
            s = sin[i] * sign
            u = row[2 * i]
            v = row[2 * i + 1]
            row[2 * i] = u * cos[i] - v * s
            row[2 * i + 1] = u * s + v * cos[i]


@kernel()
def _serial(x, positions, cos, sin, halves, sign):
    for n in range(x.shape[0]):
        p = positions[n]
        if halves:
            turn_halves(x[n], cos[p], sin[p], sign)
        else:
            turn_interleaved(x[n], cos[p], sin[p], sign)


@kernel(parallel=True)
def _parallel(x, positions, cos, sin, halves, sign):
    for n in prange(x.shape[0]):
        p = positions[n]
        if halves:
            turn_halves(x[n], cos[p], sin[p], sign)
        else:
            turn_interleaved(x[n], cos[p], sin[p], sign)


def rope(
    x: np.ndarray,
    positions: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    *,
    halves: bool,
    inverse: bool = False,
) -> None:
    """Rotate x `[N, H, D]` in place; with `inverse`, rotate a gradient back.

    Raises ValueError for mismatched arrays or for a position outside the tables.
    """
    if np.ndim(x) != 3 or np.ndim(cos) != 2 or 2 * cos.shape[1] > x.shape[2]:
        raise ValueError(
            f"rope: x has shape {np.shape(x)}, expected [N, H, D], and cos has shape "
            f"{np.shape(cos)}, expected [P, n_rot/2] with n_rot at most D"
        )
    check_output("rope", "x", x, x.shape)
    check_array("rope", "positions", positions, x.shape[:1], dtype=np.int32)
    check_array("rope", "cos", cos, cos.shape)
    check_array("rope", "sin", sin, cos.shape)
    if positions.size:
        # For a few tokens, two numpy calls would take longer than the rest of the function.
        few = positions.tolist() if positions.size < 8 else (positions.min(), positions.max())
        if min(few) < 0 or max(few) >= len(cos):
            raise ValueError(
                f"rope: positions range from {min(few)} to {max(few)}, but cos has {len(cos)} rows"
            )
    run = _serial if x.size <= SERIAL else _parallel
    sign = np.float32(-1.0 if inverse else 1.0)
    run(x, readonly(positions), readonly(cos), readonly(sin), halves, sign)


def _sample(rng: np.random.Generator, size: str, dtype: Any, halves: bool) -> Inputs:
    n, h, d, n_rot = {
        "tiny": (3, 2, 6, 4),
        "one": (1, 3, 64, 64),
        "odd": (37, 3, 66, 66),
        "part": (19, 5, 80, 20),
        "wide": (130, 9, 64, 64),
    }[size]
    cos, sin = rope_tables(2 * n, n_rot, 10000.0, attn_factor=1.25)
    return {
        "x": rng.standard_normal((n, h, d)).astype(dtype),
        "positions": rng.integers(0, 2 * n, n).astype(np.int32),
        "cos": cos.astype(dtype),
        "sin": sin.astype(dtype),
        "halves": halves,
    }


def _apply(x: np.ndarray, inverse: bool, **inputs: Any) -> np.ndarray:
    y = copy_as_laid_out(x)
    rope(y, inverse=inverse, **inputs)
    return y


def _op(name: str, halves: bool, mode: int) -> Op:
    return Op(
        name=name,
        sizes=("tiny", "one", "odd", "part", "wide"),
        sample=lambda rng, size, dtype: _sample(rng, size, dtype, halves),
        forward_ref=rope_ref,
        grad_ref=lambda dy, x, **inputs: {"x": rope_ref(dy, inverse=True, **inputs)},
        forward=lambda **inputs: _apply(inverse=False, **inputs),
        grad=lambda dy, x, **inputs: {"x": _apply(dy, True, **inputs)},
        tolerance=3e-7,
        why="two products and a sum in float32",
        ggml=f"ggml_rope_ext with mode {mode}; ggml_rope_ext_back",
    )


OPS: tuple[Op, ...] = (_op("rope_interleaved", False, 0), _op("rope_halves", True, 2))
