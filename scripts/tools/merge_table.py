"""Measure how much of an adapter's effect a merge into each weight type keeps.

    scripts/tools/merge_table BASE.gguf ADAPTER.gguf DATA [--text FILE] [--out FILE] [TYPE ...]

For each TYPE (default: all), all matrices of the blocks are merged in memory, rounded to nearest
and with error feedback. Each row contains the loss on the answers of records that are not in the
sample, the KL divergence from base and adapter on them, the share of the adapter's effect that is
kept, and the perplexity on other text. The embeddings are not changed.

If BASE is 768 wide, an adapter of the 576-wide SmolLM2 is widened in the same way as the model in
`scripts/tools/widen_smollm2`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nbllama
from nbllama.adapter.file import load_adapter
from nbllama.cli.calibration import draw, load_samples
from nbllama.evaluate.merge_sample import Change, change_on_held, kept
from nbllama.evaluate.scores import Reader, chunk_losses, chunks, text_tokens
from nbllama.export.calibrated import Rounder, rounds
from nbllama.export.inputs import BlockInputs
from nbllama.export.rewrite import IDS
from nbllama.kernels.cores import use_threads
from nbllama.lora.pairs import Adapter, Pair
from nbllama.model.passes import Model, load_model
from nbllama.ops.linear.matmul import Weight
from nbllama.quants import as_readonly, decode
from nbllama.quants.encode import quantise
from nbllama.system.program import run_program
from scripts.tools.widen_smollm2 import demo_model

TYPES = ("Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
CONTEXT = 256  # tokens per chunk of the other text
CHUNKS = 6


def adapter_for(model: Model, path: str) -> Adapter:
    """Read an adapter; widen it if it is for the narrower model."""
    try:
        return nbllama.load_adapter(path, model)
    except nbllama.errors.CheckpointError:
        narrow = load_model(demo_model())
        found = load_adapter(path, narrow.hp, narrow.shapes, lambda line: None)
    pairs = {}
    for name, pair in found.pairs.items():
        n_out, n_in = model.shapes[name]
        a = np.zeros((pair.rank, n_in), np.float32)
        b = np.zeros((n_out, pair.rank), np.float32)
        a[:, : pair.a.shape[1]], b[: len(pair.b)] = pair.a, pair.b
        pairs[name] = Pair(a, b)
    return Adapter(found.arch, found.alpha, found.lora_r, pairs)


class Table:
    """All merges of one base and adapter, and their test data."""

    def __init__(
        self, base: str, adapter: str, data: str, text: str | None, blocks: int | None
    ) -> None:
        self.model = load_model(base)
        self.adapter = adapter_for(self.model, adapter)
        if blocks is not None:
            pairs = self.adapter.pairs
            kept = {name: pair for name, pair in pairs.items() if int(name.split(".")[1]) < blocks}
            self.adapter = Adapter(self.adapter.arch, self.adapter.alpha, self.adapter.lora_r, kept)
        self.sample = draw(load_samples(data, None, self.model.tokenizer, print), 8192)
        self.lost: dict[tuple[str, str], float] = {}
        self.chunks: list[np.ndarray] = []
        if text is not None:
            words = Path(text).read_text(encoding="utf-8")[: 8 * CONTEXT * CHUNKS]
            ids = text_tokens(self.model.tokenizer, words, CONTEXT, text)
            self.chunks = chunks(ids, CONTEXT, self.model.tokenizer)[:CHUNKS]

    def merged(self, kinds: Sequence[str]) -> dict[tuple[str, str], dict[str, Weight]]:
        """Merge into each type twice: weights by (type, "nearest" or "feedback") and name."""
        rounder = Rounder(BlockInputs(self.model, self.adapter, self.sample.batches))
        made: dict[tuple[str, str], dict[str, Weight]] = {}
        self.effect = 0.0
        for name in sorted(self.adapter.pairs, key=lambda n: int(n.split(".")[1])):
            pair, info = self.adapter.pairs[name], self.model.gguf.tensors[name]
            w = self.model.tensor(name) + np.float32(self.adapter.scale) * (pair.b @ pair.a)
            self.effect += rounder.effect(name, pair, self.adapter.scale)
            for kind in kinds:
                # "same": the base's own type
                new = info.type_id if kind == "same" else IDS[kind]
                if not rounds(name, new):
                    continue
                base = self.model.gguf.data(name) if new == info.type_id else None
                found = {"nearest": quantise(new, w), "feedback": rounder.round(name, new, w, base)}
                for way, raw in found.items():
                    weight = Weight(name, new, as_readonly(raw), w.shape)
                    made.setdefault((kind, way), {})[name] = weight
                    lost = rounder.lost(name, decode(new, raw, w.size).reshape(w.shape) - w)
                    self.lost[kind, way] = self.lost.get((kind, way), 0.0) + lost
            print(name, file=sys.stderr, flush=True)
        return made

    def row(self, kind: str, way: str, weights: dict[str, Weight]) -> dict[str, Any]:
        """Measure one merge."""
        other = Model(self.model.gguf, self.model.hp)
        other.matrices.update(weights)
        parts = [(self.adapter, 1.0)]
        change: Change = change_on_held(self.model, other, parts, self.sample.held)
        found: dict[str, Any] = {
            "type": kind,
            "way": way,
            "mb": sum(w.raw.size for w in other.matrices.values()) / 1e6,
            "loss": float(change.found.other.mean()),
            "unmerged": float(change.found.base.mean()),
            "kl": float(change.found.kl.mean()),
            "effect": change.effect,
            "kept": kept(change),
        }
        if self.chunks:
            found["perplexity"] = self.perplexity(other, None)
        return found

    def perplexity(self, model: Model, adapter: Adapter | None) -> float:
        """Measure the perplexity on the other text."""
        reader = Reader(model, adapter, CONTEXT)
        losses = np.concatenate([chunk_losses(reader, chunk) for chunk in self.chunks])
        return math.exp(float(losses.mean()))


def _run(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="merge_table", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("data")
    parser.add_argument("types", nargs="*", default=list(TYPES))
    parser.add_argument("--text", help="a file of other text")
    parser.add_argument("--out", help="append rows to this file, one JSON object per line")
    parser.add_argument("--blocks", type=int, help="use the pairs of the first N blocks only")
    parser.add_argument("--threads", type=int, help="threads (all cores)")
    parser.add_argument("--products", action="store_true", help="measure the products only")
    args = parser.parse_args(words)
    use_threads(args.threads)
    table = Table(args.base, args.adapter, args.data, args.text, args.blocks)
    rows: list[dict[str, Any]] = [{"type": "base and adapter", "way": "unmerged"}]
    if table.chunks:
        rows[0]["perplexity"] = table.perplexity(table.model, table.adapter)
    start = time.process_time()
    made = table.merged(args.types)
    rows[0]["cpu_seconds"] = time.process_time() - start
    for (kind, way), weights in made.items():
        lost = table.lost[kind, way] / table.effect
        row = {"type": kind, "way": way, "lost_of_products": lost}
        rows.append(row if args.products else row | table.row(kind, way, weights))
    for row in rows:
        print(json.dumps(row))
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    sys.exit(run_program(_run, sys.argv[1:]))
