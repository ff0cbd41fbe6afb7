"""Teach a style rule with preferences, and count how many held-out answers follow it.

    python -m examples.preferences.run --model MODEL.gguf [--objective dpo ipo ...] [--from-usual]
        [--out FOLDER] [--log RESULTS.jsonl] [more options of nbllama finetune ...]

Training starts from the base model, or with `--from-usual` from an adapter that was trained to
answer in the usual way. Answers are greedy, with at most 24 tokens. Perplexity is measured on the
beginning of a text. A run's time is reported as processor seconds of all cores and as elapsed
seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbllama
from examples.preferences.generate import HERE, follows
from nbllama.data import prompt_ids
from nbllama.evaluate.scores import token_losses
from nbllama.generation.batch import generate_many
from nbllama.objectives.names import LABELS, OBJECTIVES

TEXT = HERE.parents[1] / "tests" / "golden" / "shakespeare.txt"
LONGEST, WINDOW, WINDOWS = 24, 256, 6


def answers(model: Any, adapter: Any) -> list[str]:
    """Return the greedy answers to the held-out questions."""
    lines = (HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [
        prompt_ids(model.tokenizer, model.chat_template, [{"role": "user", "content": question}])
        for question in (json.loads(line)["question"] for line in lines)
    ]
    said = []
    for at in range(0, len(prompts), 8):
        said += generate_many(model, prompts[at : at + 8], LONGEST, adapter)
    return [model.tokenizer.decode(ids) for ids in said]


def loss_of_text(model: Any, adapter: Any) -> float:
    """Return the mean loss in nats per token of the text's beginning, `WINDOW` tokens at a time."""
    ids = model.tokenizer.encode(TEXT.read_text(encoding="utf-8")[:20000])
    total = 0.0
    for at in range(0, WINDOWS * WINDOW, WINDOW):
        part = ids[at : at + WINDOW + 1]
        scores = nbllama.logits(model, part[:-1], adapter)
        total += float(token_losses(scores, _targets(part)).sum())
    return total / (WINDOWS * WINDOW)


def _targets(ids: Sequence[int]) -> Any:
    import numpy as np

    return np.array(ids[1:], np.int32)


def state(model: Any, adapter: Any) -> dict[str, Any]:
    """Return the number of answers that follow the rule, some answers, and the loss on the text."""
    said = answers(model, adapter)
    kept = sum(map(follows, said))
    return {"kept": kept, "of": len(said), "loss": loss_of_text(model, adapter), "first": said[:3]}


def spent() -> tuple[float, float]:
    """Return the current time, and the processor seconds of all child processes so far."""
    of = os.times()
    return time.perf_counter(), of.children_user + of.children_system


def train(model: str, data: Path, adapter: Path, more: Sequence[str]) -> tuple[float, float]:
    """Run the trainer; return the elapsed and the processor seconds."""
    words = [sys.executable, "-m", "nbllama.finetune", "--model-base", model, "--force"]
    words += ["--train-data", str(data), "--lora-out", str(adapter), "--checkpoint-out=", *more]
    print("nbllama finetune", *words[3:], flush=True)
    start = spent()
    subprocess.run(words, check=True)
    end = spent()
    return end[0] - start[0], end[1] - start[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    names = [n for n in OBJECTIVES if n != "sft"]
    parser.add_argument("--objective", nargs="+", default=["dpo"], choices=names)
    parser.add_argument("--from-usual", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("preferences-out"))
    parser.add_argument("--log", type=Path)
    args, more = parser.parse_known_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    model = nbllama.load_model(args.model)
    common = ["--ctx", "192", "--seed", "1", "--val-split", "0", "--answers", "0"]
    start = None
    if args.from_usual:
        first = args.out / "usual.gguf"
        if not first.exists():
            took = train(args.model, HERE / "usual.jsonl", first, [*common, "--epochs", "1"])
            print(f"the adapter to start from took {took[0]:.0f} s, processor {took[1]:.0f} s")
        start = nbllama.load_adapter(first, model)
        common += ["--lora-in", str(first)]
    before = state(model, start)
    print("before:", before, flush=True)
    for objective in args.objective:
        labels = OBJECTIVES[objective].data == LABELS
        data = HERE / ("labels.jsonl" if labels else "pairs.jsonl")
        adapter = args.out / f"{objective}{'-from-usual' if args.from_usual else ''}.gguf"
        length = [] if "--epochs" in more else ["--epochs", "1"]
        own = ["--objective", objective, *length, *more]
        seconds, processor = train(args.model, data, adapter, [*common, *own])
        after = state(model, nbllama.load_adapter(adapter, model))
        print("after: ", after, flush=True)
        row = {
            "objective": objective, "from": "usual" if args.from_usual else "base",
            "options": more, "seconds": round(seconds), "processor": round(processor),
            "before": before, "after": after,
        }  # fmt: skip
        if args.log:
            with args.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
