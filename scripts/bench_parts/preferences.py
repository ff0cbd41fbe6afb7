"""Training on preferences: a DPO step compared with an SFT step, and with TRL's trainer.

The pairs are those of the example. All settings that the sides share are in `SETTINGS`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import nbllama
from bench_parts.hugging_face import write_weights
from nbllama.adapter.hf_names import hf_module
from nbllama.data.batch import Dataset
from nbllama.data.feed import Feed
from nbllama.data.order import Position
from nbllama.data.preferences import JudgedBatch
from nbllama.kernels.cores import physical_cores, use_threads
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model
from nbllama.opt.adamw import AdamW
from nbllama.opt.schedule import Schedule
from nbllama.options.finetune.table import parse
from nbllama.system.memory import peak_resident
from nbllama.train.probe import compile_kernels
from nbllama.train.run.given import Given
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.screen import Silent
from nbllama.train.run.session import RunSession
from nbllama.train.run.stop import StopFlag
from nbllama.train.trainer import Trainer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "preferences" / "pairs.jsonl"
SETTINGS: dict[str, Any] = {
    "rank": 16, "alpha": 32, "rate": 2e-4, "beta": 0.1, "batch": 4,
}  # fmt: skip


def session(model_path: str, checkpointing: bool, words: Sequence[str] = ()) -> RunSession:
    """Prepare a DPO run on the example's pairs that writes nothing."""
    s = SETTINGS
    options = parse([
        f"--model-base={model_path}", "--train-data=records", "--objective=dpo",
        f"--beta={s['beta']}", f"--batch={s['batch']}", "--adam-iter=1000",
        f"--lora-r={s['rank']}", f"--lora-alpha={s['alpha']}", f"--adam-alpha={s['rate']}",
        "--lr-schedule=constant", "--warmup=0", "--weight-decay=0", "--seed=1", "--val-split=0",
        "--answers=0", "--ctx=192", "--checkpoint-in=", "--checkpoint-out=", "--lora-out=",
        "--use-checkpointing" if checkpointing else "--no-checkpointing", *words,
    ])  # fmt: skip
    records = [json.loads(line) for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
    given = Given(nbllama.load_model(model_path), records)
    return RunSession(
        options, [], use_threads(None), outputs=Outputs(options), ui=Recorder(Silent()),
        stop=StopFlag("SIGINT"), given=given,
    )  # fmt: skip


class Work(NamedTuple):
    """The inputs of a trainer on the same tokens."""

    model: Model
    data: Dataset
    feed: Feed
    checkpointing: bool

    @classmethod
    def of(cls, run: RunSession) -> Work:
        """Return the inputs of a DPO run."""
        own = run.trainer
        return cls(run.model, own.dataset, own.feed, own.checkpointing)

    def supervised(self) -> Trainer:
        """Return a trainer that minimises the cross-entropy of all answers."""
        rank, alpha, rate, batch = (SETTINGS[k] for k in ("rank", "alpha", "rate", "batch"))
        adapter = nbllama.init_adapter(self.model, rank, alpha, seed=1)
        return Trainer(
            self.model, adapter, AdamW(adapter.parameters(), rate), self.data,
            rates=Schedule(warmup=1), feed=self.feed, batch=batch, grad_acc=1,
            checkpointing=self.checkpointing, share_prompts=True,
        )  # fmt: skip


def compare_steps(model_path: str, checkpointing: bool, steps: int) -> dict[str, Any]:
    """Return the time of a DPO step relative to an SFT step on the same tokens, run in turns."""
    run = session(model_path, checkpointing)
    trainers = {"sft": Work.of(run).supervised(), "dpo": run.trainer}
    for trainer in trainers.values():
        compile_kernels(trainer)
        trainer.objective.start(trainer, None, lambda line: None)
        trainer.step()
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    computed = 0
    for _ in range(steps):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            computed += trainer.step().computed
            seconds[name].append(time.perf_counter() - start)
    # on the same batch; other programs on the machine slow down single steps
    ratios = np.array(seconds["dpo"]) / np.array(seconds["sft"])
    return {
        "checkpointing": checkpointing, "steps": steps, "tokens_a_step": computed / (2 * steps),
        "sft_seconds": min(seconds["sft"]), "dpo_seconds": min(seconds["dpo"]),
        "median_ratio": float(np.median(ratios)),
        "ratio_of_sums": sum(seconds["dpo"]) / sum(seconds["sft"]),
    }  # fmt: skip


def measure(model_path: str, checkpointing: bool, objective: str, steps: int) -> dict[str, Any]:
    """Return seconds per step without the first one, losses, and peak memory of this process."""
    run = session(model_path, checkpointing)
    trainer = run.trainer
    if objective == "sft":
        work = Work.of(run)
        del run, trainer
        gc.collect()  # free the other trainer's memory first
        trainer = work.supervised()
    compile_kernels(trainer)
    start = time.perf_counter()
    trainer.objective.start(trainer, None, lambda line: None)
    reference = time.perf_counter() - start
    losses, ends = [], []
    for _ in range(steps):
        losses.append(trainer.step().loss)
        ends.append(time.perf_counter())
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    return {
        "objective": objective, "checkpointing": checkpointing, "seconds": seconds,
        "pairs_per_s": SETTINGS["batch"] / seconds, "peak_mb": peak_resident() / 1e6,
        "reference_seconds": reference, "losses": losses,
    }  # fmt: skip


def peer(python: str, model_path: str, checkpointing: bool, steps: int) -> dict[str, Any]:
    """Measure the same run with TRL's DPOTrainer, in a separate process."""
    run = session(model_path, checkpointing)
    settings = SETTINGS | {
        "checkpointing": checkpointing, "threads": physical_cores(), "steps": steps,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        weights, pairs = Path(folder) / "weights.npz", Path(folder) / "pairs.npz"
        write_weights(run.model, np.zeros((1, 1), np.int32), weights)
        np.savez(pairs, **_pairs(run, steps), **_halves(run.trainer.adapter))
        words = [python, str(Path(__file__).with_name("peer_preferences.py"))]
        words += [str(weights), str(pairs), json.dumps(settings)]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"objective": "TRL's dpo", "checkpointing": checkpointing} | found


def _pairs(run: RunSession, steps: int) -> dict[str, np.ndarray]:
    """Return the pairs of the steps in order: `ids` and `sizes`, see peer_preferences.py."""
    ids, sizes, place = [], [], Position(0, 0)
    for _ in range(steps):
        taken = run.trainer.feed.take(place, run.trainer.batch, 1)
        place = taken.after
        (batch,) = taken.batches
        assert isinstance(batch, JudgedBatch)
        samples = batch.source.samples
        for chosen, rejected in batch.rows.reshape(-1, 2).tolist():
            sides = []
            for row in (chosen, rejected):
                part = slice(int(samples.offsets[row]), int(samples.offsets[row + 1]))
                first = int(np.argmax(samples.trained[part]))
                last = len(samples.ids[part]) - int(np.argmax(samples.trained[part][::-1]))
                assert samples.trained[part][first:last].all()
                sides.append((samples.ids[part][:first], samples.ids[part][first:last]))
            assert np.array_equal(sides[0][0], sides[1][0])
            parts = [sides[0][0], sides[0][1], sides[1][1]]
            ids += parts
            sizes.append([len(part) for part in parts])
    return {"ids": np.concatenate(ids), "sizes": np.array(sizes)}


def _halves(adapter: Adapter) -> dict[str, np.ndarray]:
    """Return A of each pair by PEFT's name; B must be 0."""
    found = {}
    for name, pair in adapter.pairs.items():
        assert not pair.b.any()
        found[f"base_model.model.{hf_module(name)}.lora_A.default.weight"] = pair.a
    return found
