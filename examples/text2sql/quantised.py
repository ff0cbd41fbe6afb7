"""The effect of a quantised base on an adapter: the same training on four bases of one model.

    scripts/tools/widen_smollm2 build/wide-f16.gguf f16
    python -m examples.text2sql.quantised build/wide-f16.gguf --result docs/results/quantised.jsonl

`nbllama.quantize` makes the other bases from the F16 model (llama.cpp's mixes). On each base the
same pairs are trained with the same options; the adapter is then evaluated in four ways:

- *on its base*: as it was trained;
- *merged into F16*: added to the weights that the base was quantised from;
- *F16, quantised again*: that file, quantised in the same way as its base;
- *merged back*: added to its base, in the types of the base.

Each is evaluated by the loss on the validation answers (which are not in the training data) and by
execution accuracy on test questions. A base whose lines are already in the result file is not
repeated; `--table` only prints the table of that file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nbllama
from examples.text2sql import evaluate, generate
from examples.text2sql.results import Rows, series
from examples.text2sql.training import Training, totals, train
from nbllama.data.encoding import encode_chat
from nbllama.errors import NbllamaError

BASES = ("f16", "q8_0", "q4_k_m", "q2_k")
WAYS = ("untrained", "on its base", "merged into F16", "F16, quantised again", "merged back")


def program(name: str, *words: str) -> None:
    """Run a program of the package. Raises `NbllamaError` if it fails."""
    code = subprocess.run([sys.executable, "-m", f"nbllama.{name}", *words]).returncode
    if code:
        raise NbllamaError(f"nbllama.{name} {' '.join(words)} ended with exit code {code}")


def validation_loss(model: Any, adapter: Any, path: Path) -> float:
    """Return the mean cross-entropy of the answers' tokens, in nats."""
    total, count = 0.0, 0
    for line in path.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        ids, trained = encode_chat(model.tokenizer, model.chat_template, messages)
        rows = np.flatnonzero(trained[1:])
        z = nbllama.logits(model, ids[:-1], adapter)[rows].astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        right = z[np.arange(len(rows)), ids[1:][rows]]
        total += float((np.log(np.exp(z).sum(axis=1)) - right).sum())
        count += len(rows)
    model.chat_template.close()
    return total / count


def judge(path: Path, adapter: Path | None, data: Path, n_test: int) -> dict[str, Any]:
    """Return loss and accuracy of a model, with or without an adapter."""
    model = nbllama.load_model(path)
    loaded = nbllama.load_adapter(adapter, model) if adapter else None
    loss = validation_loss(model, loaded, data / "validation.jsonl")
    result = evaluate.evaluate_folder(model, loaded, data, limit=n_test)
    return {"loss": round(loss, 4), **result.summary()}


def rows_of(
    base: str, original: Path, out: Path, n_train: int, n_test: int, threads: int
) -> Iterator[dict[str, Any]]:
    """Create one base, train on it and evaluate it; yield one row per entry of `WAYS`."""
    data = out / "data"
    generate.generate(data, "en", n_train)
    path = original if base == "f16" else out / f"{base}.gguf"
    if not path.exists():
        program("quantize", str(original), str(path), base)
    adapter = out / f"lora-{base}.gguf"
    about: dict[str, Any] = {"base": base, "mb": round(path.stat().st_size / 1e6, 1)}
    yield about | {"way": WAYS[0], **judge(path, None, data, n_test)}
    log = train(path, data / "train.jsonl", adapter, Training(threads=threads))
    yield about | {"way": WAYS[1], **totals(log), **judge(path, adapter, data, n_test)}
    merged, again = out / "merged.gguf", out / "merged-again.gguf"
    for way, target in ((WAYS[2], original), (WAYS[4], path)):
        merged.unlink(missing_ok=True)
        words = ["-m", str(target), "-l", str(adapter), "-o", str(merged), "--nearest", "--force"]
        program("export_lora", *words)
        yield about | {"way": way, **judge(merged, None, data, n_test)}
        if way == WAYS[2] and base != "f16":
            again.unlink(missing_ok=True)
            program("quantize", str(merged), str(again), base)
            yield about | {"way": WAYS[3], **judge(again, None, data, n_test)}
            again.unlink()
        merged.unlink()


def done(base: str, rows: Rows) -> bool:
    """Return whether a base has all its rows."""
    n_ways = len(WAYS) - (base == "f16")  # F16 is not quantised again
    return len([r for r in rows if r["base"] == base]) == n_ways


def table(rows: Rows) -> str:
    """Return the rows of complete bases as a Markdown table: loss, and number of right answers."""
    lines = [f"| base | MB | {' | '.join(WAYS)} |", "|---|---:" + "|---:" * len(WAYS) + "|"]
    for base in dict.fromkeys(r["base"] for r in rows):
        if not done(base, rows):
            continue
        of = {r["way"]: r for r in rows if r["base"] == base}
        cells = [
            f"{of[w]['loss']:.4f}, {of[w]['n_right']} of {of[w]['n']}" if w in of else ""
            for w in WAYS
        ]
        lines.append(f"| {base.upper()} | {of[WAYS[0]]['mb']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The same training on bases of four types.")
    parser.add_argument("model", type=Path, nargs="?", help="the F16 model (.gguf)")
    parser.add_argument("--out", type=Path, default=Path("build/text2sql/quantised"))
    parser.add_argument("--train", type=int, default=400, help="pairs to train with")
    parser.add_argument("--test", type=int, default=90, help="questions to ask")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", type=Path, default=Path("build/text2sql/quantised.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table, train nothing")
    args = parser.parse_args(argv)
    if args.model is None and not args.table:
        parser.error("pass the F16 model, or --table")

    def measure(base: str) -> Iterator[dict[str, Any]]:
        return rows_of(base, args.model, args.out, args.train, args.test, args.threads)

    return series(args.result, () if args.table else BASES, done, measure, table)


if __name__ == "__main__":
    sys.exit(main())
