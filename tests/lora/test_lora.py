"""Slots, initialisation and the effect of a pair."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest

from nbllama.arch.rows import ARCHS
from nbllama.arch.tensors import SHARED
from nbllama.errors import UsageError
from nbllama.lora import pairs as lora
from nbllama.lora import slots
from nbllama.lora.mix import mix
from nbllama.lora.pairs import NO_LAYER, Adapter, Pair, delta, init_adapter
from nbllama.lora.slots import SLOTS
from nbllama.options.finetune.lora import LoraOptions


@dataclass
class FakeHparams:
    arch: str = "llama"
    n_layer: int = 3


HP: Any = FakeHparams()
SHAPES = {name: (24,) if slot.kind == "norm" else (40, 24) for slot, name in slots.base_names(3)}
ALL_RANKS = {slot.name: 1 if slot.kind == "norm" else 4 for slot in SLOTS}


def adapter(ranks=None, seed: int = 1, shapes=None) -> Adapter:
    ranks = ALL_RANKS if ranks is None else ranks
    return init_adapter(HP, ranks, alpha=16.0, lora_r=8, seed=seed, shapes=shapes or SHAPES)


def test_order_is_that_of_the_old_tool() -> None:
    names = list(adapter().parameters())
    stems = [
        "token_embd", "output_norm", "output",
        *(f"blk.{i}.{t}" for i in range(3) for t in (
            "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
            "ffn_norm", "ffn_gate", "ffn_down", "ffn_up",
        )),
    ]  # fmt: skip
    assert names == [f"{s}.weight.{half}" for s in stems for half in ("lora_a", "lora_b")]
    assert len(names) == 6 + 18 * 3
    shuffled = dict(sorted(adapter().pairs.items(), key=lambda item: item[0][::-1]))
    assert list(Adapter("llama", 1, 1, shuffled).parameters()) == names


def test_slots_of_names() -> None:
    for i, (slot, name) in enumerate(slots.base_names(30)):
        found = slots.slot_of(name)
        assert found is not None and found[0] is slot
        assert slots.tensor_index(name) == i
    assert slots.slot_of("blk.17.ffn_up.weight") == (slots.SLOT_BY_NAME["w3"], 17)
    assert slots.slot_of("blk.3.attn_qkv.weight") == (slots.SLOT_BY_NAME["wqkv"], 3)
    fused = [slots.tensor_index(f"blk.{i}.attn_qkv.weight") for i in (0, 1, (1 << 20) - 1)]
    assert slots.tensor_index("blk.1048575.ffn_up.weight") < fused[0] < fused[1] < fused[2]
    assert slots.slot_of("token_embd.weight") == (slots.SLOT_BY_NAME["tok_embd"], -1)
    for name in (
        "attn_q.weight", "blk.0.output.weight", "blk.0.attn_q.bias", "blk.01.attn_q.weight",
        "blk.-1.attn_q.weight", "blk.9999999.attn_q.weight", "blk.0.attn_q.weight.lora_a",
        "attn_qkv.weight", "rope_freqs.weight", "blk.0.attn_q.weight\n", "",
    ):  # fmt: skip
        assert slots.slot_of(name) is None, name
        with pytest.raises(KeyError):
            slots.tensor_index(name)


def test_start_changes_nothing_and_has_the_old_law() -> None:
    shapes = dict(SHAPES) | {"output.weight": (5, 4000)}
    ad = init_adapter(HP, {"out": 50}, alpha=1, lora_r=1, seed=7, shapes=shapes)
    (pair,) = ad.pairs.values()
    assert pair.a.dtype == pair.b.dtype == np.float32
    assert pair.a.shape == (50, 4000) and pair.b.shape == (5, 50)
    assert not pair.b.any()
    assert not lora.delta(pair, ad.scale).any()
    normal = pair.a * np.sqrt(4050)
    assert abs(normal).max() == pytest.approx(1, rel=1e-6)
    # 200,000 draws: the standard error of mean, std and share is 0.0016, 0.0007 and 0.001
    assert normal.mean() == pytest.approx(0, abs=0.008)
    assert normal.std() == pytest.approx(0.718, abs=0.004)
    assert (abs(normal) > 0.999999).mean() == pytest.approx(0.3173, abs=0.006)


def test_a_tensor_starts_alike_whatever_else_is_trained() -> None:
    whole, part = adapter(), adapter({"wk": 4})
    assert list(part.pairs) == [f"blk.{i}.attn_k.weight" for i in range(3)]
    for name, pair in part.pairs.items():
        np.testing.assert_array_equal(pair.a, whole.pairs[name].a)
    drawn = {pair.a.tobytes() for ad in (whole, adapter(seed=2)) for pair in ad.pairs.values()}
    assert len(drawn) == 2 * len(whole.pairs)
    adapter(seed=2**64 - 1)


def test_counts_scale_and_lowest_layer() -> None:
    ad = adapter()
    assert ad.scale == 2.0
    norms, linears = 1 * (24 + 1), 4 * (24 + 40)
    assert ad.n_parameters == 7 * norms + (2 + 7 * 3) * linears
    assert ad.n_parameters == sum(x.size for x in ad.parameters().values())
    assert ad.lowest_layer() == 0
    pairs = ad.pairs
    for names, want in (
        (["output.weight", "output_norm.weight"], NO_LAYER),
        (["output.weight", "blk.2.attn_q.weight", "blk.1.ffn_up.weight"], 1),
        (["token_embd.weight", "blk.2.attn_q.weight"], 0),
        ([], NO_LAYER),
    ):
        assert Adapter("llama", 1, 1, {n: pairs[n] for n in names}).lowest_layer() == want


def test_parameters_are_the_arrays_themselves() -> None:
    ad = adapter({"wq": 4})
    ad.parameters()["blk.0.attn_q.weight.lora_b"][3, 2] = 5
    assert ad.pairs["blk.0.attn_q.weight"].b[3, 2] == 5


def test_delta() -> None:
    a = np.array([[1, 2, 3], [0, 1, 0]], np.float32)
    b = np.array([[1, 10], [2, 0]], np.float32)
    pair = Pair(a, b)
    assert (pair.rank, pair.shape) == (2, (2, 3))
    np.testing.assert_array_equal(lora.delta(pair, 0.5), [[0.5, 6, 1.5], [1, 2, 3]])


def test_bad_pairs_are_refused() -> None:
    a, b = np.zeros((2, 3), np.float32), np.zeros((4, 2), np.float32)
    for x, y in (
        (a, b.T), (a.astype(np.float64), b), (a[0], b), (np.zeros((3, 2), np.float32).T, b),
        (np.zeros((0, 3), np.float32), np.zeros((4, 0), np.float32)),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            Pair(x, y)


def test_a_rank_without_a_tensor_is_refused() -> None:
    tied = {n: s for n, s in SHAPES.items() if n != "output.weight"}
    with pytest.raises(UsageError, match=r"^--rank-out 4: .*tied"):
        adapter(shapes=tied)
    assert "output.weight" not in adapter(ALL_RANKS | {"out": 0}, shapes=tied).pairs
    with pytest.raises(KeyError):
        adapter({"attn_q": 1})


def test_ranks_above_the_full_rank_are_allowed() -> None:
    assert adapter({"wq": 25}).pairs["blk.1.attn_q.weight"].rank == 25
    assert adapter({"att_norm": 3}).pairs["blk.1.attn_norm.weight"].shape == (1, 24)


def test_misfit() -> None:
    ad = adapter()
    assert ad.misfit(SHAPES) is None
    assert ad.misfit(SHAPES | {"blk.9.attn_q.weight": (1, 1)}) is None
    for name, shape, message in (
        ("blk.1.attn_k.weight", (24, 40), "the pair for blk.1.attn_k.weight has shape (40, 24),"),
        ("blk.2.ffn_norm.weight", (25,), "the pair for blk.2.ffn_norm.weight has shape (1, 24),"),
    ):
        assert str(ad.misfit(SHAPES | {name: shape})).startswith(message)
    tied = {n: s for n, s in SHAPES.items() if n != "output.weight"}
    assert ad.misfit(tied) == "output.weight has a pair, but the base model has no such tensor"


def filled(seed: int, **options: Any) -> Adapter:
    made = adapter(seed=seed, **options)
    rng = np.random.default_rng(seed)
    for pair in made.pairs.values():
        pair.b[:] = rng.standard_normal(pair.b.shape)
    return made


def test_a_mix_adds_what_its_parts_add() -> None:
    parts = [(filled(1), 0.4), (filled(2, ranks={"wq": 7, "tok_embd": 3}), -0.8), (filled(3), 0.0)]
    mixed = mix(parts)
    assert list(mixed.pairs) == list(parts[0][0].pairs)
    assert mixed.pairs["blk.1.attn_q.weight"].rank == 4 + 7 + 4
    assert mixed.pairs["blk.1.attn_k.weight"].rank == 4 + 4
    assert mixed.misfit(SHAPES) is None
    for name, pair in mixed.pairs.items():
        wanted = sum(
            factor * delta(part.pairs[name], part.scale)
            for part, factor in parts
            if name in part.pairs
        )
        np.testing.assert_allclose(delta(pair, mixed.scale), wanted, rtol=0, atol=2e-6)


def test_a_mix_of_one_keeps_its_bits() -> None:
    one = filled(1)
    assert mix([(one, 1.0)]) == one
    half = mix([(one, 0.5)])
    assert half.scale == one.scale / 2 and half.pairs == one.pairs
    with pytest.raises(ValueError, match="no adapter"):
        mix([])


def test_the_options_of_ranks_are_the_slots() -> None:
    names = {f.name.removeprefix("rank_") for f in fields(LoraOptions) if "rank_" in f.name}
    assert names == {slot.name for slot in slots.EVERY_SLOT} | {"experts"}  # of all three at once


def test_every_matrix_and_norm_of_an_architecture_has_a_slot_or_takes_no_pair() -> None:
    no_pair = {"attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm", "ssm_norm"}
    no_pair |= {"shortconv.conv", "ssm_conv1d", "post_norm", "layer_output_scale"}
    no_pair |= {"ffn_gate_inp", "ffn_gate_inp_shexp", "attn_sinks"}
    found = set()
    for row in ARCHS.values():
        experts = (*row.experts.tensors, *SHARED) if row.experts else ()
        for tensor in (*row.block, *experts):
            name, _, kind = tensor.name.rpartition(".")
            if kind == "weight" and name not in no_pair:
                slot, layer = slots.slot_of(f"blk.0.{tensor.name}") or (None, None)
                assert slot is not None and layer == 0, tensor.name
                assert (slot.kind == "norm") == (len(tensor.shape) == 1)
                found.add(slot)
    assert found == {slot for slot in slots.EVERY_SLOT if slot.in_block}


def test_linear_layers_by_all_their_names() -> None:
    assert {s.linear: (s.name, s.tensor, s.node, s.source) for s in slots.LINEARS.values()} == {
        "q": ("wq", "attn_q", "Qcur", 0),
        "k": ("wk", "attn_k", "Kcur", 0),
        "v": ("wv", "attn_v", "Vcur", 0),
        "o": ("wo", "attn_output", "attn_out", 1),
        "gate": ("w1", "ffn_gate", "ffn_gate", 2),
        "up": ("w3", "ffn_up", "ffn_up", 2),
        "down": ("w2", "ffn_down", "ffn_out", 3),
        "qkv": ("wqkv", "attn_qkv", "delta_qkv", 0),
        "conv_in": ("conv_in", "shortconv.in_proj", "conv_in", 0),
        "conv_out": ("conv_out", "shortconv.out_proj", "conv_out", 1),
        "z": ("attn_gate", "attn_gate", "delta_z", 0),
        "alpha": ("ssm_alpha", "ssm_alpha", "delta_alpha", 0),
        "beta": ("ssm_beta", "ssm_beta", "delta_beta", 0),
        "ssm_out": ("ssm_out", "ssm_out", "ssm_out", 1),
        "inp_gate": ("inp_gate", "inp_gate", "per_layer_gate", 4),
        "proj": ("proj", "proj", "per_layer_out", 5),
        "gate_shexp": ("gate_shexp", "ffn_gate_shexp", "ffn_gate_shexp", 2),
        "up_shexp": ("up_shexp", "ffn_up_shexp", "ffn_up_shexp", 2),
        "down_shexp": ("down_shexp", "ffn_down_shexp", "ffn_shexp", 3),
    }
