"""Damaged adapters of every format: refused in one line or read, nothing else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.adapter.file import load_adapter, save_adapter
from nbllama.errors import CheckpointError, UsageError
from tests.adapter.adapters import model, trained

FILES = {
    "a.gguf": ("a.gguf",),
    "a.bin": ("a.bin",),
    "a/": ("a/adapter_model.safetensors", "a/adapter_config.json"),
}


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, inserted or removed, mostly in the header."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) if rng.random() < 0.2 else min(len(data), 600))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B))
            case 2:
                data[at : at + rng.choice((1, 4, 8))] = b""
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
            case 4:
                data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"))
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_damage(tmp_path: Path, name: str) -> None:
    make_llama(tmp_path / "toy.gguf", n_embd=32, n_head=2, n_head_kv=1, n_ff=32, n_layer=1)
    base = model(tmp_path / "toy.gguf")
    ranks = {"wq": 2, "wk": 1, "tok_embd": 2} | ({"ffn_norm": 1} if name != "a/" else {})
    adapter = trained(tmp_path / "toy.gguf", ranks, 4, 2)
    target = f"{tmp_path}/{name}"
    save_adapter(target, adapter, base[0])
    rng = random.Random(1)
    read = 0
    for file in FILES[name]:
        whole = (tmp_path / file).read_bytes()
        for _ in range(400):
            (tmp_path / file).write_bytes(damaged(whole, rng))
            try:
                got = load_adapter(target, *base)
            except (CheckpointError, UsageError) as e:
                assert str(e).isprintable() and len(str(e)) < 1500
                continue
            read += 1
            assert got.misfit(base[1]) is None and 0 < got.scale < np.inf
            assert all(np.isfinite(x).all() for x in got.parameters().values())
        (tmp_path / file).write_bytes(whole)
    assert 0 < read < 200 * len(FILES[name])  # some damage is harmless
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
