"""Orders of the tensors inside the moment vectors of the old tool."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.checkpoint.file import load_checkpoint
from nbllama.checkpoint.legacy_moments import ORDERS, agreement, parameter_order, place_moments
from nbllama.checkpoint.state import FlatMoments, split
from nbllama.errors import CheckpointError
from nbllama.lora.slots import base_names
from tests.checkpoint.test_old_checkpoint import N_LAYER, random_state
from tests.conftest import GOLDEN


def short(order: str, n_layer: int) -> str:
    """Every second name, without the common part of all names."""
    names = parameter_order(order, n_layer)
    halves = [name.rpartition(".")[2][-1] for name in names]
    assert halves == (["a", "b"] if order.startswith("left") else ["b", "a"]) * (len(names) // 2)
    bare = [name.rpartition(".weight.")[0].removeprefix("blk.") for name in names]
    assert bare[::2] == bare[1::2]
    return " ".join(bare[::2])


def test_the_orders_of_two_blocks() -> None:
    assert short("left", 2) == (
        "output output_norm "
        "1.ffn_down 1.ffn_gate 1.ffn_norm 1.attn_output 1.attn_norm "
        "0.ffn_down 0.ffn_gate 0.ffn_norm 0.attn_output 0.attn_norm "
        "token_embd 0.attn_v 0.attn_k 0.attn_q 0.ffn_up 1.attn_v 1.attn_k 1.attn_q 1.ffn_up"
    )
    assert short("left-flash", 2) == (
        "output output_norm "
        "1.ffn_down 1.ffn_gate 1.ffn_norm 1.attn_output 1.attn_q 1.attn_norm "
        "0.ffn_down 0.ffn_gate 0.ffn_norm 0.attn_output 0.attn_q 0.attn_norm "
        "token_embd 0.attn_k 0.attn_v 0.ffn_up 1.attn_k 1.attn_v 1.ffn_up"
    )
    assert short("right", 1) == (
        "token_embd 0.attn_norm 0.attn_q 0.attn_k 0.attn_v 0.attn_output 0.ffn_norm "
        "0.ffn_up 0.ffn_gate 0.ffn_down output_norm output"
    )
    assert short("right-flash", 1) == (
        "token_embd 0.attn_v 0.attn_norm 0.attn_k 0.attn_q 0.attn_output 0.ffn_norm "
        "0.ffn_up 0.ffn_gate 0.ffn_down output_norm output"
    )


@pytest.mark.parametrize("order", ORDERS)
def test_every_parameter_once(order: str) -> None:
    wanted = {f"{n}.lora_{h}" for _, n in base_names(5) for h in "ab"}
    names = parameter_order(order, 5)
    assert len(names) == len(wanted)
    assert set(names) == wanted


def test_agreement() -> None:
    x = {"a": np.array([3.0, 0.0]), "b": np.array([1.0, 1.0]), "c": np.zeros(2)}
    x["d"], one = np.array([2.0]), {"d": np.array([-1.0])}
    y = {"a": np.array([1.0, 0.0]), "b": np.array([1.0, -1.0]), "c": np.ones(2)} | one
    assert agreement(x, y, x) == pytest.approx(0.5)  # c and d give no evidence
    assert agreement(x, y, ["b"]) == pytest.approx(0)
    assert agreement(x, y, ["c"]) == 0


def test_what_cannot_be_told_is_refused_and_can_be_given() -> None:
    adapter, m, _ = random_state()
    n = adapter.n_parameters
    rng = np.random.default_rng(2)
    vectors = rng.random((2, n)).astype(np.float32)
    moments = FlatMoments(vectors[0], vectors[1])
    grads = {k: rng.standard_normal(x.shape).astype(np.float32) for k, x in m.items()}
    with pytest.raises(CheckpointError, match="--checkpoint-order left or right"):
        place_moments(moments, adapter, grads, N_LAYER)
    for direction in ("left", "right"):
        placed = place_moments(moments, adapter, grads, N_LAYER, direction=direction)
        assert placed.order.startswith(direction)
        names = parameter_order(placed.order, N_LAYER)
        wanted = split(moments.first, names, adapter)
        assert all(np.array_equal(placed.m[k], wanted[k]) for k in wanted)
    grads = {k: np.full_like(x, np.nan) for k, x in grads.items()}
    with pytest.raises(CheckpointError, match="cannot be determined from"):
        place_moments(moments, adapter, grads, N_LAYER)


def test_moments_of_no_update_lie_right_in_any_order() -> None:
    adapter, m, _ = random_state()
    zero = np.zeros(adapter.n_parameters, np.float32)
    placed = place_moments(FlatMoments(zero, zero), adapter, m, N_LAYER)
    assert not any(x.any() for x in placed.m.values())


def test_real_moments_fit_the_movement() -> None:
    """-m / √v of the later checkpoint points where the parameters went since the earlier one:
    found 0.88 and 0.90 in the median over the tensors, none below 0.77, and 0 in a wrong order.
    """
    for before, after, right in (
        ("a-chk-10", "a-chk-20", "left"),
        ("b-chk-6", "b-chk-12", "right"),
    ):
        first, last = (load_checkpoint(GOLDEN / f"{n}.gguf") for n in (before, after))
        assert last.moments is not None
        a, b = first.adapter.parameters(), last.adapter.parameters()
        moved = {name: b[name] - a[name] for name in b}
        found = {}
        for order in ORDERS:
            names = parameter_order(order, 3)
            m, v = (split(x, names, last.adapter) for x in last.moments)
            step = {name: -m[name] / (np.sqrt(v[name]) + 1e-12) for name in m}
            found[order] = [agreement(step, moved, [name]) for name in b if b[name].size > 1]
        assert min(found[right]) > 0.7
        assert np.median(found[right]) > 0.85
        for order in set(ORDERS) - {right}:
            assert np.median(found[order]) < (0.2 if right not in order else 0.9)
