"""Sizes and constants from small files.

What is refused: test_refused.py. RoPE scaling: test_rope.py.
"""

from __future__ import annotations

import math
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.arch import (
    ARCHS,
    ArchRow,
    Hparams,
    Rope,
    RopeScaling,
    context_warnings,
    expected_tensors,
    hparams_from_gguf,
)
from nbllama.arch.rows import SCALE_KEYS, Scales
from nbllama.errors import GGUFError
from nbllama.gguf_io import open_gguf
from nbllama.ops.ungated import CODES
from tests.arch.files import C, D, F, G, H, L, Model, V, read, refused
from tests.conftest import GOLDEN
from tests.gguf_io import build as b

ROT = "llama.rope.dimension_count"


def test_every_field(model: Model, path: Path) -> None:
    assert read(model, path) == Hparams(
        arch="llama",
        n_vocab=V,
        n_embd=C,
        n_layer=L,
        n_head=H,
        n_head_kv=G,
        head_dim=D,
        n_rot=D,
        n_ff=F,
        n_ctx_train=128,
        rms_eps=float(np.float32(1e-5)),
        rope_freq_base=10000.0,
        rope_freq_scale=1.0,
        rope_scaling=RopeScaling("none", 1.0, 128, 0.0, 1.0, 32.0, 1.0),
        rope_pairing="interleaved",
        activation="silu",
        embed_scale=1.0,
        residual_scale=1.0,
        logit_scale=1.0,
        attn_scale=float(np.float32(1) / np.sqrt(np.float32(D))),
        attn_softcap=0.0,
        logit_softcap=0.0,
        alibi_max_bias=0.0,
        window=0,
        window_period=1,
        window_rope=Rope(10000.0, 1.0),
        tied_output=False,
        has_rope_factors=False,
        has_qk_norm=False,
        has_post_norms=False,
        fused_qkv=False,
        fused_gate_up=False,
    )
    assert read(model, path).warnings == ()


class TestOptional:
    """Missing keys have llama.cpp's defaults; the tensors determine what can be absent."""

    def test_tied_output(self, model: Model, path: Path) -> None:
        del model.tensors["output.weight"]
        assert read(model, path).tied_output

    def test_no_kv_heads_means_all(self, model: Model, path: Path) -> None:
        del model.keys["llama.attention.head_count_kv"]
        for i in range(L):
            model.tensor(f"blk.{i}.attn_k.weight", (C, H * D))
            model.tensor(f"blk.{i}.attn_v.weight", (C, H * D))
        assert read(model, path).n_head_kv == H

    @pytest.mark.parametrize(
        "key", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"]
    )
    def test_a_value_for_each_layer(self, model: Model, path: Path, key: str) -> None:
        plain = read(model, path)
        model.counts(
            f"llama.{key}",
            [{"attention.head_count": H, "attention.head_count_kv": G}.get(key, F)] * L,
        )
        assert read(model, path) == plain
        model.counts(f"llama.{key}", [2, 4])
        assert "differs between layers" in refused(model, path)
        model.counts(f"llama.{key}", [2] * (L + 1))
        assert f"{L + 1} values for {L} layers" in refused(model, path)
        model.counts(f"llama.{key}", [-2] * L)
        assert "-2, but must be from 1 to " in refused(model, path)

    def test_key_length(self, model: Model, path: Path) -> None:
        model.count("llama.attention.key_length", 2 * D)
        model.count("llama.attention.value_length", 2 * D)
        for i in range(L):
            model.tensor(f"blk.{i}.attn_q.weight", (C, H * 2 * D))
            model.tensor(f"blk.{i}.attn_k.weight", (C, G * 2 * D))
            model.tensor(f"blk.{i}.attn_v.weight", (C, G * 2 * D))
            model.tensor(f"blk.{i}.attn_output.weight", (H * 2 * D, C))
        hp = read(model, path)
        assert (hp.head_dim, hp.n_rot, hp.attn_scale) == (16, 16, 0.25)

    def test_key_length_alone(self, model: Model, path: Path) -> None:
        model.count("llama.attention.key_length", 2 * D)
        assert refused(model, path) == (
            "key 'llama.attention.value_length': 8, but keys have size 16;"
            " different sizes are not supported"
        )

    def test_freq_base(self, model: Model, path: Path) -> None:
        model.number("llama.rope.freq_base", 5e5)
        assert read(model, path).rope_freq_base == 5e5

    def test_biases_and_rope_factors(self, model: Model, path: Path) -> None:
        for i in range(L):
            for name, n in (("attn_q", H * D), ("attn_k", G * D), ("ffn_down", C), ("ffn_up", F)):
                model.tensor(f"blk.{i}.{name}.bias", (n,))
        ones = struct.pack(f"<{D // 2}f", *range(1, D // 2 + 1))
        model.tensors["rope_freqs.weight"] = b.T("rope_freqs.weight", (D // 2,), data=ones)
        assert read(model, path).has_rope_factors

    @pytest.mark.parametrize("type_id", [0, 1, 2, 8])
    def test_any_type_for_matrices(self, model: Model, path: Path, type_id: int) -> None:
        model.tensor("output.weight", (C, V), type_id)
        assert read(model, path).n_vocab == V

    def test_no_tokenizer(self, model: Model, path: Path) -> None:
        del model.keys["tokenizer.ggml.tokens"]
        assert read(model, path).n_vocab == V

    def test_counts_of_other_widths(self, model: Model, path: Path) -> None:
        key = "llama.block_count"
        for kind, code in ((b.U8, "B"), (b.I16, "h"), (b.U64, "Q"), (b.I64, "q")):
            model.keys[key] = b.kv(key, kind, struct.pack("<" + code, L))
            assert read(model, path).n_layer == L


def test_last_token_id_is_fine(model: Model, path: Path) -> None:
    model.count("tokenizer.ggml.eos_token_id", V - 1)
    assert read(model, path).n_vocab == V


class TestM08:
    def test_unknown_context(self, model: Model, path: Path) -> None:
        model.count("llama.context_length", 0)
        hp = read(model, path)
        assert hp.warnings == ("llama.context_length is 0: the trained context is unknown",)
        assert context_warnings(hp, 10_000) == []

    def test_requested(self, model: Model, path: Path) -> None:
        hp = read(model, path)
        assert context_warnings(hp, 128) == []
        assert context_warnings(hp, 129) == [
            "context 129 is longer than the 128 tokens the model was trained with"
        ]

    def test_vocab_size_key(self, model: Model, path: Path) -> None:
        model.count("llama.vocab_size", V)
        assert read(model, path).warnings == ()
        model.count("llama.vocab_size", V + 1)
        assert read(model, path).warnings == ("llama.vocab_size is 41, but token_embd has 40 rows",)


def test_expected_tensors(model: Model, path: Path) -> None:
    hp = read(model, path)
    expected = expected_tensors(hp)
    in_file = {name: tuple(reversed(t.ne)) for name, t in model.tensors.items()}
    assert {n: t.shape for n, t in expected.items() if n in in_file} == in_file
    required = {n for n, t in expected.items() if t.required}
    assert required == set(in_file) - {"output.weight"}
    optional = {n: t.shape for n, t in expected.items() if not t.required}
    assert optional.pop("output.weight") == (V, C)
    assert optional.pop("rope_freqs.weight") == (D // 2,)
    assert {n: s for n, s in optional.items() if n.startswith("blk.1.")} == {
        "blk.1.attn_q.bias": (H * D,),
        "blk.1.attn_k.bias": (G * D,),
        "blk.1.attn_v.bias": (G * D,),
        "blk.1.attn_output.bias": (C,),
        "blk.1.ffn_gate.bias": (F,),
        "blk.1.ffn_up.bias": (F,),
        "blk.1.ffn_down.bias": (C,),
    }
    assert len(optional) == 7 * L


class TestRows:
    """Features that no row uses yet but the next rows will need."""

    def row(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        monkeypatch.setitem(ARCHS, "llama", replace(ARCHS["llama"], **changes))

    def test_alibi_by_depth(
        self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.row(monkeypatch, alibi_by_depth={L: 8.0, 40: 0.0})
        assert read(model, path).alibi_max_bias == 8.0
        self.row(monkeypatch, alibi_by_depth={32: 0.0, 40: 8.0})
        assert (
            "'llama.block_count': 2, but llama is supported only with 32 or 40 layers"
            in refused(model, path)
        )

    def test_softcaps_scale_pairing(
        self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.row(
            monkeypatch,
            attn_softcap=50.0,
            logit_softcap=0.0,
            scales=lambda sizes: Scales(math.sqrt(sizes.n_embd)),
            activation="gelu",
            rope_pairing="halves",
        )
        model.number("llama.attn_logit_softcapping", 20.0)
        hp = read(model, path)
        assert (hp.attn_softcap, hp.logit_softcap) == (20.0, 0.0)
        assert hp.embed_scale == float(np.sqrt(np.float32(C)))
        assert (hp.activation, hp.rope_pairing) == ("gelu", "halves")

    def test_scales_of_the_file(
        self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model.number("llama.attention.scale", 0.3)
        model.number("llama.residual_scale", 0.25)
        assert read(model, path).attn_scale == float(np.float32(1) / np.sqrt(np.float32(D)))
        self.row(monkeypatch, scale_keys=("attention", "residual"))
        hp = read(model, path)
        assert (hp.attn_scale, hp.residual_scale) == (float(np.float32(0.3)), 0.25)
        model.number("llama.residual_scale", 0.0)
        wrong = "'llama.residual_scale': 0.0, but must be positive and finite"
        assert wrong in refused(model, path)

    def test_a_key_that_may_have_one_value(
        self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.row(monkeypatch, fixed_keys={"rope.scaling.finetuned": True})
        assert read(model, path).n_rot == D
        model.flag("llama.rope.scaling.finetuned", True)
        assert read(model, path).n_rot == D
        model.flag("llama.rope.scaling.finetuned", False)
        assert "finetuned': False is not supported for llama" in refused(model, path)

    def test_partial_rope(self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.row(monkeypatch, partial_rope=True)
        model.count(ROT, 4)
        assert read(model, path).n_rot == 4

    def test_rows_are_whole(self) -> None:
        sizes = {"n_vocab", "n_embd", "n_q", "n_kv", "n_qkv", "head_dim", "n_ff", "n_gate_up"}
        sizes |= {"n_rot_half", "n_head", "n_expert", "n_ff_exp", "n_ff_shexp", "n_q_gate"}
        sizes |= {"n_conv_in", "conv_taps", "delta_qkv", "delta_values", "delta_heads"}
        sizes |= {"delta_size", "delta_taps", "n_per_layer", "n_per_layer_all", "one"}
        for name, row in ARCHS.items():
            assert isinstance(row, ArchRow) and row.name == name
            experts = row.experts.tensors if row.experts else ()
            for t in (*row.tensors, *row.block, *experts):
                assert set(t.shape) <= sizes
            assert row.rope_pairing in ("interleaved", "halves")
            assert row.activation in (("silu", "gelu") if row.gated else CODES)
            norms = {t.name.removesuffix(".weight") for t in row.block} | {""}
            assert {row.attn_norm, row.ffn_norm} <= norms
            assert set(row.scale_keys) <= set(Scales._fields) == set(SCALE_KEYS)


def test_frozen(model: Model, path: Path) -> None:
    hp = read(model, path)
    for field in fields(hp):
        with pytest.raises(AttributeError):
            setattr(hp, field.name, 0)


TOYS: list[dict[str, Any]] = [
    {},
    {"tied": True, "tokenizer": "bpe"},
    {"biases": True},
    {"rope_factors": True},
    {"head_dim": 32},
    {"n_head_kv": 1, "tokenizer": "none"},
    {"rope_scaling": ("linear", 2.0)},
    {"rope_scaling": ("yarn", 4.0, 128)},
]


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_toy_models(path: Path, toy: dict[str, Any]) -> None:
    """Models that llama.cpp loads, made without this package."""
    make_llama(path, **toy)
    with open_gguf(path) as f:
        hp = hparams_from_gguf(f)
        assert set(f.tensors) <= set(expected_tensors(hp))
    assert hp.tied_output == toy.get("tied", False)
    assert hp.has_rope_factors == toy.get("rope_factors", False)
    assert hp.head_dim == toy.get("head_dim", 16)
    assert hp.n_head_kv == toy.get("n_head_kv", 2)
    assert (hp.n_vocab, hp.n_embd, hp.n_layer, hp.n_head, hp.n_ff) == (320, 64, 2, 4, 96)
    kind, factor = toy.get("rope_scaling", ("none", 1.0))[:2]
    assert (hp.rope_scaling.kind, hp.rope_scaling.factor) == (kind, factor)
    assert hp.warnings == ()


def test_demo_model(demo_model: Path) -> None:
    with open_gguf(demo_model) as f:
        hp = hparams_from_gguf(f)
    assert (hp.n_layer, hp.n_embd, hp.n_head, hp.n_head_kv, hp.n_ff) == (30, 576, 9, 3, 1536)
    assert (hp.n_vocab, hp.tied_output, hp.rope_freq_base) == (49152, True, 100000.0)
    assert hp.warnings == ()


def test_golden_checkpoints_are_not_models() -> None:
    for file in sorted(GOLDEN.glob("*.gguf")):
        with open_gguf(file) as f:
            if "chk" in file.name:
                with pytest.raises(GGUFError, match="a training checkpoint, not a model"):
                    hparams_from_gguf(f)
            else:
                assert hparams_from_gguf(f).n_layer == 3
