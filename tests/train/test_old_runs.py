"""Runs of the real old tool, continued from its checkpoints: the same losses, the same adapter.

Tolerances. The old tool multiplies in float32 with the decoded weights, as we do, in another order
of sums. Losses: 1e-5, where half a unit of the last printed digit is 1e-7 and the rest is
rounding (found: 8e-7). Tensors: the difference is at most 1e-3 of the change of the tensor
(found: 7e-6); 2e-2 would still be the same run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nbllama.checkpoint.file import load_checkpoint
from nbllama.finetune import main
from tests.conftest import GOLDEN
from tests.train.old_runs import counters, movement, printed_losses, tensors, words
from tests.train.toy_runs import log_rows

LOSSES, TENSORS = 1e-5, 1e-3


@pytest.mark.parametrize(
    ("run", "first", "last"), [("a", 10, 20), ("b", 6, 12)], ids=["run a", "run b"]
)
def test_golden(tmp_path: Path, threads: int, run: str, first: int, last: int) -> None:
    """Run b goes through the end of an epoch, with a new order and offsets after it."""
    start = f"{run}-chk-{first}.gguf"
    n = str(last - first)
    end = ["--adam-iter", n, "--save-every", n, "--threads", str(threads), "--compat"]
    assert main(words(run, tmp_path, start, *end)) == 0
    losses = {row["iter"]: row["loss"] for row in log_rows(tmp_path / "log.jsonl")}
    printed = printed_losses(GOLDEN / f"{run}.log")
    wanted = {i: loss for i, loss in printed.items() if i > first}
    assert losses.keys() == wanted.keys() == set(range(first + 1, last + 1))
    for i, loss in wanted.items():
        assert losses[i] == pytest.approx(loss, rel=LOSSES), i
    mine, theirs = tmp_path / f"chk-{last}.gguf", GOLDEN / f"{run}-chk-{last}.gguf"
    ratios = movement(mine, GOLDEN / start, theirs)
    assert len(ratios) == 2 * (3 + 3 * 9)
    assert max(ratios.values()) < TENSORS, max(ratios, key=lambda name: ratios[name])
    assert counters(theirs).items() <= counters(mine).items()
    assert "training.shuffle.next_sample" in counters(theirs)


def test_the_end_of_a_run_without_a_save_in_it(tmp_path: Path) -> None:
    """The old tool evaluates once more after the last update: one batch of samples is
    skipped.
    """
    more = "--adam-iter 10 --save-every 0 --threads 1 --compat".split()
    assert main(words("a", tmp_path, "a-chk-10.gguf", *more)) == 0
    losses = {row["iter"]: row["loss"] for row in log_rows(tmp_path / "log.jsonl")}
    assert losses == pytest.approx(printed_losses(GOLDEN / "a-resumed.log"), rel=LOSSES)
    mine, theirs = tmp_path / "chk-20.gguf", GOLDEN / "a-resumed-chk-20.gguf"
    assert max(movement(mine, GOLDEN / "a-chk-10.gguf", theirs).values()) < TENSORS
    assert counters(theirs).items() <= counters(mine).items()
    assert counters(mine)["training.sample_count"] == 84


def test_an_old_run_goes_on_in_our_way(tmp_path: Path) -> None:
    """Without --compat: the same samples and scale, no schedule lag, no extra evaluation; ranks
    and context come from the checkpoint; and what is saved is continued with the same bits.
    """
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    short = [
        "--model-base", str(GOLDEN / "tiny-q8_0.gguf"), "--train-data", str(GOLDEN / "hamlet.txt"),
        "--batch", "4", "--threads", "1", "--seed", "7", "--warmup", "10", "--adam-alpha", "2e-3",
    ]  # fmt: skip

    def run(folder: str, checkpoint: Path, n: int) -> None:
        out = tmp_path / folder
        words = [
            *short, "--adam-iter", str(n), "--checkpoint-in", str(checkpoint), "--checkpoint-out",
            str(out / "chk-ITERATION.gguf"), "--lora-out", str(out / "lora-ITERATION.gguf"),
            "--log", str(out / "log.jsonl"),
        ]  # fmt: skip
        assert main(words) == 0

    run("whole", GOLDEN / "a-chk-10.gguf", 4)
    run("parts", GOLDEN / "a-chk-10.gguf", 2)
    run("parts", tmp_path / "parts" / "chk-LATEST.gguf", 2)
    rows = [log_rows(tmp_path / f / "log.jsonl") for f in ("whole", "parts")]
    losses = [[r["loss"] for r in log] for log in rows]
    assert losses[0] == losses[1]
    printed = printed_losses(GOLDEN / "a.log")
    assert rows[0][0]["loss"] == pytest.approx(printed[11], rel=LOSSES)
    a, b = (tensors(tmp_path / f / "chk-14.gguf") for f in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    state = load_checkpoint(tmp_path / "whole" / "chk-14.gguf")
    assert (state.iteration, state.next_sample, state.sample_count) == (14, 56, 56)
    assert state.identity.settings["ctx"] == 32
    linears = ("tok_embd", "out", "wq", "wk", "wv", "wo", "w1", "w2", "w3")
    norms = ("att_norm", "ffn_norm", "out_norm")
    absent = dict.fromkeys(state.identity.ranks, 0)  # slots that the model has no tensor for
    assert state.identity.ranks == absent | dict.fromkeys(linears, 4) | dict.fromkeys(norms, 1)
    assert state.adapter.scale == 1
    assert np.isfinite(state.previous_loss)


@pytest.mark.parametrize(("run", "iteration"), [("a", 10), ("a", 20), ("b", 12)])
def test_the_old_adapter_byte_for_byte(tmp_path: Path, run: str, iteration: int) -> None:
    model = {"a": "tiny-q8_0.gguf", "b": "tiny-q4_k.gguf"}[run]
    line = ["--model-base", str(GOLDEN / model), "--compat", "--only-write-lora"]
    line += ["--lora-r", {"a": "4", "b": "6"}[run]]
    line += ["--checkpoint-in", str(GOLDEN / f"{run}-chk-{iteration}.gguf")]
    assert main([*line, "--lora-out", str(tmp_path / "x-ITERATION.bin")]) == 0
    wanted = (GOLDEN / f"{run}-lora-{iteration}.bin").read_bytes()
    assert (tmp_path / f"x-{iteration}.bin").read_bytes() == wanted
    assert (tmp_path / "x-LATEST.bin").read_bytes() == wanted
