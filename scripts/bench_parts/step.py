"""Whole training steps of one configuration, in a separate process: `measure(Case)`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import numba
import numpy as np

from bench_parts.timing import Sgemm, timed
from nbllama.data.batch import Batch, RowPerSample
from nbllama.data.feed import SeedFeed
from nbllama.kernels.cores import physical_cores
from nbllama.lora.pairs import init_adapter
from nbllama.lora.slots import without_tensor
from nbllama.model.passes import Model, load_model
from nbllama.opt.adamw import AdamW
from nbllama.opt.schedule import Schedule
from nbllama.system.memory import peak_resident
from nbllama.train.forecast import forecast
from nbllama.train.probe import compile_kernels
from nbllama.train.trainer import Trainer

SEVEN = {"wq": 4, "wk": 4, "wv": 4, "wo": 4, "w1": 4, "w2": 4, "w3": 4}
# The defaults of the old program.
OLD = SEVEN | {"tok_embd": 4, "out": 4, "att_norm": 1, "ffn_norm": 1, "out_norm": 1}


class Case(NamedTuple):
    """`threads` 0: all cores. `old`: LoRA on everything, like the old program."""

    model: str
    ctx: int
    batch: int
    steps: int
    checkpointing: bool
    threads: int = 0
    old: bool = False


class Tokens(RowPerSample):
    """Random samples of `ctx` tokens."""

    kind, n_samples, fingerprint, notes = "raw", 10_000, "", ()

    def __init__(self, n_vocab: int, ctx: int) -> None:
        self.n_vocab, self.ctx = n_vocab, ctx

    def n_tokens(self, i: int) -> int:
        return self.ctx

    n_trained = n_tokens

    def batch(self, indices: Sequence[int]) -> Batch:
        rows = (random_row(self.n_vocab, self.ctx, i) for i in indices)
        return Batch.from_rows(rows)


def random_row(n_vocab: int, ctx: int, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and their targets, which are the next tokens."""
    ids = np.random.default_rng(i).integers(0, n_vocab, ctx + 1).astype(np.int32)
    return ids[:-1], ids[1:]


def work_of(model: Model, case: Case) -> tuple[float, float]:
    """Return the necessary FLOPs of a step, and its FLOPs including checkpointing's recomputation.

    Necessary: 4 x parameters x tokens (forward, and gradient with respect to the input) and 3.5 x
    the attention's two products. Recomputed: all blocks except the last one, each without its last
    matrix.
    """
    hp, tokens = model.hp, case.ctx * case.batch
    sizes = {name: w.shape[0] * w.shape[1] for name, w in model.matrices.items()}
    once = 2 * case.ctx * tokens * hp.n_head * hp.head_dim * hp.n_layer  # causal
    must = 4 * sum(sizes.values()) * tokens + 3.5 * once
    if "output.weight" in sizes:  # an untied embedding is looked up, not multiplied
        must -= 4 * sizes["token_embd.weight"] * tokens
    if not case.checkpointing:
        return must, must
    blocks = sum(n for k, n in sizes.items() if k.startswith("blk.") and "ffn_down" not in k)
    return must, must + (2 * blocks * tokens + once) * (hp.n_layer - 1) / hp.n_layer


def make_trainer(case: Case) -> Trainer:
    """Return a trainer with a new adapter and random data, with the case's number of threads."""
    numba.set_num_threads(case.threads or physical_cores())
    model = load_model(case.model)
    adapter = init_adapter(
        model.hp, ranks_for(model, case), alpha=4, lora_r=4, seed=1, shapes=model.shapes
    )
    data = Tokens(model.hp.n_vocab, case.ctx)
    return Trainer(
        model, adapter, AdamW(adapter.parameters()), data, rates=Schedule(warmup=0),
        feed=SeedFeed(data, 1), batch=case.batch, grad_acc=1, checkpointing=case.checkpointing,
    )  # fmt: skip


def measure(case: Case) -> dict[str, Any]:
    """Measure a step's median time, sgemm's throughput before and after it, memory and forecast."""
    trainer, threads = make_trainer(case), case.threads or physical_cores()
    model = trainer.model
    compile_seconds = compile_kernels(trainer)
    told = forecast(trainer, threads)
    trainer.step()
    sgemm, rows = Sgemm(), []
    rate = sgemm.rate()
    for _ in range(case.steps):
        seconds, before, rate = timed(trainer.step), rate, sgemm.rate()
        rows.append((seconds, (before + rate) / 2))
    must, done = work_of(model, case)
    seconds = median(s for s, _ in rows)
    return case._asdict() | {
        "threads": threads,
        "seconds": seconds,
        "tokens_per_s": case.ctx * case.batch / seconds,
        "gflops": must / seconds / 1e9,
        "sgemm_gflops": median(r for _, r in rows) / 1e9,
        "share": median(must / s / r for s, r in rows),
        "share_with_again": median(done / s / r for s, r in rows),
        "peak_mb": peak_resident() / 1e6,
        "file_mb": model.gguf.size / 1e6,
        "forecast_mb": told.peak / 1e6,
        "forecast_seconds": told.seconds,
        "activations_mb": told.chosen / 1e6,
        "compile_seconds": compile_seconds,
    }


def ranks_for(model: Model, case: Case) -> dict[str, int]:
    ranks = OLD if case.old else SEVEN
    missing = without_tensor(model.shapes)
    return {
        k: r for k, r in ranks.items()
        if k not in missing and (k != "out" or not model.hp.tied_output)
    }  # fmt: skip
