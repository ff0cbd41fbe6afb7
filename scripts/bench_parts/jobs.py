"""Whole epochs over records, as in real use: ours and PyTorch + PEFT's, on the same samples.

Both train one epoch on the same samples in the same batches, with rank 8, alpha 16, batch 8 and no
checkpointing. The peer pads each batch to its longest sample, as TRL's trainer does.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import nbllama
from bench_parts.hugging_face import write_weights
from nbllama.data.batch import Batch
from nbllama.data.order import Position
from nbllama.kernels.cores import physical_cores, use_threads
from nbllama.model.passes import load_model
from nbllama.options.finetune.table import parse
from nbllama.system.memory import peak_resident
from nbllama.train.probe import compile_kernels
from nbllama.train.run.given import Given
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.screen import Silent
from nbllama.train.run.session import RunSession
from nbllama.train.run.stop import StopFlag

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
JOBS = {
    "the demo's chats": EXAMPLES / "demo" / "train.jsonl",
    "text to SQL, the schema in each prompt": EXAMPLES / "text2sql" / "schema.jsonl",
}
RANK, ALPHA, BATCH, RATE = 8, 16, 8, 1e-3
QUICK_RECORDS = 16


def records(job: str, quick: bool) -> list[Any]:
    """Return the records of a job; with `quick`, a few of them."""
    with JOBS[job].open(encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    return found[:QUICK_RECORDS] if quick else found


def session(model_path: str, job: str, quick: bool, words: list[str]) -> RunSession:
    """Return a run of one epoch that writes no files."""
    options = parse([
        f"--model-base={model_path}", "--train-data=records", f"--batch={BATCH}", "--epochs=1",
        f"--lora-r={RANK}", f"--lora-alpha={ALPHA}", f"--adam-alpha={RATE}", "--seed=1",
        "--no-checkpointing", "--checkpoint-in=", "--checkpoint-out=", "--lora-out=", *words,
    ])  # fmt: skip
    given = Given(nbllama.load_model(model_path), records(job, quick))
    return RunSession(
        options, [], use_threads(None), outputs=Outputs(options), ui=Recorder(Silent()),
        stop=StopFlag("SIGINT"), given=given,
    )  # fmt: skip


def batches_of(run: RunSession) -> list[Batch]:
    """Return the batches of the first epoch."""
    trainer, place, found = run.trainer, Position(0, 0), []
    while place.epoch == 0:
        taken = trainer.feed.take(place, trainer.batch, 1)
        found += taken.batches
        place = taken.after
    return found


def measure_job(model_path: str, job: str, quick: bool, words: list[str]) -> dict[str, Any]:
    """Run one epoch: seconds, peak memory of this process, and mean loss of the first batch."""
    run = session(model_path, job, quick, words)
    trainer = run.trainer
    tokens = sum(batch.n_tokens for batch in batches_of(run))
    compile_seconds = compile_kernels(trainer)
    losses, start = [], time.perf_counter()
    while trainer.position.epoch == 0:
        losses.append(trainer.step().loss)
    seconds = time.perf_counter() - start
    return {
        "job": job, "seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds,
        "peak_mb": peak_resident() / 1e6, "first_loss": losses[0],
        "compile_seconds": compile_seconds,
    }  # fmt: skip


def peer_job(python: str, model_path: str, job: str, quick: bool) -> dict[str, Any]:
    """Run the same epoch with the peer, in a separate process."""
    run = session(model_path, job, quick, [])
    batches = batches_of(run)
    rows = [np.diff(batch.seq_offsets) for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        weights, samples = Path(folder) / "weights.npz", Path(folder) / "samples.npz"
        write_weights(load_model(model_path), np.zeros((1, 1), np.int32), weights)
        np.savez(
            samples,
            tokens=np.concatenate([batch.tokens for batch in batches]),
            targets=np.concatenate([batch.targets for batch in batches]),
            lengths=np.concatenate(rows),
            samples_of_batch=np.array([len(r) for r in rows]),
        )
        words = [python, str(Path(__file__).with_name("peer_job.py")), str(weights), str(samples)]
        words += [str(RANK), str(ALPHA), str(RATE), str(physical_cores())]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"job": job} | found


def bench_jobs(ours: Any, python: str | None, model: str, quick: bool) -> Any:
    """Yield the rows: ours, the peer's if there is one, and the ratios.

    `ours` measures a job in a separate process.
    """
    for job in JOBS:
        row = ours(job)
        if python is not None:
            peer = peer_job(python, model, job, quick)
            row |= {
                "peer_seconds": peer["seconds"], "peer_mb": peer["peak_mb"],
                "peer_first_loss": peer["first_loss"],
                "times_faster": peer["seconds"] / row["seconds"],
                "of_its_memory": row["peak_mb"] / peer["peak_mb"],
            }  # fmt: skip
        yield row
