"""A small file of one architecture whose keys and tensors a test can change, and its reading."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nbllama.arch import Hparams, hparams_from_gguf
from nbllama.errors import GGUFError
from nbllama.gguf_io import open_gguf
from tests.gguf_io import build as b

V, C, L, H, G, D, F = 40, 32, 2, 4, 2, 8, 48


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
