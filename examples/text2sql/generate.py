"""Generate the data of the example: two databases, and questions with their SQL.

    python -m examples.text2sql.generate build/text2sql [--language en] [--train 2600] [--seed 1]

Writes `train.jsonl` (chats, for `--train-data`), `validation.jsonl` (chats too), `test.jsonl`
(question, SQL, kind, phrasing) and `wholesale-1.db`, `wholesale-2.db`: the same company with
different rows, so that a wrong query that happens to match in one fails in the other.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from examples.text2sql import execute, questions, schema
from examples.text2sql.questions import KINDS, SLOTS, Phrasings

SYSTEM = "SQL"  # the whole system message: the model learns the schema from the examples
DATABASES = ("wholesale-1.db", "wholesale-2.db")
COPIES = 4  # largest number of copies of a training pair; kinds without a gap have few pairs
TRIES = 200  # attempts to find a value for which the query returns rows


class Pair(NamedTuple):
    """A question and the SQL that answers it."""

    kind: str
    phrasing: str
    question: str
    sql: str


def pairs_of(
    kind: str, phrasings: list[str], language: str, db: sqlite3.Connection, rng: random.Random
) -> Iterator[Pair]:
    """Yield endless pairs of one kind; each query returns rows from `db`."""
    while True:
        for phrasing in rng.sample(phrasings, len(phrasings)):
            yield _pair(kind, phrasing, language, db, rng)


def _pair(
    kind: str, phrasing: str, language: str, db: sqlite3.Connection, rng: random.Random
) -> Pair:
    for _ in range(TRIES):
        values = {name: SLOTS[name](rng) for name in questions.gaps(KINDS[kind])}
        sql = questions.fill(KINDS[kind], values, "sql")
        found = execute.execute(db, sql)
        if found.error:
            raise ValueError(f"the SQL of {kind} does not run: {found.error}")
        if found.rows and found.rows != [(None,)] and found.rows != [(0,)]:
            chosen = questions.choose(phrasing, rng)
            question = questions.fill(chosen, values, language)
            return Pair(kind, phrasing, question[0].upper() + question[1:], sql)
    raise ValueError(f"no values found for which {kind} has an answer")


def make_pairs(
    split: str, language: str, n: int, db: sqlite3.Connection, seed: int, copies: int = 1
) -> list[Pair]:
    """Return `n` pairs of a split, or fewer if there are not enough. All kinds occur equally often
    if they have enough pairs; each pair occurs at most `copies` times.
    """
    rng = random.Random(f"{split} {language} {seed}")
    phrasings: Phrasings = questions.load_phrasings(language)
    sources = {k: pairs_of(k, phrasings[k][split], language, db, rng) for k in KINDS}
    pairs: list[Pair] = []
    seen: Counter[str] = Counter()
    while len(pairs) < n and sources:
        for kind in list(sources):
            pair = _fresh(sources[kind], seen, copies)
            if pair is None:
                del sources[kind]
            elif len(pairs) < n:
                pairs.append(pair)
    rng.shuffle(pairs)
    return pairs


def _fresh(source: Iterator[Pair], seen: Counter[str], copies: int) -> Pair | None:
    for _ in range(30):
        pair = next(source)
        if seen[pair.question] < copies:
            seen[pair.question] += 1
            return pair
    return None


def chat(question: str, sql: str = "", system: str = SYSTEM) -> list[dict[str, str]]:
    """Return the messages of a question, with its answer if there is one."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return messages + ([{"role": "assistant", "content": sql}] if sql else [])


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, in UTF-8."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def read_pairs(path: Path) -> list[Pair]:
    """Read the pairs of `test.jsonl`."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Pair(**json.loads(line)) for line in lines if line]


def generate(
    out: Path, language: str = "en", train: int = 2600, validation: int = 90, test: int = 270,
    seed: int = 1,
) -> dict[str, int]:  # fmt: skip
    """Write all files into the folder `out`; return the number of pairs per split."""
    out.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(DATABASES, 1):
        schema.create(out / name, number)
    db = execute.open_read_only(out / DATABASES[0])
    try:
        splits = {
            "train": make_pairs("train", language, train, db, seed, COPIES),
            "validation": make_pairs("validation", language, validation, db, seed),
            "test": make_pairs("test", language, test, db, seed),
        }
    finally:
        db.close()
    for name in ("train", "validation"):
        rows = [{"messages": chat(p.question, p.sql)} for p in splits[name]]
        write_lines(out / f"{name}.jsonl", rows)
    write_lines(out / "test.jsonl", (p._asdict() for p in splits["test"]))
    return {name: len(pairs) for name, pairs in splits.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the data of the text-to-SQL example.")
    parser.add_argument("out", type=Path, help="folder for the files")
    parser.add_argument("--language", choices=questions.LANGUAGES, default="en")
    parser.add_argument("--train", type=int, default=2600, help="pairs to train with")
    parser.add_argument("--validation", type=int, default=90)
    parser.add_argument("--test", type=int, default=270)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    counts = generate(args.out, args.language, args.train, args.validation, args.test, args.seed)
    print(", ".join(f"{n} {name}" for name, n in counts.items()), f"pairs in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
