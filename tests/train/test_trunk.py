"""Frozen blocks computed once: the same bits, damaged and full files, what is left behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_archs import random_adapter
from nbllama.data.batch import Batch
from nbllama.data.shared import share
from nbllama.errors import OutputError
from nbllama.lora.pairs import Adapter
from nbllama.model import passes
from nbllama.model.block import block_forward
from nbllama.model.bound import Bound
from nbllama.model.passes import Model
from nbllama.train.trainer import Trainer
from nbllama.train.trunk import TrunkCache, trunk_bytes
from tests.arch.kinds import kinds
from tests.data.test_shared import samples
from tests.train.runs import Run, listing
from tests.train.toy_runs import (
    log_rows,
    same_bits,
    state_of,
    toy_adapter,
    toy_model,
    trainer,
    words,
)

KEY = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"), n_layer=3)


def upper(adapter: Adapter, first: int) -> Adapter:
    """The adapter without its pairs below block `first`."""
    for name in list(adapter.pairs):
        parts = name.split(".")
        if parts[0] != "blk" or int(parts[1]) < first:
            del adapter.pairs[name]
    return adapter


def make(model: Model, cache: TrunkCache | None, **options: object) -> Trainer:
    """A trainer of the last block, on seven samples that share a beginning, two per batch."""
    rng = np.random.default_rng(4)
    prompt = rng.integers(0, 90, 6).tolist()
    rows = [prompt + rng.integers(0, 90, 2 + i % 5).tolist() for i in range(7)]
    data = samples(rows, 64)
    standard = {"share_prompts": True, "validation": data}
    made = trainer(model, upper(toy_adapter(model), 2), data, **(standard | options))
    made.trunk = cache
    return made


def open_cache(path: Path, model: Model, said: list[str], layer: int = 2) -> TrunkCache:
    return TrunkCache(str(path), KEY, layer=layer, width=model.hp.n_embd, say=said.append)


def run_to_the_end(t: Trainer, epochs: int = 3) -> list[float]:
    losses = []
    while t.position.epoch < epochs:
        losses += [t.step().loss, t.validation_loss()]
    return losses


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shares", [False, True])
def test_the_same_bits_as_without(
    model: Model, tmp_path: Path, shares: bool, checkpointing: bool
) -> None:
    options = {"share_prompts": shares, "checkpointing": checkpointing}
    said: list[str] = []
    plain = make(model, None, **options)
    expected = run_to_the_end(plain)
    with open_cache(tmp_path / "trunk", model, said) as cache:
        stored = make(model, cache, **options)
        assert run_to_the_end(stored) == expected
        # of three epochs with 4 batches each the first is computed; validation comes after it
        assert cache.n_samples == 7 and cache.hits >= 8
    assert same_bits(state_of(plain).arrays, state_of(stored).arrays)
    assert said == []


def test_skipped_blocks_are_not_computed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[int] = []

    def spy(model: Model, layer: int, *args: Any, **more: Any) -> None:
        layers.append(layer)
        block_forward(model, layer, *args, **more)

    monkeypatch.setattr(passes, "block_forward", spy)
    with open_cache(tmp_path / "trunk", model, []) as cache:
        t = make(model, cache)
        t.validation_loss()
        assert {0, 1, 2} == set(layers)
        layers.clear()
        t.step()
        assert set(layers) == {2}


@pytest.mark.parametrize("name", kinds())
def test_every_architecture(name: str, tmp_path: Path) -> None:
    """Stored vectors have the bits of any other batch with the sample, shared or not."""
    from examples.toy_archs import MODELS

    MODELS[name].make(tmp_path / "toy.gguf")
    model = nbllama.load_model(tmp_path / "toy.gguf")
    top = min(model.hp.n_layer - 1, model.hp.most_frozen)
    adapter = upper(random_adapter(model, norms=True), top)
    rng, rows = np.random.default_rng(2), []
    beginning = rng.integers(0, model.hp.n_vocab, 12)
    for n in (9, 4, 30):
        tokens = np.concatenate([beginning, rng.integers(0, model.hp.n_vocab, n)]).astype(np.int32)
        rows.append((tokens, tokens))
    said: list[str] = []
    bound = Bound(model, adapter)
    acts = model.activations(adapter, 99, 99, checkpointing=True)

    def last(batch: Batch, cache: TrunkCache | None) -> np.ndarray:
        model.forward(bound, acts, batch, trunk=cache)
        return acts.x(model.hp.n_layer, batch.n_tokens).copy()

    with open_cache(tmp_path / "trunk", model, said, layer=top) as cache:
        for i in range(3):  # each alone
            last(Batch.from_rows([rows[i]]), cache)
        assert (cache.n_samples, cache.hits) == (3, 0)
        batch = Batch.from_rows([rows[2], rows[0], rows[1]])
        batches = [batch] if model.hp.mixers else [batch, share(batch)]
        for one in batches:
            assert last(one, cache).tobytes() == last(one, None).tobytes()
        assert cache.hits == len(batches)
    assert said == []


def test_another_process_finds_what_is_stored(model: Model, tmp_path: Path) -> None:
    said: list[str] = []
    with open_cache(tmp_path / "trunk", model, said) as cache:
        first = make(model, cache)
        run_to_the_end(first, 1)
    size = (tmp_path / "trunk").stat().st_size
    tokens = int(first.dataset.lengths()[0].sum())
    assert size == trunk_bytes(tokens, 7, model.hp.n_embd)
    with open_cache(tmp_path / "trunk", model, said) as cache:
        again = make(model, cache)
        assert run_to_the_end(again) == run_to_the_end(make(model, None))
        assert cache.hits == 12 + 12 * len(again._validation)  # nothing was computed
    assert said == [] and (tmp_path / "trunk").stat().st_size == size


def damaged(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("at", [-5, 100, 40], ids=["vectors", "a record's head", "the key"])
def test_damage_is_reported_and_computed_again(model: Model, tmp_path: Path, at: int) -> None:
    said: list[str] = []
    with open_cache(tmp_path / "trunk", model, said) as cache:
        run_to_the_end(make(model, cache), 1)
    damaged(tmp_path / "trunk", at)
    with open_cache(tmp_path / "trunk", model, said) as cache:
        assert run_to_the_end(make(model, cache)) == run_to_the_end(make(model, None))
        assert cache.n_samples in (7, 8)
    assert len(said) <= 1 and all("is damaged" in line for line in said)
    if at != 100:  # a head that fits no record ends the file, or names another sample
        assert len(said) == 1


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_file_that_a_crash_cut(model: Model, tmp_path: Path, cut: int) -> None:
    said: list[str] = []
    with open_cache(tmp_path / "trunk", model, said) as cache:
        run_to_the_end(make(model, cache), 1)
    path = tmp_path / "trunk"
    os.truncate(path, path.stat().st_size - cut)
    with open_cache(path, model, said) as cache:
        assert cache.n_samples < 7
        assert run_to_the_end(make(model, cache)) == run_to_the_end(make(model, None))
        assert cache.n_samples == 7
    assert said == []


def test_a_full_disk_turns_it_off(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with open_cache(tmp_path / "trunk", model, said) as cache:
        write, left = cache._write, [3]

        def full(offset: int, data: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                write(offset, data[:50])
                raise OSError(errno.ENOSPC, "No space left on device")
            write(offset, data)

        monkeypatch.setattr(cache, "_write", full)
        assert run_to_the_end(make(model, cache)) == run_to_the_end(make(model, None))
        assert cache.n_samples == 3
    assert len(said) == 1 and "No space left on device; training continues" in said[0]
    with open_cache(tmp_path / "trunk", model, said) as cache:  # what was written is whole
        assert cache.n_samples == 3 and len(said) == 1


def test_files_that_are_not_its_own(model: Model, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("important\n" * 50, encoding="utf-8")
    with pytest.raises(OutputError, match="nbllama did not write this file"):
        open_cache(tmp_path / "text", model, [])
    assert (tmp_path / "text").read_text(encoding="utf-8") == "important\n" * 50
    (tmp_path / "link").symlink_to(tmp_path / "text")
    with pytest.raises(OutputError, match="a symbolic link"):
        open_cache(tmp_path / "link", model, [])
    with open_cache(tmp_path / "trunk", model, []), pytest.raises(OutputError, match="another run"):
        open_cache(tmp_path / "trunk", model, [])


# The program


def chats(folder: Path) -> list[str]:
    rows = [
        {"prompt": "the hen" + " and her" * (i % 3), "completion": "eat " * (1 + i)}
        for i in range(5)
    ]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
    )
    return [
        "--train-data", str(folder / "rows.jsonl"), "--val-data", str(folder / "rows.jsonl"),
        "--eval-every", "3", "--adam-iter", "9", "--lora-layers", "last:1",
    ]  # fmt: skip


def test_the_program_uses_it_and_removes_it(folder: Path, run: Run) -> None:
    more = chats(folder)
    done = run(words(folder, *more, "--log", "log.jsonl", ctx=99))
    assert done.code == 0 and "the output of block 0 is computed once and stored" in done.out, done
    assert "s once the output of the frozen blocks is stored" in done.out
    assert not list(folder.glob("trunk-*"))
    adapter = (folder / "lora-9.gguf").read_bytes()
    off = run(words(folder, *more, "--trunk-cache", "0", "--log", "off.jsonl", ctx=99))
    assert off.code == 0 and "stored" not in off.out
    assert (folder / "lora-9.gguf").read_bytes() == adapter
    losses = [[r["loss"] for r in log_rows(folder / f)] for f in ("log.jsonl", "off.jsonl")]
    assert losses[0] == losses[1]


def test_an_interrupted_run_leaves_it_to_the_next(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbllama.train.trainer import StopRequested

    more = chats(folder)
    assert run(words(folder, *more, "--save-every", "1", ctx=99)).code == 0
    adapter, real = (folder / "lora-9.gguf").read_bytes(), Trainer.step

    def step(self: Trainer, *args: Any) -> object:
        if self.iteration == 4:
            raise StopRequested
        return real(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    run(words(folder, *more, ctx=99))
    (left,) = folder.glob("trunk-*.cache")
    monkeypatch.setattr(Trainer, "step", real)
    again = ["--checkpoint-in", str(folder / "chk-LATEST.gguf"), *more, "--adam-iter", "5"]
    done = run(words(folder, *again, ctx=99))
    assert (
        done.code == 0
        and f"{left}: found the stored output of the frozen blocks for 5 samples" in done.out
    )
    assert (folder / "lora-9.gguf").read_bytes() == adapter
    assert not left.exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--trunk-cache", "500"], "not used: the data need"),
        (
            ["--trunk-cache", "1G", "--lora-layers", "all"],
            "not used, because the first block is trained",
        ),
        (
            ["--trunk-cache", "1G", "--checkpoint-out", "", "--lora-out", ""],
            "not used, because the run writes neither",
        ),
    ],
)
def test_what_cannot_be_done_is_said(folder: Path, run: Run, options: list[str], line: str) -> None:
    done = run(words(folder, *chats(folder), *options, ctx=99))
    assert done.code == 0 and f"--trunk-cache is {line}" in done.out + done.err, done


def test_a_dry_run_and_a_file_in_the_way(folder: Path, run: Run) -> None:
    more = chats(folder)
    before = listing(folder)
    done = run(words(folder, *more, "--dry-run", ctx=99))
    assert done.code == 0 and "computed once and stored" in done.out
    assert listing(folder) == before
    name = next(w for w in done.out.split() if "trunk-" in w)
    Path(name).write_text("mine", encoding="utf-8")
    done = run(words(folder, *more, ctx=99))
    assert done.code == 0 and "the output of the frozen blocks cannot be stored" in done.out, done
    assert Path(name).read_text(encoding="utf-8") == "mine"
