"""Sizes and constants from small files; every contradiction refused in one line."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.arch import (
    ARCHS,
    ArchRow,
    Hparams,
    Rope,
    RopeScaling,
    context_warnings,
    expected_tensors,
    hparams_from_gguf,
    hparams_identity,
    with_overrides,
)
from nbllama.errors import GGUFError
from nbllama.gguf_io import ValueType, open_gguf, write_gguf
from tests.gguf_io import build as b
from tests.toy_models import make_llama

V, C, L, H, G, D, F = 40, 32, 2, 4, 2, 8, 48
F32_NAN, F32_INF = float("nan"), float("inf")


class Model:
    """A file of the llama architecture, to be changed before it is written."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.string("general.architecture", "llama")
        self.count("llama.block_count", L)
        self.count("llama.context_length", 128)
        self.count("llama.embedding_length", C)
        self.count("llama.feed_forward_length", F)
        self.count("llama.attention.head_count", H)
        self.count("llama.attention.head_count_kv", G)
        self.number("llama.attention.layer_norm_rms_epsilon", 1e-5)
        self.strings("tokenizer.ggml.tokens", [f"t{i}" for i in range(V)])
        self.tensors: dict[str, b.T] = {}
        self.tensor("token_embd.weight", (C, V))
        self.tensor("output_norm.weight", (C,))
        self.tensor("output.weight", (C, V))
        for i in range(L):
            self.tensor(f"blk.{i}.attn_norm.weight", (C,))
            self.tensor(f"blk.{i}.attn_q.weight", (C, H * D))
            self.tensor(f"blk.{i}.attn_k.weight", (C, G * D))
            self.tensor(f"blk.{i}.attn_v.weight", (C, G * D))
            self.tensor(f"blk.{i}.attn_output.weight", (H * D, C))
            self.tensor(f"blk.{i}.ffn_norm.weight", (C,))
            self.tensor(f"blk.{i}.ffn_gate.weight", (C, F))
            self.tensor(f"blk.{i}.ffn_up.weight", (C, F))
            self.tensor(f"blk.{i}.ffn_down.weight", (F, C))

    def count(self, key: str, value: int) -> None:
        self.keys[key] = b.kv_u32(key, value)

    def number(self, key: str, value: float) -> None:
        self.keys[key] = b.kv_f32(key, value)

    def flag(self, key: str, value: bool) -> None:
        self.keys[key] = b.kv(key, b.BOOL, bytes([value]))

    def string(self, key: str, value: str) -> None:
        self.keys[key] = b.kv_str(key, value)

    def strings(self, key: str, values: list[str]) -> None:
        self.keys[key] = b.kv_strings(key, values)

    def counts(self, key: str, values: list[int]) -> None:
        payload = struct.pack(f"<{len(values)}i", *values)
        self.keys[key] = b.kv_array(key, b.I32, len(values), payload)

    def tensor(self, name: str, ne: tuple[int, ...], type_id: int = 0) -> None:
        self.tensors[name] = b.T(name, ne, type_id)

    def write(self, path: Path) -> Path:
        parts = b.Gguf(tuple(self.keys.values()), tuple(self.tensors.values()))
        path.write_bytes(parts.build())
        return path


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def read(model: Model, path: Path) -> Hparams:
    with open_gguf(model.write(path)) as f:
        return hparams_from_gguf(f)


def refused(model: Model, path: Path) -> str:
    with open_gguf(model.write(path)) as f, pytest.raises(GGUFError) as caught:
        hparams_from_gguf(f)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.isprintable() and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


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
    """Missing keys take llama.cpp's defaults; what may be absent is told by the tensors."""

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
        assert "-2, allowed 1.." in refused(model, path)

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
            "key 'llama.attention.value_length': 8, but keys have 16;"
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


class TestRopeScaling:
    def scaling(self, model: Model, path: Path, kind: str | None, **keys: float) -> Hparams:
        if kind is not None:
            model.string("llama.rope.scaling.type", kind)
        for key, value in keys.items():
            if key == "original_context_length":
                model.count(f"llama.rope.scaling.{key}", int(value))
            else:
                model.number(f"llama.rope.scaling.{key}", value)
        return read(model, path)

    def test_linear(self, model: Model, path: Path) -> None:
        for kind in (None, "linear"):
            hp = self.scaling(model, path, kind, factor=4.0)
            assert hp.rope_freq_scale == 0.25
            assert hp.rope_scaling == RopeScaling("linear", 4.0, 128)

    def test_old_key(self, model: Model, path: Path) -> None:
        model.number("llama.rope.scale_linear", 8.0)
        assert read(model, path).rope_freq_scale == 0.125
        model.number("llama.rope.scaling.factor", 2.0)  # the new key wins
        assert read(model, path).rope_freq_scale == 0.5

    def test_none_ignores_the_factor(self, model: Model, path: Path) -> None:
        hp = self.scaling(model, path, "none", factor=4.0)
        assert (hp.rope_freq_scale, hp.rope_scaling) == (1.0, RopeScaling("none", 1.0, 128))

    def test_factor_zero_is_one(self, model: Model, path: Path) -> None:
        assert self.scaling(model, path, "linear", factor=0.0).rope_scaling.kind == "none"

    def test_yarn(self, model: Model, path: Path) -> None:
        hp = self.scaling(model, path, "yarn", factor=4.0, original_context_length=32)
        assert hp.rope_freq_scale == 0.25
        assert hp.rope_scaling == RopeScaling("yarn", 4.0, 32, 1.0, 1.0, 32.0, 1.0)

    def test_yarn_magnitude(self, model: Model, path: Path) -> None:
        """ggml multiplies by 1 + 0.1 ln f; what remains must be YaRN's own m(f), 1 for f < 1."""
        for factor in (0.5, 1.0, 3.0, 40.0):
            s = self.scaling(model, path, "yarn", factor=factor).rope_scaling
            by_ggml = 1 + 0.1 * math.log(factor)
            wanted = by_ggml if factor > 1 else 1.0
            assert s.attn_factor * by_ggml == pytest.approx(wanted, rel=3e-7)  # float32 steps

    def test_attn_factor(self, model: Model, path: Path) -> None:
        assert self.scaling(model, path, "linear", attn_factor=1.5).rope_scaling.attn_factor == 1.5
        hp = self.scaling(model, path, "yarn", factor=4.0, attn_factor=1.5)
        assert hp.rope_scaling.attn_factor == 1.5

    def test_yarn_betas_are_not_read_for_llama(self, model: Model, path: Path) -> None:
        hp = self.scaling(model, path, "yarn", factor=4.0, yarn_beta_fast=8.0)
        assert (hp.rope_scaling.beta_fast, hp.rope_scaling.beta_slow) == (32.0, 1.0)
        assert hp.warnings == (
            "llama.rope.scaling.yarn_beta_fast is ignored for llama, as in llama.cpp",
        )

    def test_yarn_betas_where_a_row_says_so(
        self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(ARCHS, "llama", replace(ARCHS["llama"], yarn_keys=True))
        s = self.scaling(model, path, "yarn", yarn_beta_fast=8.0, yarn_beta_slow=2.0).rope_scaling
        assert (s.beta_fast, s.beta_slow) == (8.0, 2.0)

    def test_overrides(self, model: Model, path: Path) -> None:
        plain = read(model, path)
        assert with_overrides(plain) == plain
        hp = with_overrides(plain, rms_eps=1e-6, rope_freq_base=5e5, rope_freq_scale=0.5)
        assert hp.rms_eps == float(np.float32(1e-6)) and hp.rope_freq_base == 5e5
        assert hp.rope_freq_scale == 0.5
        assert hp.rope_scaling == RopeScaling("linear", 2.0, 128)

    def test_override_of_yarn(self, tmp_path: Path) -> None:
        want = self.scaling(Model(), tmp_path / "a", "yarn", factor=8.0, attn_factor=1.5)
        got = self.scaling(Model(), tmp_path / "b", "yarn", factor=0.5, attn_factor=1.5)
        got = with_overrides(got, rope_freq_scale=0.125)
        assert got.rope_freq_scale == want.rope_freq_scale
        assert got.rope_scaling.attn_factor == pytest.approx(want.rope_scaling.attn_factor, 1e-6)
        assert replace(got.rope_scaling, attn_factor=0) == replace(want.rope_scaling, attn_factor=0)


def edit(name: str, *args: Any) -> Callable[[Model], None]:
    return lambda model: getattr(model, name)(*args)


def drop(key: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        (model.keys if key in model.keys else model.tensors).pop(key)

    return change


def factors(*values: float) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        raw = struct.pack(f"<{len(values)}f", *values)
        model.tensors["rope_freqs.weight"] = b.T("rope_freqs.weight", (len(values),), data=raw)

    return change


EPS, KV = "llama.attention.layer_norm_rms_epsilon", "llama.attention.head_count_kv"
HEADS, ROT, BASE = (
    "llama.attention.head_count",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
)
SCALING = "llama.rope.scaling"
WK = "blk.1.attn_k.weight"
REFUSED: list[tuple[str, Callable[[Model], None], str]] = [
    ("M01", drop("general.architecture"), "key 'general.architecture': is missing"),
    (
        "M01b",
        edit("string", "general.architecture", "mamba"),
        "recurrent models are not supported; su",
    ),
    ("M01c", edit("string", "general.architecture", "a\nb"), r"'a\nb' is not supported"),
    ("M01d", edit("count", "general.architecture", 1), "must be a string, is UINT32 1"),
    ("M01e", edit("string", "general.type", "adapter"), "a LoRA adapter, not a model"),
    ("M01f", edit("string", "training.type", "finetune_lora"), "a training checkpoint, not a mod"),
    ("M01g", edit("flag", "llama.attention.causal", False), "only causal models are supported"),
    ("M01h", edit("count", "llama.expert_count", 8), "mixture-of-experts models are not support"),
    ("M01i", edit("tensor", "blk.0.ffn_gate_exps.weight", (C, F, 8)), "tensor 'blk.0.ffn_gate_exp"),
    ("M02a", drop("llama.block_count"), "key 'llama.block_count': is missing"),
    ("M02b", drop("llama.embedding_length"), "key 'llama.embedding_length': is missing"),
    ("M02c", drop("llama.feed_forward_length"), "key 'llama.feed_forward_length': is missing"),
    ("M02d", drop(HEADS), f"key '{HEADS}': is missing"),
    ("M02e", drop("llama.context_length"), "key 'llama.context_length': is missing"),
    ("M02f", drop(EPS), f"key '{EPS}': is missing"),
    ("M03a", edit("string", "llama.block_count", "2"), "'llama.block_count': must be a count"),
    ("M03b", edit("number", HEADS, 4.0), f"'{HEADS}': must be a count"),
    ("M03c", edit("count", EPS, 1), f"'{EPS}': must be a floating point number, is UINT32 1"),
    ("M03d", edit("strings", KV, ["2"]), f"'{KV}': must be a count"),
    (
        "M03e",
        edit("counts", "llama.embedding_length", [C]),
        "'llama.embedding_length': must be a c",
    ),
    ("M03f", edit("flag", "llama.block_count", True), "must be a count"),
    ("M03g", edit("string", "tokenizer.ggml.tokens", "x"), "tokens': must be an array of strings"),
    ("M04a", edit("count", "llama.block_count", 0), "'llama.block_count': 0, allowed 1..512"),
    ("M04b", edit("count", "llama.block_count", 1 << 31), "2147483648, allowed 1..512"),
    ("M04c", edit("count", "llama.block_count", L + 1), "'blk.2.attn_norm.weight': is missing"),
    ("M04d", edit("count", "llama.block_count", L - 1), "'blk.1.attn_norm.weight': is not known"),
    ("M05a", edit("count", HEADS, 0), f"'{HEADS}': 0, allowed 1.."),
    ("M05b", edit("count", "llama.embedding_length", 0), "length': 0, allowed 1.."),
    ("M05c", edit("count", "llama.feed_forward_length", 0), "length': 0, allowed 1.."),
    ("M05d", edit("count", "llama.attention.key_length", 0), "key_length': 0, allowed 1.."),
    ("M06", edit("count", HEADS, 6), "6 does not divide embedding_length 32"),
    ("M07a", edit("count", KV, 3), f"'{KV}': 3 does not divide head_count 4"),
    ("M07b", edit("count", KV, 0), f"'{KV}': 0, allowed 1.."),
    ("M07c", edit("count", KV, 8), f"'{KV}': 8 does not divide head_count 4"),
    ("M09a", drop("token_embd.weight"), "tensor 'token_embd.weight': is missing"),
    ("M09b", drop("output_norm.weight"), "tensor 'output_norm.weight': is missing"),
    ("M09c", drop(WK), f"tensor '{WK}': is missing"),
    ("M10a", edit("tensor", WK, (C, C)), f"'{WK}': shape (32, 32), expected (16, 32)"),
    ("M10b", edit("tensor", WK, (16, C)), "shape (32, 16), expected (16, 32) (transposed?)"),
    ("M10c", edit("tensor", WK, (C * 16,)), "shape (512,), expected (16, 32)"),
    ("M10d", edit("tensor", "token_embd.weight", (V, C)), "shape (32, 40), expected (n_vocab, 32)"),
    ("M10e", edit("tensor", "output.weight", (C, V + 1)), "shape (41, 32), expected (40, 32)"),
    ("M10f", edit("tensor", WK, (C, 16), 24), f"'{WK}': type I8 is not supported for this tensor"),
    ("M10g", edit("tensor", "output_norm.weight", (C,), 2), "type Q4_0 is not supported for this"),
    ("M10h", edit("tensor", "blk.0.attn_q_norm.weight", (D,)), "is not known for architecture lla"),
    ("M10i", edit("tensor", "blk.2.attn_norm.weight", (C,)), "is not known for architecture llama"),
    ("M10j", edit("tensor", "blk.0.attn_q.bias", (C + 1,)), "shape (33,), expected (32,)"),
    ("M10k", edit("tensor", "rope_freqs.weight", (D,)), "shape (8,), expected (4,)"),
    ("M10l", edit("tensor", "rope_freqs.weight", (4,), 1), "'rope_freqs.weight': must be F32"),
    ("M10m", factors(1, 2, 0, 4), "'rope_freqs.weight': must be positive and finite"),
    ("M10n", factors(1, 2, F32_NAN, 4), "'rope_freqs.weight': must be positive and finite"),
    ("M12a", edit("count", ROT, 7), f"'{ROT}': 7, must be even, from 2 to the head size 8"),
    ("M12b", edit("count", ROT, 10), "10, must be even, from 2 to the head size 8"),
    ("M12c", edit("count", ROT, 0), "0, must be even"),
    ("M12d", edit("count", ROT, 4), f"'{ROT}': 4, must be the head size 8 for llama"),
    *[
        (f"M12-{v}", edit("number", BASE, v), f"'{BASE}': {v}, must be positive and finite")
        for v in (0.0, -1.0, F32_NAN, F32_INF)
    ],
    *[
        (f"M12-s{v}", edit("number", f"{SCALING}.factor", v), "must be positive and finite")
        for v in (-1.0, F32_NAN, F32_INF)
    ],
    ("M12-s1", edit("number", f"{SCALING}.factor", 1e-45), "is out of range"),
    ("M12-s2", edit("number", f"{SCALING}.attn_factor", 0.0), "must be positive and finite"),
    ("M12-s3", edit("string", f"{SCALING}.type", "longrope"), "'longrope' is not supported; none,"),
    ("M12-s4", edit("string", f"{SCALING}.type", "ntk"), "'ntk' is not supported; none, linear an"),
    *[
        (f"M13-{v}", edit("number", EPS, v), f"'{EPS}': {v}, must be positive and finite")
        for v in (0.0, -1.0, F32_NAN, F32_INF)
    ],
    (
        "M14",
        edit("strings", "tokenizer.ggml.tokens", ["x"] * 39),
        "39 tokens, token_embd has 40 ro",
    ),
    *[
        (
            f"M16-{n}",
            edit("count", f"tokenizer.ggml.{n}_token_id", V),
            f"{n}_token_id': 40, vocabula",
        )
        for n in ("bos", "eos", "padding", "unknown", "eot", "fim_pre")
    ],
    ("M16-x", edit("number", "tokenizer.ggml.bos_token_id", 1.0), "must be a count"),
]


@pytest.mark.parametrize(("change", "said"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(model: Model, path: Path, change: Callable[[Model], None], said: str) -> None:
    change(model)
    message = refused(model, path)
    assert said in message


def test_every_row_of_the_table_has_a_case() -> None:
    # M08 only warns; M11 is the forecast's; M15 and above belong to the text and the checkpoints.
    mine = {f"M{i:02}" for i in (*range(1, 8), 9, 10, 12, 13, 14, 16)}
    assert {name[:3] for name, _, _ in REFUSED} == mine


def test_yarn_without_a_context(model: Model, path: Path) -> None:
    model.count("llama.context_length", 0)
    model.string(f"{SCALING}.type", "yarn")
    assert "original_context_length': 0, YaRN needs the real length" in refused(model, path)


def test_yarn_out_of_range(model: Model, path: Path) -> None:
    model.string(f"{SCALING}.type", "yarn")
    model.number(f"{SCALING}.factor", 1e-6)  # 1 + 0.1 ln f is below zero
    assert "is out of range for YaRN" in refused(model, path)


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
            "context 129 is longer than the 128 the model was trained with"
        ]

    def test_vocab_size_key(self, model: Model, path: Path) -> None:
        model.count("llama.vocab_size", V)
        assert read(model, path).warnings == ()
        model.count("llama.vocab_size", V + 1)
        assert read(model, path).warnings == ("llama.vocab_size is 41, token_embd has 40 rows",)


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


def test_identity(model: Model, path: Path) -> None:
    hp = read(model, path)
    identity = hparams_identity(hp)
    assert identity == {
        "general.architecture": "llama",
        "llama.vocab_size": V,
        "llama.embedding_length": C,
        "llama.feed_forward_length": F,
        "llama.block_count": L,
        "llama.attention.head_count": H,
        "llama.attention.head_count_kv": G,
        "llama.attention.key_length": D,
        "llama.rope.dimension_count": D,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.freq_base": 10000.0,
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 1.0,
    }
    kinds: dict[type, int] = {
        str: ValueType.STRING,
        int: ValueType.UINT32,
        float: ValueType.FLOAT32,
    }
    write_gguf(path, [(k, v, kinds[type(v)]) for k, v in identity.items()], [])
    with open_gguf(path) as f:
        assert f.metadata == identity  # nothing is lost in a checkpoint


class TestRows:
    """What no row uses yet but the next ones need."""

    def row(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        monkeypatch.setitem(ARCHS, "llama", replace(ARCHS["llama"], **changes))

    def test_alibi_by_depth(
        self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.row(monkeypatch, alibi_by_depth={L: 8.0, 40: 0.0})
        assert read(model, path).alibi_max_bias == 8.0
        self.row(monkeypatch, alibi_by_depth={32: 0.0, 40: 8.0})
        assert (
            "'llama.block_count': 2: how llama places its positions is known for 32, 40 layers"
            in refused(model, path)
        )

    def test_softcaps_scale_pairing(
        self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.row(
            monkeypatch,
            attn_softcap=50.0,
            logit_softcap=0.0,
            embed_scale="sqrt_n_embd",
            activation="gelu",
            rope_pairing="halves",
        )
        model.number("llama.attn_logit_softcapping", 20.0)
        hp = read(model, path)
        assert (hp.attn_softcap, hp.logit_softcap) == (20.0, 0.0)
        assert hp.embed_scale == float(np.sqrt(np.float32(C)))
        assert (hp.activation, hp.rope_pairing) == ("gelu", "halves")

    def test_partial_rope(self, model: Model, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.row(monkeypatch, partial_rope=True)
        model.count(ROT, 4)
        assert read(model, path).n_rot == 4

    def test_rows_are_whole(self) -> None:
        sizes = {"n_vocab", "n_embd", "n_q", "n_kv", "n_qkv", "head_dim", "n_ff", "n_gate_up"}
        sizes.add("n_rot_half")
        for name, row in ARCHS.items():
            assert isinstance(row, ArchRow) and row.name == name
            for t in (*row.tensors, *row.block):
                assert set(t.shape) <= sizes
            assert row.rope_pairing in ("interleaved", "halves")
            assert row.activation in ("silu", "gelu")
            assert row.embed_scale in ("one", "sqrt_n_embd")


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


def test_golden_checkpoints_are_not_models(shared: Path) -> None:
    for file in sorted((shared / "data" / "old-finetune").glob("*.gguf")):
        with open_gguf(file) as f:
            if "chk" in file.name:
                with pytest.raises(GGUFError, match="a training checkpoint, not a model"):
                    hparams_from_gguf(f)
            else:
                assert hparams_from_gguf(f).n_layer == 3
