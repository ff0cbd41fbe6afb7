"""Read how a model encodes positions: RoPE and its scaling, sliding windows and ALiBi."""

from __future__ import annotations

import numpy as np

from nbllama.arch.hparams import Rope, RopeScaling, Temperature, yarn_attn_factor
from nbllama.arch.keys import any_number, positive, size, window_period
from nbllama.arch.row import ArchRow
from nbllama.errors import shown
from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT


def freq_base(f: GGUFFile, row: ArchRow, head_dim: int) -> float:
    """Read the RoPE base, multiplied by alpha^(D / (D - 2)) if the file specifies an alpha."""
    base = np.float32(positive(f, f"{row.name}.rope.freq_base", default=10000.0))
    key = f"{row.name}.rope.scaling.alpha"
    if row.rope_alpha and f.get(key, "float", 0.0) > 0 and head_dim > 2:
        power = np.float32(head_dim) / np.float32(head_dim - 2)
        base *= np.float32(positive(f, key)) ** power
    if not np.isfinite(base):
        raise f.error(f"key '{key}'", "is out of range")
    return float(base)


def alibi(f: GGUFFile, row: ArchRow, n_layer: int) -> float:
    """Return the largest ALiBi bias, or 0 if the model uses RoPE."""
    if row.alibi_by_depth is None:
        return 0.0
    if n_layer not in row.alibi_by_depth:
        known = " or ".join(str(n) for n in row.alibi_by_depth)
        raise f.error(
            f"key '{row.name}.block_count'",
            f"{n_layer}, but {row.name} is supported only with {known} layers",
        )
    return row.alibi_by_depth[n_layer]


def n_rot(f: GGUFFile, row: ArchRow, head_dim: int) -> int:
    """Read the number of dimensions that RoPE rotates in each head (by default, all of them)."""
    key = f"{row.name}.rope.dimension_count"
    n_rot = int(f.count(key, MAX_COUNT, default=head_dim))
    if n_rot < 2 or n_rot % 2 or n_rot > head_dim:
        limits = f"must be an even number from 2 to the head size ({head_dim})"
        raise f.error(f"key '{key}'", f"{n_rot}, but {limits}")
    if n_rot != head_dim and not row.partial_rope:
        size = f"must be the head size {head_dim} for {row.name}"
        raise f.error(f"key '{key}'", f"{n_rot}, but {size}")
    return n_rot


def rope_scaling(
    f: GGUFFile, row: ArchRow, n_ctx: int, warnings: list[str]
) -> tuple[float, RopeScaling]:
    """Return rope_freq_scale and the other scaling values, in float32 as in llama.cpp."""
    prefix = f"{row.name}.rope.scaling"
    kind = f.get(f"{prefix}.type", "str", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise f.error(
            f"key '{prefix}.type'",
            f"'{shown(kind)}' is not supported; supported: none, linear and yarn",
        )
    key = f"{prefix}.factor"
    if key not in f.metadata:
        key = f"{row.name}.rope.scale_linear"  # the name of the key in files from 2023
    given = np.float32(f.get(key, "float", 0.0))
    if not (np.isfinite(given) and given >= 0):
        raise f.error(f"key '{key}'", f"{given}, but must be positive and finite")
    scale = np.float32(1) / given if given != 0 and kind != "none" else np.float32(1)
    if not (np.isfinite(scale) and scale > 0):
        raise f.error(f"key '{key}'", f"{given} is out of range")
    n_ctx_orig = f.count(f"{prefix}.original_context_length", MAX_COUNT, default=n_ctx) or n_ctx
    if kind == "yarn" and n_ctx_orig == 0:
        raise f.error(
            f"key '{prefix}.original_context_length'", "0, but YaRN requires a positive value"
        )
    for name in ("fast", "slow"):
        beta_key = f"{prefix}.yarn_beta_{name}"
        if kind == "yarn" and beta_key in f.metadata and not row.yarn_keys:
            warnings.append(f"{beta_key} is ignored for {row.name}, as in llama.cpp")
    more = {}
    if row.yarn_keys:
        keys = {"beta_fast": 32.0, "beta_slow": 1.0}
        more = {k: positive(f, f"{prefix}.yarn_{k}", default) for k, default in keys.items()}
        more["log_mul"] = any_number(f, f"{prefix}.yarn_log_multiplier")
    ext_factor = 1.0 if kind == "yarn" else 0.0
    attn_factor = np.float32(positive(f, f"{prefix}.attn_factor", default=1.0))
    attn_factor *= yarn_attn_factor(scale, ext_factor, more.get("log_mul", 0.0))
    if not (np.isfinite(attn_factor) and attn_factor > 0):
        raise f.error(f"key '{key}'", f"{given} is out of range for YaRN")
    if kind == "linear" and scale == 1:
        kind = "none"
    return float(scale), RopeScaling(
        kind=kind,
        factor=float(np.float32(1) / scale),
        n_ctx_orig=n_ctx_orig,
        ext_factor=ext_factor,
        attn_factor=float(attn_factor),
        **more,
    )


def window(f: GGUFFile, row: ArchRow, n_layer: int, rope: Rope) -> tuple[int, int, Rope]:
    """Return the window size, the period, and the RoPE settings of blocks with a sliding window.

    The window size is 0 if no block has a window.
    """
    if row.window is None or n_layer not in (row.window.depths or (n_layer,)):
        return 0, 1, rope
    prefix = f"{row.name}.attention.sliding_window"
    known = row.window.size
    width = size(f, prefix) if known is None else f.count(prefix, MAX_COUNT, default=known)
    period = 1
    if not row.varied:  # if blocks differ in size, `read_blocks` reads the pattern
        period = window_period(f, f"{prefix}_pattern", n_layer, row.window.period)
    default = row.window.freq_base
    base = rope.freq_base if default is None else default
    if row.window.base_key:
        base = positive(f, f"{row.name}.rope.freq_base_swa", base)
    scaled = default is None and row.window.yarn
    return int(width), period, Rope(base, rope.freq_scale if scaled else 1.0, row.window.yarn)


def temperature(f: GGUFFile, row: ArchRow, n_ctx_orig: int) -> Temperature | None:
    """Read the position-dependent scale of the queries, or return None if there is none."""
    key = f"{row.name}.attention.temperature_scale"
    if not row.temperature or f.get(key, "float", 0.0) == 0:
        return None
    if n_ctx_orig == 0:
        raise f.error(f"key '{key}'", "requires the original context length, which is 0")
    return Temperature(positive(f, key), n_ctx_orig)
