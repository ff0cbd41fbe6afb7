"""Read `Hparams` from a GGUF file, and refuse files that are not valid models.

Missing keys have the same defaults as in llama.cpp (`llama_model_base::load_hparams`, and the
constructor of `llama_context` for YaRN). All numbers are checked before they are used in a kernel
or an allocation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nbllama.arch import mixers, positions
from nbllama.arch.blocks import read_blocks
from nbllama.arch.checks import check_tensors, check_token_ids
from nbllama.arch.experts import Experts, read_experts
from nbllama.arch.hparams import Hparams, Rope
from nbllama.arch.keys import numbers, per_block, per_layer, positive, size
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
from nbllama.gguf_io.limits import MAX_COUNT

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_OTHER_FILES = {
    "adapter": "a LoRA adapter",
    "mmproj": "a multimodal projector",
    "imatrix": "an importance matrix",
}


@np.errstate(all="ignore")  # overflow raises an error that names the value, not a numpy warning
def hparams_from_gguf(f: GGUFFile) -> Hparams:
    """Read the sizes and constants of the model in `f`, and check all its tensors.

    The presence, shape and type of every tensor are checked. Raises `GGUFError` with a one-line
    message if the file is not a supported model or is inconsistent. Unusual values are not
    errors; they are reported in `Hparams.warnings`.
    """
    row = _row(f)
    warnings: list[str] = []
    n_layer = size(f, f"{row.name}.block_count", at_most=MAX_LAYERS)
    next_blocks = 0
    if row.next_blocks:
        next_blocks = f.count(f"{row.name}.nextn_predict_layers", n_layer - 1, default=0)
        n_layer -= next_blocks
    n_embd = size(f, f"{row.name}.embedding_length")
    kinds = mixers.kinds(f, row, n_layer)
    n_head, n_head_kv, head_dim = _heads(f, row, n_layer, n_embd)
    n_ctx = f.count(f"{row.name}.context_length", MAX_COUNT)
    if n_ctx == 0:
        warnings.append(f"{row.name}.context_length is 0: the trained context is unknown")
    freq_scale, scaling = positions.rope_scaling(f, row, n_ctx, warnings)
    scales = _scales(f, row, Sizes(n_layer, n_embd, n_head))
    freq_base = positions.freq_base(f, row, head_dim)
    window, period, window_rope = positions.window(f, row, n_layer, Rope(freq_base, freq_scale))
    n_rot = positions.n_rot(f, row, head_dim)
    blocks = read_blocks(
        f, row, n_layer=n_layer, n_head=n_head, head_dim=head_dim, n_rot=n_rot, window=window
    )
    if blocks:  # `rope_freqs` applies to the blocks without a window
        own = next((b.n_rot for b in blocks if b.window), n_rot)
        window_rope = window_rope._replace(n_rot=own, factors=False)
    experts = read_experts(f, row.name, row.experts, n_layer, warnings=warnings)
    hp = Hparams(
        arch=row.name,
        n_vocab=_n_vocab(f, row, n_embd, warnings),
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_rot=n_rot,
        n_ff=blocks[0].n_ff if blocks else _n_ff(f, row, experts, n_layer),
        n_ctx_train=n_ctx,
        rms_eps=_eps(f, row),
        rope_freq_base=freq_base,
        rope_freq_scale=freq_scale,
        rope_scaling=scaling,
        rope_pairing=row.rope_pairing,
        activation=row.activation,
        embed_scale=scales.embedding,
        residual_scale=scales.residual,
        logit_scale=_logit_scale(row, scales),
        attn_scale=score_scale(head_dim) if scales.attention is None else scales.attention,
        attn_softcap=_softcap(f, f"{row.name}.attn_logit_softcapping", row.attn_softcap),
        logit_softcap=_softcap(f, f"{row.name}.final_logit_softcapping", row.logit_softcap),
        alibi_max_bias=positions.alibi(f, row, n_layer),
        window=window,
        window_period=period,
        window_rope=window_rope,
        tied_output="output.weight" not in f.tensors,
        has_rope_factors=ROPE_FACTORS in f.tensors,
        has_qk_norm=any(n.endswith(".attn_q_norm.weight") for n in f.tensors),
        has_post_norms="blk.0.post_ffw_norm.weight" in f.tensors,
        fused_qkv=not row.mixer and "blk.0.attn_qkv.weight" in f.tensors,
        fused_gate_up=row.gated
        and not (experts and experts.at(0))
        and "blk.0.ffn_gate.weight" not in f.tensors,
        norm=row.norm,
        attn_norm=row.attn_norm,
        ffn_norm=row.ffn_norm,
        qk_norm_last=row.qk_norm_last,
        rope_period=period if row.rope_in_windows and window else row.rope_period,
        temperature=positions.temperature(f, row, scaling.n_ctx_orig),
        gated=row.gated,
        xielu=_xielu(f, n_layer) if row.activation == "xielu" else (),
        mixers=kinds,
        conv_taps=mixers.conv_taps(f, row),
        delta=mixers.delta_net(f, row),
        attn_gate=row.attn_gate,
        output_norm=row.output_norm,
        experts=experts,
        blocks=blocks,
        values_normed=row.values_normed,
        n_per_layer=_n_per_layer(f, row),
        next_blocks=next_blocks,
    )
    mixers.check_sections(f, row, hp.n_rot)
    warnings += check_tensors(f, hp)
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
            f"'{shown(name)}'{why}; supported: {', '.join(ARCHS)}",
        )
    moe = next((n for n in f.tensors if "_exps." in n or ".ffn_gate_inp." in n), None)
    if row.experts is None and (
        f.count(f"{name}.expert_count", MAX_COUNT, default=0) > row.idle_experts or moe
    ):
        raise f.error(
            f"tensor '{shown(moe)}'" if moe else f"key '{name}.expert_count'",
            "mixture-of-experts models are not supported",
        )
    if row.dense_lead_key:
        lead, blocks = (f"{name}.{k}" for k in ("leading_dense_block_count", "block_count"))
        if f.count(lead, MAX_COUNT) < f.count(blocks, MAX_COUNT):
            raise f.error(f"key '{lead}'", "mixture-of-experts models are not supported")
    if not f.get(f"{name}.attention.causal", "bool", True):
        raise f.error(f"key '{name}.attention.causal'", "only causal models are supported")
    for key, value in row.fixed_keys.items():
        if f.get(f"{name}.{key}", "bool", value) != value:
            raise f.error(f"key '{name}.{key}'", f"{not value} is not supported for {name}")
    sections = f"{name}.rope.dimension_sections"
    if not row.sections and f.get(sections, "ints", np.zeros(0, int)).any():
        raise f.error(f"key '{sections}'", f"multimodal variants of {name} are not supported")
    return row


def _n_ff(f: GGUFFile, row: ArchRow, experts: Experts | None, n_layer: int) -> int:
    """Read the width of a dense feed-forward layer; the key is optional if no block is dense."""
    key = f"{row.name}.feed_forward_length"
    if experts is not None and experts.first == 0 and key not in f.metadata:
        return experts.n_ff
    return per_layer(f, key, n_layer)


def _n_per_layer(f: GGUFFile, row: ArchRow) -> int:
    """Read the size of the per-block token embeddings, or return 0 if there are none."""
    key = f"{row.name}.embedding_length_per_layer_input"
    return int(f.count(key, MAX_COUNT)) if row.per_layer else 0


def _xielu(f: GGUFFile, n_layer: int) -> tuple[tuple[float, ...], ...]:
    """Read the four xielu constants of each block; their keys have no architecture prefix."""
    names = ("alpha_p", "alpha_n", "beta", "eps")
    values = (numbers(f, f"xielu.{name}", n_layer) for name in names)
    return tuple(zip(*values, strict=True))


def _eps(f: GGUFFile, row: ArchRow) -> float:
    key = {"rms": "layer_norm_rms_epsilon", "layer": "layer_norm_epsilon"}[row.norm]
    return 0.0 if row.no_eps else positive(f, f"{row.name}.attention.{key}")


def _logit_scale(row: ArchRow, scales: Scales) -> float:
    scale = np.float32(scales.logit)
    return float(scale if row.logit_factor else np.float32(1) / scale)


def _softcap(f: GGUFFile, key: str, default: float | None) -> float:
    """Read a soft-cap. In the file and in the result, 0 means that there is no soft-cap."""
    if default is None or f.get(key, "float", default) == 0:
        return 0.0
    return positive(f, key, default)


def _scales(f: GGUFFile, row: ArchRow, sizes: Sizes) -> Scales:
    """Return the scales, rounded to float32 as in llama.cpp.

    Scales that the file does not contain are taken from the row.
    """
    factors = {
        name: None if value is None else float(np.float32(value))
        for name, value in row.scales(sizes)._asdict().items()
    }
    for name in row.scale_keys:
        key = f"{row.name}.{SCALE_KEYS[name]}"
        if key in f.metadata:
            factors[name] = positive(f, key)
    return Scales(**factors)  # type: ignore[arg-type]


def _heads(f: GGUFFile, row: ArchRow, n_layer: int, n_embd: int) -> tuple[int, int, int]:
    """Return n_head, n_head_kv and head_dim."""
    prefix = f"{row.name}.attention"
    n_head = per_layer(f, f"{prefix}.head_count", n_layer)
    if row.varied:  # `read_blocks` checks the other values
        n_head_kv = per_block(f, f"{prefix}.head_count_kv", n_layer, default=n_head)[0]
    else:
        n_head_kv = mixers.n_head_kv(f, row, n_layer, n_head)
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
    value_length = f.count(f"{prefix}.value_length", MAX_COUNT, default=n_embd // n_head)
    if value_length != head_dim:
        raise f.error(
            f"key '{prefix}.value_length'",
            f"{value_length}, but keys have size {head_dim}; different sizes are not supported",
        )
    return n_head, n_head_kv, head_dim


def _n_vocab(f: GGUFFile, row: ArchRow, n_embd: int, warnings: list[str]) -> int:
    """Return the number of rows in token_embd, which must match the tokenizer."""
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
            "key 'tokenizer.ggml.tokens'",
            f"{len(tokens)} tokens, but token_embd has {n_vocab} rows",
        )
    vocab_size = f.count(f"{row.name}.vocab_size", MAX_COUNT, default=n_vocab)
    if vocab_size != n_vocab:
        warnings.append(f"{row.name}.vocab_size is {vocab_size}, but token_embd has {n_vocab} rows")
    return n_vocab
