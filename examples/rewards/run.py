"""Continue a text-to-SQL adapter on the results of its own queries.

    python -m examples.rewards.run [--model MODEL.gguf] [--out FOLDER] [--result FILE.jsonl]
        [more options of nbllama finetune ...]

1. Data and databases are generated, as in `examples.text2sql`.
2. An adapter is trained on 400 questions with their queries (`--sft`).
3. The adapter is tested on 270 questions in phrasings that were never trained.
4. Training continues with `--objective grpo`, on other questions in the phrasings of step 2. The
   reward runs each query (`examples.rewards.execution`); the model is shown no correct query.
5. The adapter is tested again.

If an earlier run trained the adapter of step 2, that adapter is used.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbllama
from examples.text2sql import evaluate, generate
from examples.text2sql.generate import DATABASES, chat, write_lines
from examples.text2sql.training import demo_model
from nbllama.errors import NbllamaError

HERE = Path(__file__).resolve().parent
ASKED = 1600  # number of generated questions; the first ones are for step 2
# for step 2: `examples.text2sql.sweep` reached 65 % at the highest of three learning rates
SFT = [
    "--ctx", "256", "--batch", "8", "--epochs", "1", "--lora-r", "16", "--lora-alpha", "32",
    "--lr", "3e-3", "--no-checkpointing", "--val-split", "0", "--answers", "0",
]  # fmt: skip
# for step 4; without a reference, groups with only right or only wrong answers are not trained
REWARDS = [
    "--objective", "grpo", "--beta", "0", "--ctx", "256", "--batch", "4", "--group-size", "8",
    "--max-answer", "64", "--lr", "2e-4", "--lr-schedule", "constant", "--adam-iter", "120",
    "--warmup", "3", "--weight-decay", "0", "--no-checkpointing",
]  # fmt: skip


def questions(out: Path, first: int) -> Iterator[dict[str, Any]]:
    """Yield the prompts: questions from number `first` on, with the query and the databases.

    Questions that also occur before `first` are skipped.
    """
    lines = (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
    databases = [str((out / name).resolve()) for name in DATABASES]
    seen = set()
    for number, line in enumerate(lines):
        _, question, answer = (m["content"] for m in json.loads(line)["messages"])
        if number >= first and question not in seen:
            yield {"prompt": chat(question), "sql": answer, "databases": databases}
        seen.add(question)


def finetune(model: Path, data: Path, adapter: Path, more: Sequence[str]) -> dict[str, float]:
    """Run the trainer; return its elapsed seconds and the processor seconds of all cores.

    Raises `NbllamaError` if the trainer fails.
    """
    log = adapter.with_suffix(".jsonl")
    log.unlink(missing_ok=True)
    words = [
        "--model-base", str(model), "--train-data", str(data), "--lora-out", str(adapter),
        "--checkpoint-in", "", "--checkpoint-out", "", "--save-every", "0", "--log", str(log),
        "--seed", "1", "--force", *more,
    ]  # fmt: skip
    print("python -m nbllama.finetune", shlex.join(words), flush=True)
    start, before = time.perf_counter(), os.times()
    code = subprocess.run([sys.executable, "-m", "nbllama.finetune", *words]).returncode
    if code:
        raise NbllamaError(f"training ended with exit code {code}")
    after = os.times()
    processor = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return {"seconds": round(time.perf_counter() - start), "processor": round(processor)}


def tested(what: str, model: Path, adapter: Path, out: Path, limit: int | None) -> dict[str, Any]:
    """Ask the held-out questions; return the row of the result."""
    loaded = nbllama.load_model(model)
    found = evaluate.evaluate_folder(
        loaded, nbllama.load_adapter(adapter, loaded), out, limit=limit
    )
    print(f"{what}: {found.line()}", flush=True)
    return {"what": what, **found.summary()}


def run(args: argparse.Namespace, more: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the result."""
    out: Path = args.out
    model = args.model or demo_model()
    print("== 1. data", flush=True)
    counts = generate.generate(out, "en", ASKED, test=270)
    rows: list[dict[str, Any]] = [
        {"what": "options", "model": model.name, "sft": args.sft, "more": list(more), **counts}
    ]
    first = out / "sft.gguf"
    if not first.exists():
        print("\n== 2. queries to copy", flush=True)
        lines = (out / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (out / "sft-data.jsonl").write_text("".join(lines[: args.sft]), encoding="utf-8")
        took = finetune(model, out / "sft-data.jsonl", first, SFT)
        rows.append({"what": "first adapter", **took})
    print("\n== 3. before", flush=True)
    rows.append(tested("before", model, first, out, args.limit))
    print("\n== 4. rewards", flush=True)
    prompts = out / "prompts.jsonl"
    write_lines(prompts, questions(out, args.sft))
    adapter = out / "rewards.gguf"
    reward = f"{HERE / 'execution.py'}:right"
    took = finetune(
        model, prompts, adapter, ["--lora-in", str(first), "--reward", reward, *REWARDS, *more]
    )
    rows.append({"what": "rewards", **took})
    print("\n== 5. after", flush=True)
    rows.append(tested("after", model, adapter, out, args.limit))
    log = adapter.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, log) if "event" not in row]
    rows += [{"what": "iteration", **row} for row in steps]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="base model (.gguf)")
    parser.add_argument("--out", type=Path, default=Path("build/rewards"), help="folder")
    parser.add_argument("--sft", type=int, default=400, help="questions of step 2")
    parser.add_argument("--limit", type=int, help="number of test questions (default: all)")
    parser.add_argument("--result", type=Path, help="save the results in this file")
    args, more = parser.parse_known_args(argv)
    try:
        rows = run(args, more)
    except NbllamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    if args.result:
        write_lines(args.result, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
