"""`--lora-in`: what an adapter determines, and what the command line can still set."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.errors import CheckpointError, UsageError
from nbllama.lora.pairs import Adapter, Pair
from nbllama.lora.slots import EVERY_SLOT
from nbllama.options.finetune.table import Options, parse
from nbllama.train.run.lora_in import completed_by


def adapter(**ranks: int) -> Adapter:
    """Pairs by tensor name, with `_` for `.` after blk and after the number."""
    pairs = {}
    for name, rank in ranks.items():
        full = name.replace("blk0_", "blk.0.").replace("blk1_", "blk.1.") + ".weight"
        pairs[full] = Pair(np.ones((rank, 3), np.float32), np.ones((5, rank), np.float32))
    return Adapter("llama", 12, 8, pairs)


def options(*words: str) -> Options:
    return parse(["--model-base", "m", "--lora-in", "in.gguf", *words])


def test_ranks_and_alpha_are_the_adapter_s() -> None:
    made = completed_by(options(), adapter(blk0_attn_q=8, blk1_attn_q=8, output=2))
    ranks = {name: getattr(made, name) for name in vars(made) if name.startswith("rank_")}
    assert {name: rank for name, rank in ranks.items() if rank} == {"rank_wq": 8, "rank_out": 2}
    assert ranks.pop("rank_experts") is None  # only the default of other ranks
    assert ranks.keys() == {f"rank_{slot.name}" for slot in EVERY_SLOT}
    assert None not in ranks.values()
    assert (made.lora_r, made.lora_alpha) == (8, 12)
    # values that agree are allowed
    same = completed_by(options("--lora-r", "8", "--rank-wk", "0"), adapter(blk0_attn_q=8))
    assert (same.lora_r, same.rank_wk, same.rank_wq) == (8, 0, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora-r", "4"], "--lora-r 4: the adapter in.gguf has 8"),
        (["--lora-alpha", "8.5"], "--lora-alpha 8.5: the adapter in.gguf has 12"),
        (["--rank-wq", "4"], "--rank-wq 4: the adapter in.gguf has 8"),
        (["--rank-tok-embd", "4"], "--rank-tok-embd 4: the adapter in.gguf has 0"),
    ],
)
def test_other_ranks_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        completed_by(options(*words), adapter(blk0_attn_q=8))


def test_ranks_that_differ_from_block_to_block() -> None:
    with pytest.raises(CheckpointError, match="pairs for attn_q have ranks 8 and 4"):
        completed_by(options(), adapter(blk0_attn_q=8, blk1_attn_q=4))
