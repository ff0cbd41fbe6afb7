"""Checkpoints: the same bits back, in the old tool's layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from nbllama.checkpoint.file import load_checkpoint, save_checkpoint
from nbllama.errors import Diverged, OutputError
from nbllama.gguf_io import StringArray, ValueType, open_gguf
from nbllama.opt.adamw import AdamW
from tests.checkpoint.run_states import assert_same, forge, gradients, make_state, optimiser
from tests.conftest import GOLDEN


@pytest.mark.parametrize("ranks", [None, {"wq": 2, "w2": 7}, {"tok_embd": 1}])
def test_all_comes_back(tmp_path: Path, ranks: dict[str, int] | None) -> None:
    state = make_state(ranks)
    path = tmp_path / "c.gguf"
    save_checkpoint(path, state)
    assert_same(state, load_checkpoint(path))
    first = path.read_bytes()
    save_checkpoint(path, load_checkpoint(path))
    assert path.read_bytes() == first  # the same state is the same file
    assert os.listdir(tmp_path) == ["c.gguf"]


def test_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    straight = optimiser(steps=8)[1]
    save_checkpoint(tmp_path / "c.gguf", make_state())
    state = load_checkpoint(tmp_path / "c.gguf")
    opt = AdamW(state.adapter.parameters())
    opt.restore(state.m, state.v, state.iteration)
    for step in range(3, 8):
        opt.step(gradients(opt, step))
    for a, b in ((straight.params, opt.params), (straight.m, opt.m), (straight.v, opt.v)):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_layout_is_the_old_tool_s(tmp_path: Path) -> None:
    state = make_state()
    save_checkpoint(tmp_path / "c.gguf", state)
    reader = gguf.GGUFReader(tmp_path / "c.gguf")
    keys = {k: (f.contents(), f.types[-1].name) for k, f in reader.fields.items()}
    want = {
        "training.type": ("finetune_lora", "STRING"),
        "general.architecture": ("llama", "STRING"),
        "general.file_type": (0, "UINT32"),
        "llama.context_length": (64, "UINT32"),
        "llama.attention.head_count_kv": (2, "UINT32"),
        "llama.rope.freq_base": (10000.0, "FLOAT32"),
        "training.lora.rank.token_embd": (4, "UINT32"),
        "training.lora.rank.output_norm": (1, "UINT32"),
        "training.lora.rank.ffn_up": (4, "UINT32"),
        "training.file_version": (1, "UINT32"),
        "training.iteration_count": (3, "UINT64"),
        "training.sample_count": (12, "UINT64"),
        "training.token_count": (10**12, "UINT64"),
        "training.epoch_count": (2, "UINT64"),
        "training.shuffle.samples_hash": (0xD0D0D0D0D0D0D0D0, "UINT64"),
        "training.shuffle.sample_count": (7, "UINT64"),
        "training.shuffle.next_sample": (5, "UINT64"),
        "optimizer.file_version": (0, "UINT32"),
        "optimizer.convergence_past_count": (0, "UINT32"),
        "optimizer.parameter_count": (state.adapter.n_parameters, "UINT64"),
        "optimizer.iteration_count": (3, "UINT32"),
        "optimizer.just_initialized": (False, "BOOL"),
        "optimizer.type": ("adam", "STRING"),
        "optimizer.adam.best_loss": (2.5, "FLOAT32"),
        "optimizer.adam.previous_loss": (3.25, "FLOAT32"),
        "optimizer.adam.no_improvement_count": (1, "UINT32"),
    }
    assert {k: keys[k] for k in want} == want
    names = [t.name for t in reader.tensors]
    params = state.adapter.parameters()
    assert names == [*params, "optimizer.adam.first_moments", "optimizer.adam.second_moments"]
    stored = {t.name: t.data.reshape(tuple(t.shape)[::-1]) for t in reader.tensors}
    flat: dict[str, list[np.ndarray]] = {"first": [], "second": []}
    for name, x in params.items():
        old = x.T if name.endswith("_a") else x  # ne = [rank, n]
        np.testing.assert_array_equal(stored[name], old)
        for kind, moments in (("first", state.m), ("second", state.v)):
            flat[kind].append((moments[name].T if name.endswith("_a") else moments[name]).ravel())
    for kind, parts in flat.items():
        whole = stored[f"optimizer.adam.{kind}_moments"]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert keys["nbllama.moment_order"][0] == list(params)


def test_superset_of_a_real_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.gguf", make_state())
    with open_gguf(GOLDEN / "a-chk-10.gguf") as old, open_gguf(tmp_path / "c.gguf") as new:
        types = [{k: t for k, _, t in f.entries()} for f in (old, new)]
        del types[0]["training.shuffle.rng_state"]  # which only the old order has
        assert {k: types[1].get(k) for k in types[0]} == types[0]
        mine = list(new.tensors)
        n_layers = 2
        assert [n for n in old.tensors if not n.startswith(f"blk.{n_layers}.")] == mine
        ranks = [len(f.tensors["blk.0.attn_q.weight.lora_a"].shape) for f in (old, new)]
        assert ranks == [2, 2]
        assert old.tensors["blk.0.attn_q.weight.lora_a"].shape == (256, 4)
        assert new.tensors["blk.0.attn_q.weight.lora_a"].shape == (24, 4)


def test_what_only_some_runs_have(tmp_path: Path) -> None:
    state = make_state(rng_state="1 2 3", past_losses=(2.5, 0.0, 0.25), decay_begin=6, decay_last=9)
    save_checkpoint(tmp_path / "c.gguf", state)
    assert_same(load_checkpoint(tmp_path / "c.gguf"), state)
    with open_gguf(tmp_path / "c.gguf") as f:
        assert f.get("optimizer.convergence_past_count", "uint") == 3
        assert f.tensors["optimizer.adam.past_loss_values"].shape == (3,)


def test_moments_follow_the_order_that_the_file_states(tmp_path: Path) -> None:
    state = make_state({"wq": 2, "w2": 3})
    path = tmp_path / "c.gguf"
    save_checkpoint(path, state)

    def shuffle(entries: dict[str, Any], tensors: dict[str, Any]) -> None:
        order = list(entries["nbllama.moment_order"][0])
        sizes = [tensors[n].size for n in order]
        turned = order[3:] + order[:3]
        for name in ("optimizer.adam.first_moments", "optimizer.adam.second_moments"):
            parts = np.split(tensors[name], np.cumsum(sizes)[:-1])
            tensors[name] = np.concatenate(parts[3:] + parts[:3])
        entries["nbllama.moment_order"] = (StringArray.of(turned), ValueType.ARRAY)

    forge(path, shuffle)
    assert_same(state, load_checkpoint(path))


def test_nothing_is_saved_that_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "c.gguf"
    save_checkpoint(path, make_state())
    before = path.read_bytes()
    for pick in (lambda s: s.m, lambda s: s.v, lambda s: s.adapter.parameters()):
        state = make_state()
        pick(state)["blk.0.attn_q.weight.lora_b"][0, 0] = np.inf
        with pytest.raises(Diverged, match="not saved"):
            save_checkpoint(path, state)
    assert path.read_bytes() == before
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "no" / "folder.gguf", make_state())
