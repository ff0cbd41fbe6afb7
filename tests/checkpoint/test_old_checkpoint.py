"""Checkpoints of the old tool: both layouts are read, and errors are reported."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.checkpoint.file import load_checkpoint
from nbllama.checkpoint.legacy_moments import ORDERS, parameter_order, place_moments
from nbllama.checkpoint.state import FlatMoments, TrainState
from nbllama.errors import CheckpointError
from nbllama.gguf_io import ValueType
from nbllama.lora.pairs import Adapter, init_adapter
from nbllama.lora.slots import SLOTS, base_names
from tests.checkpoint.old_states import F32, TEXT, U32, U64, old_keys, old_tensors, write
from tests.checkpoint.run_states import HP

N_LAYER, N_EMBD, N_FF, N_VOCAB = 2, 24, 40, 50
SIZES = {
    "embedding_length": N_EMBD, "feed_forward_length": N_FF, "attention.head_count": 4,
    "attention.head_count_kv": 4, "block_count": N_LAYER, "rope.dimension_count": 6,
}  # fmt: skip
RANKS = {slot.name: 1 if slot.kind == "norm" else 3 for slot in SLOTS} | {"wq": 2, "w2": 1}
Keys = dict[str, tuple[Any, ValueType]]
Arrays = dict[str, np.ndarray]


def shape(tensor: str) -> tuple[int, ...]:
    wide = {"token_embd": N_VOCAB, "output": N_VOCAB, "ffn_gate": N_FF, "ffn_up": N_FF}
    if tensor.endswith("norm"):
        return (N_EMBD,)
    return (N_EMBD, N_FF) if tensor == "ffn_down" else (wide.get(tensor, N_EMBD), N_EMBD)


SHAPES = {name: shape(slot.tensor) for slot, name in base_names(N_LAYER)}


def random_state(seed: int = 1) -> tuple[Adapter, Arrays, Arrays]:
    adapter = init_adapter(HP, RANKS, alpha=3.0, lora_r=3, seed=seed, shapes=SHAPES)
    rng = np.random.default_rng(seed)
    params = adapter.parameters()
    for x in params.values():
        x[...] = rng.standard_normal(x.shape)
    m = {n: rng.standard_normal(x.shape).astype(np.float32) for n, x in params.items()}
    v = {n: rng.random(x.shape).astype(np.float32) for n, x in params.items()}
    return adapter, m, v


def parts(order: str = "right", *, drop_ones: bool = True, version: int = 1) -> tuple[Keys, Arrays]:
    adapter, m, v = random_state()
    keys = old_keys(RANKS, adapter.n_parameters, SIZES, version=version)
    names = parameter_order(order, N_LAYER)
    return keys, old_tensors(adapter, m, v, names, drop_ones=drop_ones)


def flat(state: TrainState) -> FlatMoments:
    assert state.moments is not None
    return state.moments


@pytest.mark.parametrize("drop_ones", [True, False], ids=["July 2024", "November 2023"])
@pytest.mark.parametrize("order", ORDERS)
def test_both_layouts(tmp_path: Path, drop_ones: bool, order: str) -> None:
    path = write(tmp_path / "old.gguf", *parts(order, drop_ones=drop_ones))
    state = load_checkpoint(path)
    adapter, m, v = random_state()
    assert state.old
    assert (state.adapter.arch, state.adapter.lora_r, state.adapter.scale) == ("llama", 3, 1)
    got, wanted = state.adapter.parameters(), adapter.parameters()
    assert list(got) == list(wanted)
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])
    same = state.identity
    assert same.ranks == RANKS
    assert (same.base, same.data, same.settings) == ("", "", {"ctx": 16})
    assert same.model == SIZES | {
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)), "rope.freq_base": 10000.0,
        "rope.scale_linear": 1.0,
    }  # fmt: skip
    numbers = (state.iteration, state.sample_count, state.token_count, state.epoch)
    assert numbers == (3, 6, 96, 0)
    assert (state.n_samples, state.next_sample) == (9, 6)
    assert len(state.rng_state.split()) == 625
    assert (state.best_loss, state.previous_loss, state.no_improvement) == (5.5, 5.25, 2)
    assert state.past_losses == ()
    # A gradient that contains a little of the moments reveals the order.
    rng = np.random.default_rng(9)
    grads = {n: (x + 2 * rng.standard_normal(x.shape)).astype(np.float32) for n, x in m.items()}
    placed = place_moments(flat(state), state.adapter, grads, N_LAYER)
    assert placed.order == order
    assert 0.3 < placed.cosine < 0.6  # 1 / √5
    for found, wanted_moments in ((placed.m, m), (placed.v, v)):
        assert list(found) == list(wanted)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted_moments[name])
            assert found[name].flags.c_contiguous


def test_files_converted_from_still_older_ones(tmp_path: Path) -> None:
    """file_version 0: no epoch, no order of samples, counts of 32 bits."""
    state = load_checkpoint(write(tmp_path / "old.gguf", *parts(version=0)))
    assert (state.iteration, state.sample_count, state.token_count, state.epoch) == (3, 6, 96, 0)
    assert (state.rng_state, state.n_samples, state.next_sample) == ("", 0, 0)


def test_what_may_be_missing(tmp_path: Path) -> None:
    keys, tensors = parts()
    for key in (
        "training.type", "llama.context_length", "llama.attention.head_count_kv",
        "llama.rope.freq_base", "llama.rope.scale_linear", "training.shuffle.samples_hash",
        "llama.attention.layer_norm_rms_epsilon", "llama.rope.dimension_count",
    ):  # fmt: skip
        del keys[key]
    state = load_checkpoint(write(tmp_path / "old.gguf", keys, tensors))
    assert state.identity.settings == {}
    assert "rope.freq_base" not in state.identity.model


def test_past_losses(tmp_path: Path) -> None:
    keys, tensors = parts()
    keys["optimizer.convergence_past_count"] = (2, U32)
    tensors["optimizer.adam.past_loss_values"] = np.array([1.5, 2.5], np.float32)
    state = load_checkpoint(write(tmp_path / "old.gguf", keys, tensors))
    assert state.past_losses == (1.5, 2.5)


def put(key: str, value: Any, kind: ValueType) -> Callable[[Keys, Arrays], None]:
    def change(keys: Keys, tensors: Arrays) -> None:
        keys[key] = (value, kind)

    return change


def drop(name: str) -> Callable[[Keys, Arrays], None]:
    def change(keys: Keys, tensors: Arrays) -> None:
        keys.pop(name, None)
        tensors.pop(name, None)

    return change


def value(name: str, x: float) -> Callable[[Keys, Arrays], None]:
    def change(keys: Keys, tensors: Arrays) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].ravel()[5] = x

    return change


def replace(name: str, x: np.ndarray) -> Callable[[Keys, Arrays], None]:
    def change(keys: Keys, tensors: Arrays) -> None:
        tensors[name] = x

    return change


M, V = "optimizer.adam.first_moments", "optimizer.adam.second_moments"
BAD = {
    "count as text": (put("training.iteration_count", "3", TEXT), "training.iteration_count"),
    "count as float": (put("training.sample_count", 6.0, F32), "training.sample_count"),
    "rank as text": (put("training.lora.rank.attn_q", "2", TEXT), "training.lora.rank.attn_q"),
    "other rank": (put("training.lora.rank.attn_q", 3, U32), "rank 2, but key "),
    "rank missing": (drop("training.lora.rank.ffn_up"), "rank.ffn_up': is missing"),
    "size as float": (put("llama.block_count", 2.0, F32), "llama.block_count"),
    "eps as text": (put("llama.attention.layer_norm_rms_epsilon", "x", TEXT), "_rms_epsilon"),
    "fewer blocks": (put("llama.block_count", 1, U32), "missing or unexpected"),
    "more blocks": (put("llama.block_count", 3, U32), "is missing"),
    "no version": (drop("training.file_version"), "training.file_version': is missing"),
    "later version": (put("training.file_version", 2, U32), "supported: 0 and 1"),
    "no counter": (drop("training.epoch_count"), "training.epoch_count': is missing"),
    "not all F32": (put("general.file_type", 1, U32), "general.file_type"),
    "rng": (put("training.shuffle.rng_state", "1 2 3", TEXT), "has 625 numbers, not 3"),
    "rng as number": (put("training.shuffle.rng_state", 5, U32), "training.shuffle.rng_state"),
    "place": (put("training.shuffle.next_sample", 9, U64), "9, but there are 9 samples"),
    "L-BFGS": (put("optimizer.type", "lbfgs", TEXT), "only adam"),
    "optimiser version": (put("optimizer.file_version", 1, U32), "optimizer.file_version"),
    "initialised": (put("optimizer.just_initialized", 0, U32), "optimizer.just_initialized"),
    "loss as text": (put("optimizer.adam.best_loss", "x", TEXT), "optimizer.adam.best_loss"),
    "number of parameters": (put("optimizer.parameter_count", 5, U64), "but the tensors have"),
    "past": (put("optimizer.convergence_past_count", 2, U32), "past_loss_values': is missing"),
    "NaN moment": (value(M, np.nan), f"'{M}': contains a NaN or an infinity"),
    "infinite moment": (value(V, np.inf), f"'{V}': contains a NaN or an infinity"),
    "negative square": (value(V, -1.0), "contains a negative value"),
    "NaN in the adapter": (value("output.weight.lora_a", np.nan), "output.weight.lora_a"),
    "no moments": (drop(M), f"'{M}': is missing"),
    "short moments": (replace(V, np.ones(7, np.float32)), "shape (7,)"),
    "half a pair": (drop("blk.1.attn_k.weight.lora_b"), "two halves"),
    "moments of other width": (replace(M, np.ones(7, np.float64)), "must be F32"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_ones_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    change, words = BAD[name]
    keys, tensors = parts()
    change(keys, tensors)
    path = write(tmp_path / "old.gguf", keys, tensors)
    with pytest.raises(CheckpointError, match=re.escape(words)) as e:
        load_checkpoint(path)
    assert "\n" not in str(e.value)
    assert str(path) in str(e.value)
    assert e.value.exit_code == 5


def test_cut_short(tmp_path: Path) -> None:
    whole = write(tmp_path / "old.gguf", *parts()).read_bytes()
    for n in (0, 3, 30, 1000, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.gguf").write_bytes(whole[:n])
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "cut.gguf")


def test_our_own_file_without_its_digest_is_no_old_one(tmp_path: Path) -> None:
    keys, tensors = parts()
    keys["nbllama.seed"] = (7, U64)
    with pytest.raises(CheckpointError, match="nbllama"):
        load_checkpoint(write(tmp_path / "old.gguf", keys, tensors))
