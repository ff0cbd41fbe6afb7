"""Losses of preferences through a whole model: gradients, bits, and the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.data.judged import Judged
from nbllama.data.preferences import Preferences
from nbllama.data.samples import Samples
from nbllama.model.passes import Model
from nbllama.model.reference import ReferenceModel, parameters64
from nbllama.ops.cross_entropy import cross_entropy_ref
from nbllama.train.preference.loss import Answers, Numbers, PreferenceLoss, loss_of
from nbllama.train.preference.reference import Reference, read, write
from nbllama.train.trainer import Trainer
from tests.objectives.cases import NUMBERS
from tests.train.toy_runs import same_bits, state_of, toy_adapter, toy_model, trainer

STEP = 1e-5


def preferences(model: Model, n: int = 3, width: int = 2) -> Preferences:
    """`n` samples of random tokens, of which the last ones of each answer are trained."""
    rng = np.random.default_rng(8)
    sizes = rng.integers(6, 14, n * width)
    trained = [np.arange(size) >= size - rng.integers(1, 5) for size in sizes]
    good = np.arange(n * width) % 2 == 0
    samples = Samples(
        rng.integers(0, model.hp.n_vocab, int(sizes.sum())).astype(np.int32),
        np.concatenate(trained),
        np.cumsum([0, *sizes], dtype=np.int64),
        np.repeat(np.arange(n), width),
        16,
        "00" * 32,
        format="preference" if width == 2 else "labelled",
        judged=Judged(good, np.repeat(rng.uniform(0.5, 2, n), width)),
    )
    return Preferences(samples, width)


def made(model: Model, numbers: Numbers, **options: Any) -> tuple[Trainer, Preferences]:
    data = preferences(model, width=1 if numbers.objective == "kto" else 2)
    refers = numbers.objective in ("dpo", "ipo", "kto")
    reference = Reference(None, "base", [data], numbers.objective == "kto", None)
    objective = PreferenceLoss(numbers, [data], reference if refers else None)
    t = trainer(model, toy_adapter(model), data, objective=objective, **options)
    objective.start(t, None, lambda line: None)
    return t, data


def sums(model: ReferenceModel, batch: Any, params: Any, scale: float) -> np.ndarray:
    """log pi of each sequence, by the plain-numpy model in float64."""
    z = model.logits(batch, params, scale)
    rows = batch.targets >= 0
    of_tokens = np.zeros(len(rows))
    of_tokens[rows] = -cross_entropy_ref(z[rows], batch.targets[rows])
    return np.add.reduceat(of_tokens, batch.seq_offsets[:-1])


@pytest.mark.parametrize("name", ["dpo, with sft", "ipo", "orpo", "simpo, smoothed", "kto"])
def test_gradients_against_finite_differences(tmp_path: Path, name: str) -> None:
    model, numbers = toy_model(tmp_path, n_head=4, n_head_kv=2), NUMBERS[name]
    t, data = made(model, numbers, batch=3)
    found = t.evaluate()
    plain, params = ReferenceModel(model), parameters64(t.adapter)
    batch = t.feed.take(t.position, 3, 1).batches[0]
    z = 0.0
    if numbers.objective == "kto":
        other = data.others.batch(batch.rows.tolist())  # type: ignore[attr-defined]
        bare = {k: np.zeros_like(p) for k, p in params.items()}
        moved = sums(plain, other, params, t.adapter.scale) - sums(plain, other, bare, 1.0)
        z = max(0.0, float(moved.mean()))

    def loss(values: dict[str, np.ndarray]) -> float:
        rows = batch.rows  # type: ignore[attr-defined]
        policy = sums(plain, batch, values, t.adapter.scale)
        reference = np.zeros(len(rows))
        if data.reference is not None:
            reference = data.reference[rows]
        n = np.add.reduceat(batch.targets >= 0, batch.seq_offsets[:-1], dtype=np.int64)
        answers = Answers(policy, reference, n, data.judged.good[rows], data.judged.weight[rows])
        return float(loss_of(numbers, answers, z).loss.sum()) / data.n_samples

    assert found.loss == pytest.approx(loss(params), rel=2e-5)
    rng = np.random.default_rng(3)
    for key, g in t.gradients.items():
        assert np.abs(g).max() > 0, key
        direction = rng.standard_normal(g.shape)
        direction /= np.linalg.norm(direction)
        ends = [loss({**params, key: params[key] + h * direction}) for h in (STEP, -STEP)]
        numeric = (ends[0] - ends[1]) / (2 * STEP)
        assert float((g * direction).sum()) == pytest.approx(
            numeric, abs=2e-4 * float(np.linalg.norm(g)) + 1e-8
        ), key


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_the_batch_may_be_cut_into_micro_batches(tmp_path: Path, name: str) -> None:
    model = toy_model(tmp_path)
    whole, _ = made(model, NUMBERS[name], batch=3)
    parts, _ = made(model, NUMBERS[name], batch=1, grad_acc=3)
    assert whole.evaluate().loss == pytest.approx(parts.evaluate().loss, rel=1e-6)
    for key, g in whole.gradients.items():
        assert np.allclose(g, parts.gradients[key], rtol=1e-3, atol=1e-6), key
    ours, theirs = whole.objective.measures(), parts.objective.measures()
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_bits_do_not_depend_on_threads(tmp_path: Path) -> None:
    import numba

    model, found = toy_model(tmp_path), []
    before = numba.get_num_threads()
    for n in (1, 2):
        numba.set_num_threads(n)
        for name in ("dpo, with sft", "kto"):
            t, _ = made(model, NUMBERS[name], batch=2)
            t.step()
            t.step()
            found.append(state_of(t).arrays)
    numba.set_num_threads(before)
    assert same_bits(found[0], found[2]) and same_bits(found[1], found[3])


def test_where_policy_and_reference_are_the_same_the_loss_is_that_of_a_coin(
    tmp_path: Path,
) -> None:
    model = toy_model(tmp_path)
    t, _ = made(model, NUMBERS["dpo"], batch=3)
    for pair in t.adapter.pairs.values():
        pair.b[...] = 0
    t.bound.refresh()
    data = t.dataset
    assert isinstance(data, Preferences)
    loss = t.evaluate().loss
    mean = float(data.judged.weight[::2].mean())
    assert loss == pytest.approx(np.log(2) * mean, rel=1e-6)
    assert abs(t.objective.measures()["margin"]) < 1e-5


def test_a_run_learns_its_pairs(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    for name in ("dpo", "ipo", "orpo", "simpo", "kto"):
        t, _ = made(model, NUMBERS[name], batch=3, alpha=2e-2)
        first = t.evaluate().loss
        for _ in range(25):
            t.step()
        assert t.evaluate().loss < first
        assert t.objective.measures()["accuracy"] == 1.0, name


def test_a_file_of_the_reference(tmp_path: Path) -> None:
    path, key, values = str(tmp_path / "reference-1.logp"), "ab" * 32, np.array([-1.5, -2.25])
    lines: list[str] = []
    assert read(path, key, 2, lines.append) is None and not lines
    write(path, key, values)
    found = read(path, key, 2, lines.append)
    assert found is not None and np.array_equal(found, values)
    assert read(path, "cd" * 32, 2, lines.append) is None
    assert read(path, key, 3, lines.append) is None
    raw = bytearray(Path(path).read_bytes())
    raw[-1] ^= 1
    Path(path).write_bytes(raw)
    assert read(path, key, 2, lines.append) is None and len(lines) == 3


def test_a_shared_prompt_gives_the_reference_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(tmp_path)
    forward, rows = Model.forward, 0

    def counted(self: Model, bound: Any, acts: Any, batch: Any, check: Any = None) -> None:
        nonlocal rows
        rows += batch.n_tokens
        forward(self, bound, acts, batch, check)

    monkeypatch.setattr(Model, "forward", counted)
    found, computed = [], []
    for shares in (False, True):
        data = preferences(model, n=4)
        begins = data.samples.offsets
        for i in range(0, 8, 2):  # the sides of a pair begin with the same tokens
            a, b = int(begins[i]), int(begins[i + 1])
            data.samples.ids[b : b + 5] = data.samples.ids[a : a + 5]
        reference = Reference(None, "base", [data], False, None)
        objective = PreferenceLoss(NUMBERS["dpo"], [data], reference)
        t = trainer(
            model, toy_adapter(model), data, batch=2, objective=objective, share_prompts=shares
        )
        rows = 0
        objective.start(t, None, lambda line: None)
        assert data.reference is not None
        found.append(data.reference)
        computed.append(rows)
    assert np.array_equal(found[0], found[1])
    assert computed[0] - computed[1] >= 4 * 5
