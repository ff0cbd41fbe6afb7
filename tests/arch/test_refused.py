"""Every contradiction between a file's keys and tensors is refused in one line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.arch.files import C, D, F, L, Model, V, refused
from tests.gguf_io import build as b

F32_NAN, F32_INF = float("nan"), float("inf")


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
    ("M01d", edit("count", "general.architecture", 1), "must be a string, but is UINT32 1"),
    ("M01e", edit("string", "general.type", "adapter"), "a LoRA adapter, not a model"),
    ("M01f", edit("string", "training.type", "finetune_lora"), "a training checkpoint, not a mod"),
    ("M01g", edit("flag", "llama.attention.causal", False), "only causal models are supported"),
    ("M01h", edit("count", "llama.expert_count", 8), "'llama.expert_used_count': is missing"),
    ("M01i", edit("tensor", "blk.0.ffn_gate_exps.weight", (C, F, 8)), "is unknown for architec"),
    ("M02a", drop("llama.block_count"), "key 'llama.block_count': is missing"),
    ("M02b", drop("llama.embedding_length"), "key 'llama.embedding_length': is missing"),
    ("M02c", drop("llama.feed_forward_length"), "key 'llama.feed_forward_length': is missing"),
    ("M02d", drop(HEADS), f"key '{HEADS}': is missing"),
    ("M02e", drop("llama.context_length"), "key 'llama.context_length': is missing"),
    ("M02f", drop(EPS), f"key '{EPS}': is missing"),
    ("M03a", edit("string", "llama.block_count", "2"), "'llama.block_count': must be a count"),
    ("M03b", edit("number", HEADS, 4.0), f"'{HEADS}': must be a count"),
    ("M03c", edit("count", EPS, 1), f"'{EPS}': must be a floating point number, but is UINT32 1"),
    ("M03d", edit("strings", KV, ["2"]), f"'{KV}': must be a count"),
    (
        "M03e",
        edit("counts", "llama.embedding_length", [C]),
        "'llama.embedding_length': must be a c",
    ),
    ("M03f", edit("flag", "llama.block_count", True), "must be a count"),
    ("M03g", edit("string", "tokenizer.ggml.tokens", "x"), "tokens': must be an array of strings"),
    (
        "M04a",
        edit("count", "llama.block_count", 0),
        "'llama.block_count': 0, but must be from 1 to 512",
    ),
    ("M04b", edit("count", "llama.block_count", 1 << 31), "2147483648, but must be from 1 to 512"),
    ("M04c", edit("count", "llama.block_count", L + 1), "'blk.2.attn_norm.weight': is missing"),
    ("M04d", edit("count", "llama.block_count", L - 1), "'blk.1.attn_norm.weight': is unknown"),
    ("M05a", edit("count", HEADS, 0), f"'{HEADS}': 0, but must be from 1 to "),
    ("M05b", edit("count", "llama.embedding_length", 0), "length': 0, but must be from 1 to "),
    ("M05c", edit("count", "llama.feed_forward_length", 0), "length': 0, but must be from 1 to "),
    (
        "M05d",
        edit("count", "llama.attention.key_length", 0),
        "key_length': 0, but must be from 1 to ",
    ),
    ("M06", edit("count", HEADS, 6), "6 does not divide embedding_length 32"),
    ("M07a", edit("count", KV, 3), f"'{KV}': 3 does not divide head_count 4"),
    ("M07b", edit("count", KV, 0), f"'{KV}': 0, but must be from 1 to "),
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
    ("M10h", edit("tensor", "blk.0.attn_q_norm.weight", (D,)), "is unknown for architecture lla"),
    ("M10i", edit("tensor", "blk.2.attn_norm.weight", (C,)), "is unknown for architecture llama"),
    ("M10j", edit("tensor", "blk.0.attn_q.bias", (C + 1,)), "shape (33,), expected (32,)"),
    ("M10k", edit("tensor", "rope_freqs.weight", (D,)), "shape (8,), expected (4,)"),
    ("M10l", edit("tensor", "rope_freqs.weight", (4,), 1), "'rope_freqs.weight': must be F32"),
    (
        "M10n",
        edit("tensor", "blk.0.attn_q.scale", (1,)),
        "(as in some NVFP4 files), which is not",
    ),
    ("M10m", factors(1, 2, 0, 4), "'rope_freqs.weight': must be positive and finite"),
    ("M10n", factors(1, 2, F32_NAN, 4), "'rope_freqs.weight': must be positive and finite"),
    ("M12a", edit("count", ROT, 7), f"'{ROT}': 7, but must be an even number from 2"),
    ("M12b", edit("count", ROT, 10), "but must be an even number from 2 to the head size (8)"),
    ("M12c", edit("count", ROT, 0), "0, but must be an even number"),
    ("M12d", edit("count", ROT, 4), f"'{ROT}': 4, but must be the head size 8 for llama"),
    *[
        (f"M12-{v}", edit("number", BASE, v), f"'{BASE}': {v}, but must be positive and finite")
        for v in (0.0, -1.0, F32_NAN, F32_INF)
    ],
    *[
        (f"M12-s{v}", edit("number", f"{SCALING}.factor", v), "must be positive and finite")
        for v in (-1.0, F32_NAN, F32_INF)
    ],
    ("M12-s1", edit("number", f"{SCALING}.factor", 1e-45), "is out of range"),
    ("M12-s2", edit("number", f"{SCALING}.attn_factor", 0.0), "must be positive and finite"),
    ("M12-s3", edit("string", f"{SCALING}.type", "longrope"), "'longrope' is not supported; sup"),
    ("M12-s4", edit("string", f"{SCALING}.type", "ntk"), "supported: none, linear and yarn"),
    *[
        (f"M13-{v}", edit("number", EPS, v), f"'{EPS}': {v}, but must be positive and finite")
        for v in (0.0, -1.0, F32_NAN, F32_INF)
    ],
    (
        "M14",
        edit("strings", "tokenizer.ggml.tokens", ["x"] * 39),
        "39 tokens, but token_embd has 4",
    ),
    *[
        (
            f"M16-{n}",
            edit("count", f"tokenizer.ggml.{n}_token_id", V),
            f"{n}_token_id': 40, but the vocabulary has 40",
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
    assert "original_context_length': 0, but YaRN requires a positive value" in refused(model, path)


def test_yarn_out_of_range(model: Model, path: Path) -> None:
    model.string(f"{SCALING}.type", "yarn")
    model.number(f"{SCALING}.factor", 1e-6)  # 1 + 0.1 ln f is below zero
    assert "is out of range for YaRN" in refused(model, path)
