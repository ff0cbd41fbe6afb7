"""A run's record of its validation; data held out; evaluations change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nbllama.data.cutters import Windows
from nbllama.data.held_out import apart, hold_out
from nbllama.data.raw_text import RawText, Rules
from nbllama.data.samples import Samples
from nbllama.errors import DataError
from nbllama.model.passes import Model
from nbllama.train.validation import Validation, batches, perplexity
from tests.train.toy_runs import random_rows, same_bits, state_of, toy_adapter, toy_model, trainer


def text(n: int, n_ctx: int, seed: int = 1) -> RawText:
    """Windows at every token, as without `--sample-start`."""
    tokens = np.random.default_rng(seed).integers(3, 300, n).astype(np.int32)
    count = max(1, n - n_ctx)
    windows = Windows(np.arange(count), np.full(count, min(n, n_ctx)))
    return RawText(tokens, windows, n_ctx, 1, 2, "ab" * 32, Rules())


def covered(data: object) -> set[int]:
    assert isinstance(data, RawText)
    return {
        at for b, s in zip(*data.windows, strict=True) for at in range(int(b), int(b + s))
    }  # fmt: skip


def test_no_token_of_a_held_out_stretch_is_trained_on() -> None:
    data, starts = text(1000, 16), set()
    for seed in range(5):
        train, val = hold_out(data, 0.1, seed)
        again = hold_out(data, 0.1, seed)
        assert (train.fingerprint, val.fingerprint) == tuple(d.fingerprint for d in again)
        held = covered(val)
        assert not held & covered(train)
        assert 84 <= len(held) <= 100 and len(held) == val.n_samples * 16
        starts.add(min(held))
        assert len({train.fingerprint, val.fingerprint, data.fingerprint}) == 3
    assert len(starts) == 5


def test_validation_of_a_text_counts_each_token_once() -> None:
    whole = apart(text(100, 16))
    assert isinstance(whole, RawText)
    assert whole.windows.begins.tolist() == [0, 16, 32, 48, 64, 80]
    rows = random_rows_of_lines([3, 4])
    assert apart(rows) is rows


def chats(rows: list[list[int]]) -> Samples:
    """Records of these token ids, all except the first two of each trained."""
    ids = np.concatenate(rows).astype(np.int32)
    offsets = np.cumsum([0] + [len(row) for row in rows])
    trained = np.concatenate([np.arange(len(row)) > 1 for row in rows])
    return Samples(ids, trained, offsets, np.arange(1, len(rows) + 1), 512, "cd" * 32)


def random_rows_of_lines(lengths: list[int]) -> Samples:
    rng = np.random.default_rng(5)
    return chats([rng.integers(1, 300, n + 1).tolist() for n in lengths])


def test_held_out_records_and_their_copies_are_on_one_side() -> None:
    rng = np.random.default_rng(2)
    kinds = [rng.integers(1, 300, 5 + i % 7).tolist() for i in range(40)]
    data = chats([kinds[i] for i in rng.integers(0, 40, 200)])
    train, val = hold_out(data, 0.2, 7)
    other = hold_out(data, 0.2, 8)[1]
    assert train.n_samples + val.n_samples == 200 and 40 <= val.n_samples < 60
    sides = [
        {d.batch([i]).tokens.tobytes() for i in range(d.n_samples)} for d in (train, val, other)
    ]
    assert not sides[0] & sides[1]
    assert sides[1] != sides[2]
    assert sum(d.lengths()[0].sum() for d in (train, val)) == data.lengths()[0].sum()
    assert sum(d.lengths()[1].sum() for d in (train, val)) == data.lengths()[1].sum()


def test_samples_of_one_record_are_on_one_side() -> None:
    """And so is every record that has a sample in common with one of them."""
    rng = np.random.default_rng(3)
    rows = [rng.integers(1, 300, 6).tolist() for _ in range(60)]
    rows[3] = rows[50]
    records = np.arange(60) // 3
    data = replace(chats(rows), records=records)
    for seed in range(4):
        train, val = hold_out(data, 0.2, seed)
        sides = [set(d.records.tolist()) for d in (train, val)]  # type: ignore[attr-defined]
        assert not sides[0] & sides[1] and sides[0] | sides[1] == set(range(20))
        assert 12 <= val.n_samples <= 18 and train.n_samples + val.n_samples == 60
        assert any({1, 16} <= side for side in sides)


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_a_split_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="--val-split"):
        hold_out(text(40, 16), share, 1)


def test_patience_and_the_best() -> None:
    watch = Validation()
    losses = [3.0, 2.0, 2.5, math.nan, 1.9, 1.9, 2.0]
    best = []
    for i, loss in enumerate(losses):
        watch.trained(1.0, 10)
        found = watch.improves(loss)
        best.append(found)
        watch.evaluated(10 * i, loss, found)
        watch = Validation.of(watch.numbers())  # as through a checkpoint
        assert bool(watch.ended(2)) == (i in (3, 6))
    assert best == [True, True, False, False, True, False, False]
    assert (watch.best, watch.best_at, watch.since) == (1.9, 40, 2)
    assert not watch.ended(0) and "2 evaluations" in watch.ended(2)


def test_overfitting_is_told_once_when_it_is_seen_twice() -> None:
    watch, told = Validation(), []
    runs = [(3.0, 3.0), (2.5, 2.8), (2.4, 2.9), (2.2, 3.0), (2.0, 3.1), (2.1, 3.2), (1.9, 3.3)]
    for i, (trained, val) in enumerate(runs):
        if i:
            watch.trained(trained, 7)
        told.append(watch.evaluated(i, val, watch.improves(val)))
    assert told == [False, False, False, True, False, False, False]


def test_a_loss_that_is_not_finite_is_no_training_loss() -> None:
    watch = Validation()
    watch.trained(math.nan, 5)
    assert math.isnan(watch.training_loss)
    watch.trained(2.0, 3)
    watch.trained(4.0, 1)
    assert watch.training_loss == 2.5


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0 and perplexity(1000.0) == math.inf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"))


def test_the_loss_is_that_over_all_trained_tokens(model: Model) -> None:
    import nbllama

    rows, val = random_rows(model, (5, 9)), random_rows(model, (4, 17, 8, 2, 30), seed=3)
    adapter = toy_adapter(model)
    ones = [nbllama.loss_and_gradients(model, adapter, *row)[0] for row in val.rows]
    wanted = np.dot(ones, [val.n_trained(i) for i in range(5)]) / sum(
        val.n_trained(i) for i in range(5)
    )
    t = trainer(model, adapter, rows, batch=1, validation=val)
    assert len(t._validation) > 1  # more than fits into the memory of a training batch
    assert t.validation_loss() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_evaluation_changes_no_bit_of_training(model: Model, dropout: float) -> None:
    rows, val = random_rows(model, (5, 17, 2, 9)), random_rows(model, (4, 30), seed=3)
    found = []
    for evaluates in (False, True):
        t = trainer(
            model, toy_adapter(model), rows, checkpointing=True, dropout=dropout,
            validation=val if evaluates else None,
        )  # fmt: skip
        losses = []
        for _ in range(4):
            if evaluates:
                first = t.validation_loss()
                assert first == t.validation_loss()
            losses.append(t.step().loss)
        found.append((losses, state_of(t)))
    assert found[0][0] == found[1][0]
    assert same_bits(found[0][1].arrays, found[1][1].arrays)
    assert found[0][1].counters == found[1][1].counters


def test_batches_stay_within_the_memory() -> None:
    rows = random_rows_of_lines([5, 9, 2, 2, 7, 30])
    numbers = batches(rows.lengths(), 12, 100)
    assert [i for part in numbers for i in part] == list(range(6))
    tokens, _ = rows.lengths()
    for part in numbers:
        assert len(part) == 1 or tokens[part].sum() <= 12


def test_program_paths(tmp_path: Path) -> None:
    """Names of the best adapter and of the options' file."""
    from nbllama.options.finetune.table import parse
    from nbllama.train.run.outputs import Outputs

    for pattern, best, config in [
        ("a/lora-ITERATION-f32.gguf", "a/lora-BEST-f32.gguf", "a/lora-LATEST-f32.config.yaml"),
        ("lora.gguf", "lora-BEST.gguf", "lora.config.yaml"),
        ("peft/", "peft-BEST/", "peft.config.yaml"),
    ]:
        outputs = Outputs(parse(["--model-base", "m", "--lora-out", pattern]))
        assert outputs.best_adapter.rstrip("/") == best.rstrip("/")
        assert outputs.config == config
