"""Read `Hparams` from a GGUF file and refuse what does not fit.

Defaults for missing keys are llama.cpp's (`llama_model_base::load_hparams`, and the constructor of
`llama_context` for YaRN). All of it happens before a kernel or an allocation sees a number.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nbllama.arch.checks import check_tensors, check_token_ids
from nbllama.arch.hparams import Hparams, Rope, RopeScaling, yarn_attn_factor
from nbllama.arch.keys import per_layer, positive, size
from nbllama.arch.rows import (
    ARCHS,
    REFUSED,
    ROPE_FACTORS,
    SCALE_KEYS,
    ArchRow,
    Scales,
    Sizes,
    score_scale,
)
from nbllama.errors import shown
from nbllama.gguf_io import GGUFFile, StringArray

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_OTHER_FILES = {
    "adapter": "a LoRA adapter",
    "mmproj": "a multimodal projector",
    "imatrix": "an importance matrix",
}


@np.errstate(all="ignore")  # what overflows is refused by name
def hparams_from_gguf(f: GGUFFile) -> Hparams:
    """Sizes and constants of the model in `f`, with every tensor's presence, shape and type proved.

    Raises `GGUFError` with one line for a file that is not a supported model or contradicts
    itself; what is only odd is reported in `Hparams.warnings`.
    """
    row = _row(f)
    warnings: list[str] = []
    n_layer = size(f, f"{row.name}.block_count", at_most=MAX_LAYERS)
    n_embd = size(f, f"{row.name}.embedding_length")
    n_head, n_head_kv, head_dim = _heads(f, row, n_layer, n_embd)
    n_ctx = f.get(f"{row.name}.context_length", "uint")
    if n_ctx == 0:
        warnings.append(f"{row.name}.context_length is 0: the trained context is unknown")
    freq_scale, scaling = _rope_scaling(f, row, n_ctx, warnings)
    scales = _scales(f, row, Sizes(n_layer, n_embd, n_head))
    freq_base = positive(f, f"{row.name}.rope.freq_base", default=10000.0)
    window, window_period, window_rope = _window(f, row, Rope(freq_base, freq_scale))
    hp = Hparams(
        arch=row.name,
        n_vocab=_n_vocab(f, row, n_embd, warnings),
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_rot=_n_rot(f, row, head_dim),
        n_ff=per_layer(f, f"{row.name}.feed_forward_length", n_layer),
        n_ctx_train=n_ctx,
        rms_eps=positive(f, f"{row.name}.attention.layer_norm_rms_epsilon"),
        rope_freq_base=freq_base,
        rope_freq_scale=freq_scale,
        rope_scaling=scaling,
        rope_pairing=row.rope_pairing,
        activation=row.activation,
        embed_scale=scales.embedding,
        residual_scale=scales.residual,
        logit_scale=float(np.float32(1) / np.float32(scales.logit)),
        attn_scale=score_scale(head_dim) if scales.attention is None else scales.attention,
        attn_softcap=_softcap(f, f"{row.name}.attn_logit_softcapping", row.attn_softcap),
        logit_softcap=_softcap(f, f"{row.name}.final_logit_softcapping", row.logit_softcap),
        alibi_max_bias=_alibi(f, row, n_layer),
        window=window,
        window_period=window_period,
        window_rope=window_rope,
        tied_output="output.weight" not in f.tensors,
        has_rope_factors=ROPE_FACTORS in f.tensors,
        has_qk_norm="blk.0.attn_q_norm.weight" in f.tensors,
        has_post_norms="blk.0.post_ffw_norm.weight" in f.tensors,
        fused_qkv="blk.0.attn_qkv.weight" in f.tensors,
        fused_gate_up="blk.0.ffn_gate.weight" not in f.tensors,
    )
    check_tensors(f, hp)
    check_token_ids(f, hp)
    return replace(hp, warnings=tuple(warnings))


def _row(f: GGUFFile) -> ArchRow:
    kind = f.metadata.get("general.type")
    if isinstance(kind, str) and kind in _OTHER_FILES:
        raise f.error("key 'general.type'", f"{_OTHER_FILES[kind]}, not a model")
    if "training.type" in f.metadata:
        raise f.error("key 'training.type'", "a training checkpoint, not a model")
    name = f.get("general.architecture", "str")
    row = ARCHS.get(name)
    if row is None:
        why = f": {REFUSED[name]} not supported" if name in REFUSED else " is not supported"
        raise f.error(
            "key 'general.architecture'",
            f"'{shown(name)}'{why}; supported are {', '.join(ARCHS)}",
        )
    moe = next((n for n in f.tensors if "_exps." in n or ".ffn_gate_inp." in n), None)
    if f.get(f"{name}.expert_count", "uint", 0) > 0 or moe:
        raise f.error(
            f"tensor '{shown(moe)}'" if moe else f"key '{name}.expert_count'",
            "mixture-of-experts models are not supported",
        )
    if row.dense_lead_key:
        lead, blocks = (f"{name}.{k}" for k in ("leading_dense_block_count", "block_count"))
        if f.get(lead, "uint") < f.get(blocks, "uint"):
            raise f.error(f"key '{lead}'", "mixture-of-experts models are not supported")
    if not f.get(f"{name}.attention.causal", "bool", True):
        raise f.error(f"key '{name}.attention.causal'", "only causal models are supported")
    for key, value in row.fixed_keys.items():
        if f.get(f"{name}.{key}", "bool", value) != value:
            raise f.error(f"key '{name}.{key}'", f"{not value} is not supported for {name}")
    return row


def _alibi(f: GGUFFile, row: ArchRow, n_layer: int) -> float:
    """Return the largest bias of ALiBi; 0 for RoPE."""
    if row.alibi_by_depth is None:
        return 0.0
    if n_layer not in row.alibi_by_depth:
        known = ", ".join(str(n) for n in row.alibi_by_depth)
        raise f.error(
            f"key '{row.name}.block_count'",
            f"{n_layer}: how {row.name} places its positions is known for {known} layers only",
        )
    return row.alibi_by_depth[n_layer]


def _softcap(f: GGUFFile, key: str, default: float | None) -> float:
    """0: none. A file may switch it off by 0."""
    if default is None or f.get(key, "float", default) == 0:
        return 0.0
    return positive(f, key, default)


def _scales(f: GGUFFile, row: ArchRow, sizes: Sizes) -> Scales:
    """Return the file's scales, or the row's, in float32, as llama.cpp has them."""
    found = {
        name: None if value is None else float(np.float32(value))
        for name, value in row.scales(sizes)._asdict().items()
    }
    for name in row.scale_keys:
        key = f"{row.name}.{SCALE_KEYS[name]}"
        if key in f.metadata:
            found[name] = positive(f, key)
    return Scales(**found)  # type: ignore[arg-type]


def _window(f: GGUFFile, row: ArchRow, rope: Rope) -> tuple[int, int, Rope]:
    """Size, period and RoPE of the blocks with a sliding window; size 0 without any."""
    if row.window is None:
        return 0, 1, rope
    prefix = f"{row.name}.attention.sliding_window"
    width = int(f.get(prefix, "uint", row.window.size))
    period = int(f.get(f"{prefix}_pattern", "uint", row.window.period))
    if period < 1:
        raise f.error(f"key '{prefix}_pattern'", f"{period}, must be at least 1")
    default = row.window.freq_base
    base = positive(
        f, f"{row.name}.rope.freq_base_swa", rope.freq_base if default is None else default
    )
    return width, period, Rope(base, rope.freq_scale if default is None else 1.0)


def _heads(f: GGUFFile, row: ArchRow, n_layer: int, n_embd: int) -> tuple[int, int, int]:
    """n_head, n_head_kv, head_dim."""
    prefix = f"{row.name}.attention"
    n_head = per_layer(f, f"{prefix}.head_count", n_layer)
    n_head_kv = per_layer(f, f"{prefix}.head_count_kv", n_layer, default=n_head)
    if n_head % n_head_kv:
        raise f.error(
            f"key '{prefix}.head_count_kv'", f"{n_head_kv} does not divide head_count {n_head}"
        )
    if f"{prefix}.key_length" in f.metadata:
        head_dim = size(f, f"{prefix}.key_length")
    elif n_embd % n_head:
        raise f.error(
            f"key '{prefix}.head_count'", f"{n_head} does not divide embedding_length {n_embd}"
        )
    else:
        head_dim = n_embd // n_head
    value_length = f.get(f"{prefix}.value_length", "uint", n_embd // n_head)
    if value_length != head_dim:
        raise f.error(
            f"key '{prefix}.value_length'",
            f"{value_length}, but keys have {head_dim}; different sizes are not supported",
        )
    return n_head, n_head_kv, head_dim


def _n_rot(f: GGUFFile, row: ArchRow, head_dim: int) -> int:
    key = f"{row.name}.rope.dimension_count"
    n_rot = int(f.get(key, "uint", head_dim))
    if n_rot < 2 or n_rot % 2 or n_rot > head_dim:
        raise f.error(f"key '{key}'", f"{n_rot}, must be even, from 2 to the head size {head_dim}")
    if n_rot != head_dim and not row.partial_rope:
        raise f.error(f"key '{key}'", f"{n_rot}, must be the head size {head_dim} for {row.name}")
    return n_rot


def _n_vocab(f: GGUFFile, row: ArchRow, n_embd: int, warnings: list[str]) -> int:
    """Rows of token_embd, which the tokenizer must agree with."""
    name = "token_embd.weight"
    info = f.tensors.get(name)
    if info is None:
        raise f.error(f"tensor '{name}'", "is missing")
    if len(info.shape) != 2 or info.shape[1] != n_embd:
        raise f.error(f"tensor '{name}'", f"shape {info.shape}, expected (n_vocab, {n_embd})")
    n_vocab = info.shape[0]
    tokens: StringArray | None = f.get("tokenizer.ggml.tokens", "strings", None)
    if tokens is not None and len(tokens) != n_vocab:
        raise f.error(
            "key 'tokenizer.ggml.tokens'", f"{len(tokens)} tokens, token_embd has {n_vocab} rows"
        )
    said = f.get(f"{row.name}.vocab_size", "uint", n_vocab)
    if said != n_vocab:
        warnings.append(f"{row.name}.vocab_size is {said}, token_embd has {n_vocab} rows")
    return n_vocab


def _rope_scaling(
    f: GGUFFile, row: ArchRow, n_ctx: int, warnings: list[str]
) -> tuple[float, RopeScaling]:
    """rope_freq_scale and the rest of it, computed in float32 as llama.cpp does."""
    prefix = f"{row.name}.rope.scaling"
    kind = f.get(f"{prefix}.type", "str", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise f.error(
            f"key '{prefix}.type'", f"'{shown(kind)}' is not supported; none, linear and yarn are"
        )
    key = f"{prefix}.factor"
    if key not in f.metadata:
        key = f"{row.name}.rope.scale_linear"  # the key of 2023
    given = np.float32(f.get(key, "float", 0.0))
    if not (np.isfinite(given) and given >= 0):
        raise f.error(f"key '{key}'", f"{given}, must be positive and finite")
    scale = np.float32(1) / given if given != 0 and kind != "none" else np.float32(1)
    if not (np.isfinite(scale) and scale > 0):
        raise f.error(f"key '{key}'", f"{given} is out of range")
    n_ctx_orig = f.get(f"{prefix}.original_context_length", "uint", n_ctx) or n_ctx
    if kind == "yarn" and n_ctx_orig == 0:
        raise f.error(f"key '{prefix}.original_context_length'", "0, YaRN needs the real length")
    for name in ("fast", "slow"):
        beta_key = f"{prefix}.yarn_beta_{name}"
        if kind == "yarn" and beta_key in f.metadata:
            warnings.append(f"{beta_key} is ignored for {row.name}, as in llama.cpp")
    ext_factor = 1.0 if kind == "yarn" else 0.0
    attn_factor = np.float32(positive(f, f"{prefix}.attn_factor", default=1.0))
    attn_factor *= yarn_attn_factor(scale, ext_factor)
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
    )
