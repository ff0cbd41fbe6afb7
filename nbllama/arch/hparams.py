"""Sizes and constants of a base model, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from nbllama.arch.rows import ARCHS


@dataclass(frozen=True)
class RopeScaling:
    """How positions beyond the trained context are squeezed.

    `attn_factor` is what `ggml_rope_ext` is given: cos and sin are multiplied by it, and under
    YaRN (`ext_factor` not 0) by `1 + 0.1 ln(1 / rope_freq_scale)` as well.
    """

    kind: str  # "none", "linear" or "yarn"
    factor: float = 1.0
    n_ctx_orig: int = 0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


class Rope(NamedTuple):
    """What `ggml_rope_ext` calls freq_base and freq_scale."""

    freq_base: float
    freq_scale: float


@dataclass(frozen=True)
class Hparams:
    """Sizes and constants of a base model; floats have float32 precision, as in llama.cpp."""

    arch: str
    n_vocab: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int
    n_ff: int
    n_ctx_train: int
    rms_eps: float
    rope_freq_base: float
    rope_freq_scale: float
    rope_scaling: RopeScaling
    rope_pairing: str
    activation: str
    embed_scale: float
    residual_scale: float  # of what attention and feed-forward add to the stream
    logit_scale: float
    attn_scale: float
    attn_softcap: float  # 0: none
    logit_softcap: float  # 0: none
    alibi_max_bias: float  # 0: RoPE
    window: int  # tokens that the blocks with a sliding window see; 0: there are none
    window_period: int
    window_rope: Rope  # of the blocks with a window
    tied_output: bool
    has_rope_factors: bool
    has_qk_norm: bool
    has_post_norms: bool
    fused_qkv: bool
    fused_gate_up: bool
    warnings: tuple[str, ...] = field(default=(), compare=False)  # about the file, one line each

    def window_at(self, layer: int) -> int:
        """How many tokens, itself among them, a token sees in a block; 0: all before it.

        llama.cpp: `llama_hparams::set_swa_pattern`.
        """
        return self.window if layer % self.window_period < self.window_period - 1 else 0

    def rope_at(self, layer: int) -> Rope:
        """Return base and scale of a block's RoPE."""
        if self.window_at(layer):
            return self.window_rope
        return Rope(self.rope_freq_base, self.rope_freq_scale)


class ExpectedTensor(NamedTuple):
    """Shape in numpy order, and whether the model cannot do without it."""

    shape: tuple[int, ...]
    required: bool


def expected_tensors(hp: Hparams) -> dict[str, ExpectedTensor]:
    """Every tensor that a model of these sizes has or may have, in the usual file order."""
    row = ARCHS[hp.arch]
    sizes = {
        "n_vocab": hp.n_vocab,
        "n_embd": hp.n_embd,
        "n_q": hp.n_head * hp.head_dim,
        "n_kv": hp.n_head_kv * hp.head_dim,
        "n_qkv": (hp.n_head + 2 * hp.n_head_kv) * hp.head_dim,
        "head_dim": hp.head_dim,
        "n_ff": hp.n_ff,
        "n_gate_up": 2 * hp.n_ff,
        "n_rot_half": hp.n_rot // 2,
    }
    named = [(t.name, t) for t in row.tensors]
    for i in range(hp.n_layer):
        named += [(f"blk.{i}.{t.name}", t) for t in row.block]
    return {name: ExpectedTensor(tuple(sizes[s] for s in t.shape), t.required) for name, t in named}


def with_overrides(
    hp: Hparams,
    *,
    rms_eps: float | None = None,
    rope_freq_base: float | None = None,
    rope_freq_scale: float | None = None,
) -> Hparams:
    """Return the same model with the user's constants; YaRN's factors follow the new scale."""
    if rms_eps is not None:
        hp = replace(hp, rms_eps=float(np.float32(rms_eps)))
    if rope_freq_base is not None:
        hp = replace(hp, rope_freq_base=float(np.float32(rope_freq_base)))
    if rope_freq_scale is not None:
        old, scale = hp.rope_scaling, np.float32(rope_freq_scale)
        given = old.attn_factor / yarn_attn_factor(np.float32(hp.rope_freq_scale), old.ext_factor)
        new = replace(
            old,
            kind="linear" if old.kind == "none" and scale != 1 else old.kind,
            factor=float(np.float32(1) / scale),
            attn_factor=float(given * yarn_attn_factor(scale, old.ext_factor)),
        )
        hp = replace(hp, rope_freq_scale=float(scale), rope_scaling=new)
    return hp


def context_warnings(hp: Hparams, n_ctx: int) -> list[str]:
    """Return what to say about training with `n_ctx` tokens of context; empty when it fits."""
    if 0 < hp.n_ctx_train < n_ctx:
        return [f"context {n_ctx} is longer than the {hp.n_ctx_train} the model was trained with"]
    return []


def yarn_attn_factor(scale: np.float32, ext_factor: float) -> np.float32:
    """Return the factor by which llama.cpp undoes ggml's magnitude correction (float32).

    YaRN multiplies cos and sin by m(f) = 1 + 0.1 ln f for a stretch by f = 1 / scale, but not
    for f < 1; `ggml_rope_ext` multiplies by 1 + 0.1 ln f in any case. This is m(f) over that.
    """
    if ext_factor == 0:
        return np.float32(1)
    factor = np.float32(1) / scale
    by_ggml: np.float32 = np.float32(1) + np.float32(0.1) * np.log(factor)
    wanted = by_ggml if factor > 1 else np.float32(1)
    return np.float32(wanted * (np.float32(1) / by_ggml))
