"""Train on your own text, then generate its next line at several adapter scales.

    python examples/slqm/run.py TEXT.txt --model MODEL.gguf [--out FOLDER] [--log RESULTS.jsonl]

TEXT.txt is any UTF-8 text with one paragraph per line. Every tenth paragraph is held out.
Perplexity is measured before and after training, on the held-out paragraphs and on the same number
of other paragraphs.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import nbllama
from nbllama.errors import NbllamaError, UsageError

VERSE = "人间清暑殿，天上广寒宫。"
QUESTION = f"“{VERSE}”的下一句"
SCALES = (0.0, 0.5, 1.0, 1.5)
WINDOW = 256  # tokens per window of the loss


def split(text: str) -> tuple[list[str], list[str]]:
    """Return the paragraphs for training and the held-out tenth: the 10th, the 20th, ..."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 10:
        raise UsageError(f"the text has {len(lines)} paragraphs; at least 10 are needed")
    held_out = lines[9::10]
    return [line for i, line in enumerate(lines) if i % 10 != 9], held_out


def perplexity(model: Any, adapter: Any, text: str) -> float:
    """Return exp of the mean loss in nats per token, in windows of `WINDOW` tokens that each begin
    with the model's first token (BOS, else EOS), as in training.
    """
    tokenizer = model.tokenizer
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ids = tokenizer.encode(text)
    total = 0.0
    for at in range(0, len(ids), WINDOW):
        part = ids[at : at + WINDOW]
        scores = nbllama.logits(model, [first, *part[:-1]], adapter).astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        wanted = scores[np.arange(len(part)), part]
        total += float((np.log(np.exp(scores).sum(axis=1)) - wanted).sum())
    return math.exp(total / len(ids))


def train(args: argparse.Namespace, text: Path, adapter: Path) -> float:
    """Run `nbllama.finetune` as on the command line; return the seconds that it took."""
    command = [
        sys.executable, "-m", "nbllama.finetune",
        "--model-base", args.model, "--train-data", str(text), "--data-format", "raw",
        "--lora-out", str(adapter), "--checkpoint-out", "", "--checkpoint-in", "",
        "--log", str(adapter.with_name("train-log.jsonl")),
        "--ctx", str(args.ctx), "--batch", str(args.batch), "--adam-iter", str(args.iterations),
        "--lora-r", str(args.rank), "--adam-alpha", str(args.rate),
        "--warmup", str(max(1, args.iterations // 20)), "--cos-decay-steps", str(args.iterations),
        "--seed", "1", "--force",
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def continued(model: Any, adapter: Any, prompt: str, n: int = 60) -> str:
    """Return the first line of the greedy continuation of a prompt, in whole characters."""
    first = [] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
    ids = nbllama.generate(
        model, [*first, *model.tokenizer.encode(prompt)], max_new_tokens=n, adapter=adapter
    )
    return model.tokenizer.decode(ids).strip("\n").split("\n")[0].rstrip("\ufffd")


def run(args: argparse.Namespace) -> None:
    text = Path(args.text).read_text(encoding="utf-8-sig")
    trained, held_out = split(text)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    path, adapter_path = out / "train.txt", out / "slqm.gguf"
    path.write_text("\n".join(trained) + "\n", encoding="utf-8")
    log: list[dict[str, Any]] = []

    def tell(**row: Any) -> None:
        log.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)

    model = nbllama.load_model(args.model)
    # the same number of trained paragraphs, evenly spread over the text
    parts = {"held_out": "\n".join(held_out), "trained": "\n".join(trained[::9])}
    tell(
        step="data", paragraphs=len(trained) + len(held_out), held_out=len(held_out),
        characters=len(text), tokens=len(model.tokenizer.encode(path.read_text("utf-8"))),
    )  # fmt: skip
    tell(step="before", **{f"perplexity_{k}": perplexity(model, None, v) for k, v in parts.items()})
    seconds = train(args, path, adapter_path)
    adapter = nbllama.load_adapter(adapter_path, model)
    tell(
        step="train", model=Path(args.model).name, iterations=args.iterations, batch=args.batch,
        ctx=args.ctx, rank=args.rank, rate=args.rate, seconds=round(seconds, 1),
    )  # fmt: skip
    tell(
        step="after", **{f"perplexity_{k}": perplexity(model, adapter, v) for k, v in parts.items()}
    )
    for prompt in (args.prompt, args.question):
        for scale in SCALES:
            scaled = None if scale == 0 else replace(adapter, alpha=adapter.alpha * scale)
            tell(step="answer", prompt=prompt, scale=scale, text=continued(model, scaled, prompt))
    if args.log:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in log)
        Path(args.log).write_text(rows, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", help="a UTF-8 text with one paragraph per line")
    parser.add_argument("--model", required=True, help="base model (.gguf)")
    parser.add_argument("--out", default="slqm-out", help="folder for the adapter")
    parser.add_argument("--log", help="write all results to this file, one JSON object per line")
    parser.add_argument("--prompt", default=VERSE, help="a line of the text to continue")
    parser.add_argument("--question", default=QUESTION, help="the same as a question")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ctx", type=int, default=128)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    try:
        run(parser.parse_args(argv))
    except NbllamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except subprocess.CalledProcessError as e:
        return int(e.returncode)
    except (OSError, UnicodeDecodeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
