"""The effect of rank, amount of data and learning rate on accuracy, one factor at a time.

    python -m examples.text2sql.sweep --result docs/results/text2sql-sweep.jsonl

There are seven short runs: a base run, and two others for each factor. A run whose line is already
in the result file is not repeated. `--table` only prints the table of that file, as in the README.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import nbllama
from examples.text2sql import evaluate, generate
from examples.text2sql.results import Rows, series
from examples.text2sql.training import Training, demo_model, totals, train


class Run(NamedTuple):
    """One row of the table."""

    factor: str
    n_train: int
    training: Training


def runs(n_train: int, threads: int) -> list[Run]:
    """Return the base run and its variants."""
    base = Training(threads=threads)
    return [
        Run("base", n_train, base),
        *[Run("rank", n_train, replace(base, rank=rank)) for rank in (4, 64)],
        *[Run("rate", n_train, replace(base, rate=rate)) for rate in (3e-4, 3e-3)],
        *[Run("data", n, base) for n in (n_train // 2, 2 * n_train)],
    ]


def measure(run: Run, model_path: Path, out: Path, n_test: int) -> dict[str, Any]:
    """Train and evaluate one run; return its row."""
    name = f"{run.factor}-{run.n_train}-r{run.training.rank}-lr{run.training.rate:g}"
    folder = out / name
    generate.generate(folder, "en", run.n_train, test=n_test)
    adapter = folder / "lora.gguf"
    log = train(model_path, folder / "train.jsonl", adapter, run.training)
    model = nbllama.load_model(model_path)
    result = evaluate.evaluate_folder(model, nbllama.load_adapter(adapter, model), folder)
    print(f"{name}: {result.line()}", flush=True)
    return {
        "factor": run.factor, "n_train": run.n_train, **asdict(run.training), **totals(log),
        **result.summary(), "losses": [round(row["loss"], 4) for row in log],
    }  # fmt: skip


def table(rows: Rows) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| changed | examples | rank | rate | tokens | last loss | right | 95 % interval |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines.extend(
        f"| {r['factor']} | {r['n_train']} | {r['rank']} | {r['rate']:g} | {r['tokens']} "
        f"| {r['last_loss']:.3f} | {r['n_right']} of {r['n']}, {100 * r['accuracy']:.1f} % "
        f"| {100 * r['low']:.1f} to {100 * r['high']:.1f} |"
        for r in rows
    )
    return "\n".join(lines)


def done(run: Run, rows: Rows) -> bool:
    """Return whether the rows contain a run's row."""
    wanted = (run.factor, run.n_train, run.training.rank, run.training.rate)
    return any((r["factor"], r["n_train"], r["rank"], r["rate"]) == wanted for r in rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Accuracy against rank, data and rate.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("build/text2sql/sweep"))
    parser.add_argument("--model", type=Path, help="base model (.gguf)")
    parser.add_argument("--train", type=int, default=400, help="pairs of the base run")
    parser.add_argument("--test", type=int, default=135, help="held-out questions of each run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", type=Path, default=Path("build/text2sql/sweep.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table, train nothing")
    args = parser.parse_args(argv)
    wanted = [] if args.table else runs(args.train, args.threads)

    def measure_one(run: Run) -> Rows:
        return [measure(run, args.model or demo_model(), args.out, args.test)]

    return series(args.result, wanted, done, measure_one, table)


if __name__ == "__main__":
    sys.exit(main())
