"""Fingerprints and the comparison of two runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.arch import hparams_from_gguf
from nbllama.checkpoint import environment as environment_module
from nbllama.checkpoint.environment import environment, environment_notes
from nbllama.checkpoint.identity import (
    MODEL_KEYS,
    Identity,
    check_fits,
    model_fingerprint,
    model_numbers,
)
from nbllama.errors import CheckpointError
from nbllama.gguf_io import ValueType, open_gguf, write_gguf

RUN = Identity(
    arch="llama",
    lora_r=4,
    lora_alpha=8.0,
    ranks={"wq": 4, "w2": 0},
    base="aa",
    data="bb",
    model={"embedding_length": 64, "rope.freq_base": 1.0},
    settings={"ctx": 64},
)


def changed(src: Path, dst: Path, keys: dict[str, Any] | None = None, tensor: int = -1) -> Path:
    """`src` with other values of some keys, or one byte of a tensor's data changed."""
    with open_gguf(src) as f:
        entries = [(k, (keys or {}).get(k, v), t) for k, v, t in f.entries()]
        extra = [(k, v, ValueType.STRING) for k, v in (keys or {}).items() if k not in f.metadata]
        tensors = []
        for t in f.tensors.values():
            x = f.data(t.name).view(np.float32).reshape(t.shape).copy()
            if t.name == "blk.1.ffn_down.weight" and tensor >= 0:
                x.reshape(-1).view(np.uint8)[tensor] ^= 1
            tensors.append((t.name, x))
        write_gguf(dst, entries + extra, tensors)
    return dst


def fingerprint(path: Path) -> str:
    with open_gguf(path) as f:
        return model_fingerprint(f)


def test_fingerprint_sees_weights_and_numbers_but_not_names(tmp_path: Path) -> None:
    toy, other = tmp_path / "toy.gguf", tmp_path / "other.gguf"
    make_llama(toy)
    first = fingerprint(toy)
    assert len(first) == 64 and fingerprint(changed(toy, other)) == first
    keys: dict[str, Any] | None
    for keys in (
        {"general.name": "renamed", "general.license": "MIT"},
        {"tokenizer.chat_template": "{{ x }}", "tokenizer.ggml.bos_token_id": 2},
    ):
        assert fingerprint(changed(toy, other, keys)) == first
    last = 64 * 96 * 4 - 1
    seen = {first}
    for keys, tensor in (
        ({"llama.rope.freq_base": 500000.0}, -1),
        ({"general.architecture": "qwen2"}, -1),
        (None, 0),
        (None, 4095),
        (None, last // 2),
        (None, last),
    ):
        seen.add(fingerprint(changed(toy, other, keys, tensor)))
    assert len(seen) == 7


def test_fingerprint_of_a_real_model_is_quick(demo_model: Path) -> None:
    import time

    with open_gguf(demo_model) as f:
        start = time.perf_counter()
        assert model_fingerprint(f) == model_fingerprint(f)
        assert time.perf_counter() - start < 1  # 272 tensors of three pages each


def test_model_numbers(tmp_path: Path) -> None:
    make_llama(tmp_path / "toy.gguf")
    with open_gguf(tmp_path / "toy.gguf") as f:
        numbers = model_numbers(hparams_from_gguf(f))
    assert numbers == {
        "vocab_size": 320, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "block_count": 2, "rope.dimension_count": 16,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)), "rope.freq_base": 10000.0,
        "rope.scale_linear": 1.0,
    }  # fmt: skip
    assert list(numbers) == list(MODEL_KEYS)


FORCIBLE = [
    ({"lora_r": 8}, "lora_r was 4, now 8"),
    ({"lora_alpha": 4.0}, "lora_alpha was 8.0, now 4.0"),
    ({"base": "cc"}, "the base model is different"),
    ({"data": "cc"}, "the training data are different"),
    ({"model": {"rope.freq_base": 2.0}}, "rope.freq_base was 1.0, now 2.0"),
    ({"settings": {"ctx": 128}}, "ctx was 64, now 128"),
    ({"settings": {"ctx": True}}, "ctx was 64, now True"),
]
FIRM = [
    ({"arch": "qwen2"}, "arch was llama, now qwen2"),
    ({"ranks": {"wq": 4, "w2": 4}}, "rank of w2 was 0, now 4"),
    ({"model": {"embedding_length": 32}}, "embedding_length was 64, now 32"),
]


@pytest.mark.parametrize(("change", "message"), FORCIBLE + FIRM)
def test_differences_are_named(change: dict[str, Any], message: str) -> None:
    wanted = dataclasses.replace(RUN, **change)
    with pytest.raises(
        CheckpointError, match=rf"^c\.gguf: from a different run: {message}; use"
    ) as e:
        check_fits("c.gguf", RUN, wanted)
    firm = (change, message) in FIRM
    assert "\n" not in str(e.value) and ("--force" in str(e.value)) != firm
    if firm:
        with pytest.raises(CheckpointError, match=message):
            check_fits("c.gguf", RUN, wanted, force=True)
    else:
        assert check_fits("c.gguf", RUN, wanted, force=True) == [message]


def test_what_is_equal_or_unknown_fits() -> None:
    check_fits("c.gguf", RUN, dataclasses.replace(RUN))
    for wanted in (
        dataclasses.replace(RUN, base="", data="", model={}, settings={}),
        dataclasses.replace(RUN, settings={"ctx": 64, "new_option": 1}),
    ):
        assert check_fits("c.gguf", RUN, wanted) == []
        assert check_fits("c.gguf", wanted, RUN) == []
    every = dataclasses.replace(RUN, lora_r=1, base="cc", settings={"ctx": 1})
    assert len(check_fits("c.gguf", RUN, every, force=True)) == 3


def test_many_differences_are_one_short_line() -> None:
    ranks = {"wq": 1, "wk": 2, "wv": 3, "wo": 4, "w1": 5}
    run = dataclasses.replace(RUN, ranks=dict.fromkeys(ranks, 9))
    wanted = dataclasses.replace(run, ranks=ranks, settings={"adam_alpha": "x" * 500})
    with pytest.raises(CheckpointError) as e:
        check_fits("c.gguf", run, wanted, names={"ctx": "context"})
    assert str(e.value) == (
        "c.gguf: from a different run: rank of wq was 9, now 1; rank of wk was 9, now 2; "
        "rank of wv was 9, now 3; 2 more differences; use the same model, data and options"
    )
    wanted = dataclasses.replace(RUN, settings={"ctx": "y" * 500})
    with pytest.raises(CheckpointError, match=r"run: context was 64, now y{39}…; use"):
        check_fits("c.gguf", RUN, wanted, names={"ctx": "context"})


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment()
    assert sorted(here) == ["cpu", "kernels", "numba", "numpy"] and all(here.values())
    assert here["numpy"] == np.__version__
    assert environment_notes(here) == environment_notes({}) == []
    (note,) = environment_notes(here | {"cpu": "znver9\x1b[31m", "unknown": "x"})
    assert note.startswith("cpu was znver9\\x1b[31m when") and here["cpu"] in note
    monkeypatch.setattr(environment_module, "environment", lambda: {"numpy": "1", "numba": "2"})
    assert len(environment_notes(here)) == 2
