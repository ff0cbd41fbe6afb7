"""The sizes and constants of a base model, and values derived from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from nbllama.arch.blocks import BlockSizes
from nbllama.arch.experts import Experts
from nbllama.arch.rows import ARCHS
from nbllama.errors import UsageError

_TINY = 2.0**-126  # the smallest normal float32


@dataclass(frozen=True)
class RopeScaling:
    """How positions are scaled to extend the trained context.

    `attn_factor` is the parameter of `ggml_rope_ext` with this name: cos and sin are multiplied by
    `attn_factor` and, with YaRN (`ext_factor` is not 0), also by `1 + 0.1 ln(1 / rope_freq_scale)`.
    """

    kind: str  # "none", "linear" or "yarn"
    factor: float = 1.0
    n_ctx_orig: int = 0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_mul: float = 0.0  # determines YaRN's factor for all elements of a head; 0: no such factor


class Rope(NamedTuple):
    """The RoPE of a block.

    `freq_base` and `freq_scale` are parameters of `ggml_rope_ext`. `yarn` says whether the model's
    YaRN scaling applies to the block.
    """

    freq_base: float
    freq_scale: float
    yarn: bool = True
    n_rot: int = 0  # how many elements of a head are rotated; 0: `Hparams.n_rot`
    factors: bool = True  # whether the factors in `rope_freqs` apply


class Temperature(NamedTuple):
    """The factor that scales a query at position p: 1 + scale ln(1 + floor(p / length))."""

    scale: float
    length: int

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the factors (float32) at these positions, rounded as in llama.cpp."""
        steps = np.floor(positions.astype(np.float32) / np.float32(self.length))
        factors = np.log(steps.astype(np.float64) + 1) * np.float32(self.scale) + 1
        return np.asarray(factors, np.float32)


class DeltaNet(NamedTuple):
    """The sizes of a gated delta net with `size` elements per head."""

    heads: int
    key_heads: int  # head h uses the keys of key head h mod key_heads
    size: int
    taps: int

    @property
    def n_values(self) -> int:
        """The number of elements in the values of all heads together."""
        return self.heads * self.size

    @property
    def n_qkv(self) -> int:
        """The number of elements in the queries, keys and values of all heads together."""
        return self.n_values + 2 * self.key_heads * self.size


@dataclass(frozen=True)
class Hparams:
    """The sizes and constants of a base model; floats have float32 precision, as in llama.cpp."""

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
    residual_scale: float  # factor for the outputs of attention and feed-forward
    logit_scale: float
    attn_scale: float
    attn_softcap: float  # 0: none
    logit_softcap: float  # 0: none
    alibi_max_bias: float  # 0: the model uses RoPE
    window: int  # tokens in a sliding window; 0: no block has a window
    window_period: int
    window_rope: Rope  # RoPE of the blocks with a window
    tied_output: bool
    has_rope_factors: bool
    has_qk_norm: bool
    has_post_norms: bool
    fused_qkv: bool
    fused_gate_up: bool
    norm: str = "rms"  # or "layer": LayerNorm
    attn_norm: str = "attn_norm"  # the norm before attention; "": no norm
    ffn_norm: str = "ffn_norm"  # the norm before feed-forward
    qk_norm_last: bool = False  # queries and keys are normalised after RoPE, not before
    rope_period: int = 0  # the last of every `rope_period` blocks has no RoPE; 0: all have RoPE
    temperature: Temperature | None = None  # scales the queries depending on their position
    gated: bool = True  # feed-forward: act(gate) * up if true, else act(up)
    # alpha_p, alpha_n, beta and eps of each block, if the activation is xielu
    xielu: tuple[tuple[float, ...], ...] = ()
    mixers: tuple[str, ...] = ()  # per block: "attention", "conv" or "delta"; (): all attention
    conv_taps: int = 0  # tokens that a short convolution covers, including the current one
    delta: DeltaNet | None = None  # sizes of the blocks with a delta net
    attn_gate: bool = False  # attn_q includes a gate for each element of the attention output
    output_norm: str = "output_norm"
    experts: Experts | None = None
    blocks: tuple[BlockSizes, ...] = ()  # the sizes of each block if they differ, otherwise ()
    values_normed: bool = False  # values are normalised (without a weight)
    n_per_layer: int = 0  # size of the per-block token embeddings; 0: none
    next_blocks: int = 0  # number of unused blocks after `n_layer` in the file
    warnings: tuple[str, ...] = field(default=(), compare=False)  # each is one line

    def mixer_at(self, layer: int) -> str:
        """Return how a block mixes tokens: "attention", "conv" or "delta"."""
        return self.mixers[layer] if self.mixers else "attention"

    @property
    def attention_layers(self) -> list[int]:
        """The blocks with attention, except those that use the keys and values of other blocks."""
        layers = (i for i in range(self.n_layer) if self.mixer_at(i) == "attention")
        return [i for i in layers if self.sizes_at(i).kv_from == i]

    def sizes_at(self, layer: int) -> BlockSizes:
        """Return the sizes of a block's heads and feed-forward layer."""
        if self.blocks:
            return self.blocks[layer]
        sizes = self.n_head_kv, self.head_dim, self.n_rot, self.n_ff
        return BlockSizes(*sizes, row=layer, kv_from=layer)

    @property
    def each_size(self) -> list[BlockSizes]:
        """The sizes of all blocks, or of a single block if all blocks have the same size."""
        return list(self.blocks) or [self.sizes_at(0)]

    @property
    def most_frozen(self) -> int:
        """The largest number of leading blocks whose output can be stored instead of recomputed.

        None of these blocks may share its keys and values with a later block.
        """
        return min((*self.lent, self.n_layer))

    @property
    def lent(self) -> list[int]:
        """The blocks whose keys and values are also used by later blocks, in ascending order."""
        return sorted({b.kv_from for i, b in enumerate(self.blocks) if b.kv_from != i})

    def window_at(self, layer: int) -> int:
        """Return how many tokens, including itself, a token attends to in this block (0 means all).

        llama.cpp computes the same pattern in `llama_hparams::set_swa_pattern`.
        """
        if self.blocks:
            return self.blocks[layer].window
        return self.window if layer % self.window_period < self.window_period - 1 else 0

    def experts_at(self, layer: int) -> Experts | None:
        """Return the experts of a block, or None if its feed-forward layer is dense."""
        return self.experts if self.experts is not None and self.experts.at(layer) else None

    @property
    def ff_width(self) -> int:
        """The largest width of gate (or up) in any block; widths of chosen experts are added up."""
        e = self.experts
        if e is None:
            return max(b.n_ff for b in self.each_size)
        return max(e.used * e.n_ff, self.n_ff if e.first else 0)

    @property
    def side_by_side(self) -> bool:
        """Whether attention and feed-forward run in parallel, on the same normalised input."""
        return self.ffn_norm != "" and self.ffn_norm == self.attn_norm

    def rope_at(self, layer: int) -> Rope | None:
        """Return the RoPE of a block, or None if the block has no RoPE."""
        if self.alibi_max_bias or (self.rope_period and (layer + 1) % self.rope_period == 0):
            return None
        if self.window_at(layer):
            return self.window_rope
        return Rope(self.rope_freq_base, self.rope_freq_scale)


def with_overrides(
    hp: Hparams,
    *,
    rms_eps: float | None = None,
    rope_freq_base: float | None = None,
    rope_freq_scale: float | None = None,
) -> Hparams:
    """Return `hp` with the constants given by the user.

    YaRN's factors are adapted to the new scale. Raises `UsageError` for a value that is not a
    positive normal float32.
    """
    constants = (
        ("rms_eps", rms_eps), ("rope_freq_base", rope_freq_base),
        ("rope_freq_scale", rope_freq_scale),
    )  # fmt: skip
    for name, value in constants:
        if value is not None and not _TINY <= value <= 1 / _TINY:
            raise UsageError(f"{name} {value}: must be a positive normal float32 number")
    if rms_eps is not None:
        hp = replace(hp, rms_eps=float(np.float32(rms_eps)))
    if rope_freq_base is not None:
        hp = replace(hp, rope_freq_base=float(np.float32(rope_freq_base)))
    if rope_freq_scale is not None:
        old, scale = hp.rope_scaling, np.float32(rope_freq_scale)
        was = yarn_attn_factor(np.float32(hp.rope_freq_scale), old.ext_factor, old.log_mul)
        given = old.attn_factor / was
        new = replace(
            old,
            kind="linear" if old.kind == "none" and scale != 1 else old.kind,
            factor=float(np.float32(1) / scale),
            attn_factor=float(given * yarn_attn_factor(scale, old.ext_factor, old.log_mul)),
        )
        hp = replace(hp, rope_freq_scale=float(scale), rope_scaling=new)
    window = ARCHS[hp.arch].window
    if window is not None and not window.base_key:  # blocks with a window use the model's RoPE
        factor = hp.rope_freq_scale if window.yarn else 1.0
        hp = replace(hp, window_rope=Rope(hp.rope_freq_base, factor, window.yarn))
    return hp


def context_warnings(hp: Hparams, n_ctx: int) -> list[str]:
    """Return warnings about training with `n_ctx` tokens of context, if any."""
    if 0 < hp.n_ctx_train < n_ctx:
        return [
            f"context {n_ctx} is longer than the {hp.n_ctx_train} tokens the model was trained with"
        ]
    return []


def yarn_attn_factor(scale: np.float32, ext_factor: float, log_mul: float = 0.0) -> np.float32:
    """Return the factor (float32) with which llama.cpp undoes ggml's magnitude correction.

    If the context is stretched by f = 1 / scale, YaRN multiplies cos and sin by m(f) = 1 + 0.1 ln
    f, or by 1 if f < 1. `ggml_rope_ext` always multiplies them by 1 + 0.1 ln f. The result is m(f)
    / (1 + 0.1 ln f). If the file specifies `log_mul`, the result is also divided by 1 + 0.1
    `log_mul` ln f, which is YaRN's factor for all elements of a head.
    """
    if ext_factor == 0:
        return np.float32(1)
    factor = np.float32(1) / scale
    by_ggml: np.float32 = np.float32(1) + np.float32(0.1) * np.log(factor)
    wanted: np.float32 = by_ggml if factor > 1 else np.float32(1)
    if log_mul and factor > 1:
        wanted /= np.float32(0.1) * np.float32(log_mul) * np.log(factor) + np.float32(1)
    return np.float32(wanted * (np.float32(1) / by_ggml))
