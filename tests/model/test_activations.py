"""Memory of a step: equal to the forecast, and no arrays overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from nbllama.arch import Hparams
from nbllama.lora.slots import LINEARS
from nbllama.model.activations import (
    Activations,
    ForwardActivations,
    Layout,
    activation_bytes,
    block_shapes,
    forward_bytes,
)
from nbllama.model.passes import layout
from tests.train.toy_runs import toy_adapter, toy_model

RANKS = dict.fromkeys(LINEARS, 0) | {"q": 3, "up": 17}


@pytest.fixture(scope="module")
def hp(tmp_path_factory: pytest.TempPathFactory) -> Hparams:
    options = dict(n_layer=3, n_embd=48, n_head=6, n_head_kv=2, n_ff=80)
    return toy_model(tmp_path_factory.mktemp("model"), **options).hp


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("n", "n_trained"), [(1, 1), (9, 4), (33, 33)])
@pytest.mark.parametrize("ranks", [dict.fromkeys(LINEARS, 0), RANKS], ids=["no pair", "pairs"])
def test_bytes_are_those_of_the_forecast(
    hp: Hparams, ranks: dict[str, int], n: int, n_trained: int, checkpointing: bool
) -> None:
    sizes = Layout(hp, ranks, n, n_trained)
    acts = Activations(sizes, checkpointing=checkpointing)
    assert acts.nbytes == activation_bytes(sizes, checkpointing=checkpointing)
    # and nbytes counts every array inside exactly once
    assert _bytes_inside(acts) == acts.nbytes
    if n == n_trained:
        only = ForwardActivations(sizes)
        assert only.nbytes == forward_bytes(sizes) == _bytes_inside(only) < acts.nbytes


def _bytes_inside(acts: Activations) -> int:
    found = {id(base): base.nbytes for a in _arrays(acts) if (base := _base(a)) is not None}
    return sum(found.values())


def test_what_is_only_read_has_no_gradients_and_two_places_for_the_stream(hp: Hparams) -> None:
    acts = ForwardActivations(Layout(hp, RANKS, 9))
    assert set(acts._shared) == {"norm", "act", "panels"}
    places = [acts.x(layer, 9).ctypes.data for layer in range(hp.n_layer + 1)]
    assert places == [places[0], places[1]] * 2 and places[0] != places[1]
    assert len({acts.block(layer, 9).q.ctypes.data for layer in range(hp.n_layer)}) == 1


def test_reading_alone_gives_the_bits_of_training(tmp_path: Path) -> None:
    model = toy_model(tmp_path, n_layer=3)
    adapter, tokens = toy_adapter(model), [1, 45, 7, 300, 12, 12, 99]
    seen = nbllama.trace(model, tokens, adapter)["logits"]  # in the arrays of a training
    np.testing.assert_array_equal(nbllama.logits(model, tokens, adapter), seen)


def _base(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _arrays(thing: object, depth: int = 0) -> list[np.ndarray]:
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list | tuple):
        return [a for item in thing for a in _arrays(item)]
    if isinstance(thing, Activations):
        return [a for item in vars(thing).values() for a in _arrays(item)]
    return []


def test_without_checkpointing_every_block_has_its_own_set(hp: Hparams) -> None:
    acts = Activations(Layout(hp, RANKS, 9, 9), checkpointing=False)
    places: set[int] = set()
    for layer in range(hp.n_layer):
        kept = acts.block(layer, 9)
        for name, shape in block_shapes(hp, 9).items():
            array = getattr(kept, name)
            assert array.shape == shape and array.dtype == np.float32
            places.add(array.ctypes.data)
        places |= {h.ctypes.data for h in kept.h_memory.values()}
        assert kept.h_memory.keys() == {"q", "up"}
    assert len(places) == hp.n_layer * (len(block_shapes(hp, 9)) + 2)


def test_with_checkpointing_blocks_share_a_set_but_not_their_inputs(hp: Hparams) -> None:
    acts = Activations(Layout(hp, RANKS, 9, 9), checkpointing=True)
    q = {acts.block(layer, 9).q.ctypes.data for layer in range(hp.n_layer)}
    x = {acts.x(layer, 9).ctypes.data for layer in range(hp.n_layer + 1)}
    assert len(q) == 1 and len(x) == hp.n_layer + 1


def test_fewer_tokens_use_the_start_of_the_same_memory(hp: Hparams) -> None:
    acts = Activations(Layout(hp, RANKS, 9, 5), checkpointing=False)
    for n in (1, 4, 9):
        for view, whole in (
            (acts.x(2, n), acts.x(2, 9)),
            (acts.block(1, n).att, acts.block(1, 9).att),
            (acts.shared("dact", n), acts.shared("dact", 9)),
            (acts.shared("top_rstd", min(n, 5)), acts.shared("top_rstd", 5)),
        ):
            assert len(view) in (n, min(n, 5)) and view.flags.c_contiguous
            assert view.ctypes.data == whole.ctypes.data
    assert acts.pool("panels").size > 9 * hp.n_embd  # a pool comes whole


def test_the_ranks_are_the_largest_over_the_blocks(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    adapter = toy_adapter(model, {"wq": 2, "w1": 5, "tok_embd": 9})
    assert layout(model, adapter, 1).ranks == dict.fromkeys(LINEARS, 0) | {"q": 2, "gate": 5}
    adapter.pairs["blk.1.attn_q.weight"] = toy_adapter(model, {"wq": 7}).pairs[
        "blk.0.attn_q.weight"
    ]
    assert layout(model, adapter, 1).ranks["q"] == 7
    assert layout(model, None, 1).ranks == dict.fromkeys(LINEARS, 0)
