"""Ask a model the test questions, run its SQL, and count the answers that find the right rows.

    python -m examples.text2sql.evaluate MODEL.gguf build/text2sql/en [--adapter ADAPTER.gguf]

Answers are greedy. An answer is right if it finds the expected rows in both databases; their order
counts only if the question asks for one. With `--schema`, the system message contains the table
definitions, for a fair test of a model that was not trained on them.
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbllama
from examples.text2sql import execute
from examples.text2sql.generate import DATABASES, SYSTEM, Pair, chat, read_pairs
from nbllama.data import prompt_ids
from nbllama.errors import NbllamaError
from nbllama.generation.batch import generate_many
from nbllama.system.files import atomic_write

MAX_NEW_TOKENS = 80  # twice the longest right answer
SCHEMA = """\
Write one SQLite query that answers the question. Tables:
customers(customer_id, customer, city, segment, joined)
products(product_id, product, category, price, stock)
orders(order_id, customer_id, day, amount, status, months_ago, quarters_ago, years_ago)
items(order_id, product_id, quantity)
Dates are text, 2025-03-31. Last quarter is quarters_ago = 1. Answer with SQL only."""


@dataclass(frozen=True)
class Answer:
    """The answer to one question, and its verdict."""

    kind: str
    question: str
    wanted: str
    answer: str
    right: bool
    reason: str


@dataclass(frozen=True)
class Result:
    answers: tuple[Answer, ...]

    @property
    def n_right(self) -> int:
        return sum(a.right for a in self.answers)

    @property
    def accuracy(self) -> float:
        """Execution accuracy, 0 to 1."""
        return self.n_right / len(self.answers)

    @property
    def n_same_text(self) -> int:
        """Number of answers that equal the expected query exactly."""
        return sum(a.answer == a.wanted for a in self.answers)

    def summary(self) -> dict[str, Any]:
        """Return everything except the answers, for a line of JSON."""
        low, high = wilson(self.n_right, len(self.answers))
        return {
            "n": len(self.answers), "n_right": self.n_right,
            "accuracy": round(self.accuracy, 4),
            "low": round(low, 4), "high": round(high, 4), "n_same_text": self.n_same_text,
        }  # fmt: skip

    def line(self) -> str:
        """Return one line of text."""
        s = self.summary()
        return (
            f"{s['n_right']} of {s['n']} right by execution: {100 * s['accuracy']:.1f} % "
            f"(95 % interval {100 * s['low']:.1f} to {100 * s['high']:.1f})"
        )


def wilson(n_right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of a share, by default for 95 % (Wilson 1927)."""
    if not 0 <= n_right <= n or n < 1:
        raise ValueError(f"{n_right} of {n} is not a share")
    p, zz = n_right / n, z * z / n
    middle, half = p + zz / 2, z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    # at the ends, rounding would leave a tiny rest on the other side
    low = 0.0 if n_right == 0 else (middle - half) / (1 + zz)
    return low, 1.0 if n_right == n else (middle + half) / (1 + zz)


def evaluate(
    model: Any,
    adapter: Any,
    pairs: Sequence[Pair],
    databases: Sequence[sqlite3.Connection],
    system: str = SYSTEM,
    tell: Callable[[Answer], None] | None = None,
) -> Result:
    """Ask all of `pairs`; `tell` is called with each answer."""
    prompts = [
        prompt_ids(model.tokenizer, model.chat_template, chat(p.question, system=system))
        for p in pairs
    ]
    answers: list[Answer] = []

    def take(i: int, tokens: list[int]) -> None:
        answer = execute.extract_sql(model.tokenizer.decode(tokens))
        verdict = execute.judge(databases, pairs[i].sql, answer)
        answers.append(
            Answer(
                pairs[i].kind, pairs[i].question, pairs[i].sql, answer,
                verdict.right, verdict.reason,
            )
        )  # fmt: skip
        if tell is not None:
            tell(answers[-1])

    generate_many(model, prompts, MAX_NEW_TOKENS, adapter, tell=take)
    model.chat_template.close()  # it has a separate process
    return Result(tuple(answers))


def evaluate_folder(
    model: Any,
    adapter: Any,
    folder: Path,
    system: str = SYSTEM,
    limit: int | None = None,
    tell: Callable[[Answer], None] | None = None,
) -> Result:
    """Run `evaluate` with the first `limit` test questions and the databases of a folder."""
    pairs = read_pairs(folder / "test.jsonl")[:limit]
    databases = [execute.open_read_only(folder / name) for name in DATABASES]
    try:
        return evaluate(model, adapter, pairs, databases, system, tell)
    finally:
        for db in databases:
            db.close()


def show(answer: Answer) -> None:
    """Print one answer."""
    print(f"{'right' if answer.right else 'wrong'}  {answer.question}")
    if not answer.right:
        print(f"       {answer.answer!r}: {answer.reason}\n       expected {answer.wanted!r}")


def show_kinds(result: Result) -> None:
    """Print the number of wrong answers by kind of question."""
    wrong = Counter(a.kind for a in result.answers if not a.right)
    for kind, n in wrong.most_common():
        print(f"  {n:3} wrong  {kind}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Execution accuracy of a model's SQL.")
    parser.add_argument("model", help="base model (.gguf)")
    parser.add_argument("folder", type=Path, help="folder that generate.py wrote")
    parser.add_argument("--adapter", help="LoRA adapter to use on it")
    parser.add_argument("--schema", action="store_true", help="put the tables into the prompt")
    parser.add_argument("--limit", type=int, help="number of questions (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all answers to this file")
    args = parser.parse_args(argv)
    try:
        model = nbllama.load_model(args.model)
        adapter = nbllama.load_adapter(args.adapter, model) if args.adapter else None
        system = SCHEMA if args.schema else SYSTEM
        result = evaluate_folder(model, adapter, args.folder, system, args.limit, show)
        print(result.line())
        show_kinds(result)
        if args.json:
            rows = [result.summary(), *map(asdict, result.answers)]
            with atomic_write(args.json) as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    except NbllamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
