"""The tensors that a model with given sizes must or can contain."""

from __future__ import annotations

from typing import NamedTuple

from nbllama.arch.experts import block_rows
from nbllama.arch.hparams import Hparams
from nbllama.arch.rows import ARCHS


class ExpectedTensor(NamedTuple):
    """The shape of a tensor, in numpy order, and whether the tensor is required."""

    shape: tuple[int, ...]
    required: bool


def expected_tensors(hp: Hparams) -> dict[str, ExpectedTensor]:
    """Return all required and optional tensors of a model with these sizes, in file order."""
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
        "n_conv_in": 3 * hp.n_embd,
        "conv_taps": hp.conv_taps,
        "n_head": hp.n_head,
        "n_per_layer": hp.n_per_layer,
        "n_per_layer_all": hp.n_per_layer * hp.n_layer,
        "one": 1,
    }
    if hp.attn_gate:
        sizes["n_q_gate"] = 2 * sizes["n_q"]
    if of := hp.delta:
        sizes |= {"delta_qkv": of.n_qkv, "delta_values": of.n_values, "delta_heads": of.heads}
        sizes |= {"delta_size": of.size, "delta_taps": of.taps}
    if e := hp.experts:
        sizes |= {"n_expert": e.total, "n_ff_exp": e.n_ff, "n_ff_shexp": e.n_ff_shared}
    named = [(t.name, t, sizes) for t in row.tensors]
    for i in range(hp.n_layer):
        rows, own = block_rows(row.block, row.experts, hp.experts, i), sizes | _varying(hp, i)
        kinds = {"", hp.mixer_at(i), "per_layer" if hp.n_per_layer else ""}
        named += [(f"blk.{i}.{t.name}", t, own) for t in rows if t.mixer in kinds]
    unused = unused_tensors(hp)
    return {
        name: ExpectedTensor(shape, t.required and name not in unused)
        for name, t, of in named
        if 0 not in (shape := tuple(of[s] for s in t.shape))
    }


def _varying(hp: Hparams, layer: int) -> dict[str, int]:
    """Return those sizes of a block that can differ between blocks."""
    if not hp.blocks:
        return {}
    of = hp.blocks[layer]
    n_q, n_kv = hp.n_head * of.head_dim, of.n_head_kv * of.head_dim
    return {"n_q": n_q, "n_kv": n_kv, "head_dim": of.head_dim, "n_ff": of.n_ff}


def unused_tensors(hp: Hparams) -> set[str]:
    """Return the names of the key and value tensors that no block uses; they are optional."""
    layers = [i for i, of in enumerate(hp.blocks) if of.kv_from != i]
    names = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
    return {f"blk.{i}.{name}" for i in layers for name in names}
