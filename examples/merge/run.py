"""Combine two adapters with scales, merge them, and check that llama.cpp generates the same text.

    python examples/merge/run.py --model MODEL.gguf [A.txt B.txt] [--out FOLDER] [--log FILE]

An adapter is trained on each text. Then nbllama completes a few prompts with both adapters at the
scales 0.4 and 0.8, and llama.cpp completes them with the merged model. The exit code is 1 if the
tokens differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbllama
from nbllama.errors import NbllamaError
from nbllama.lora.mix import mix

HERE = Path(__file__).resolve().parent
SCALES = (0.4, 0.8)
PROMPTS = ("Day 15.", "Take a pound of", "The old man went to")


def train(args: argparse.Namespace, text: str, adapter: Path) -> None:
    """Run `nbllama.finetune` on one text, as on the command line."""
    options = {
        "model-base": args.model, "train-data": text, "data-format": "raw", "lora-out": adapter,
        "checkpoint-in": "", "checkpoint-out": "", "ctx": args.ctx, "batch": args.batch,
        "adam-iter": args.iterations, "lora-r": args.rank, "lora-alpha": args.rank,
        "adam-alpha": args.rate, "warmup": max(1, args.iterations // 20),
        "cos-decay-steps": args.iterations, "seed": 1, "threads": args.threads,
    }  # fmt: skip
    program("finetune", "--force", *(f"--{name}={value}" for name, value in options.items()))


def merge(args: argparse.Namespace, adapters: Sequence[Path], merged: Path) -> None:
    """Run `nbllama.export_lora` with float32, which avoids rounding to another type."""
    words = ["-m", args.model, "-o", str(merged), "--outtype", "f32", "-t", str(args.threads)]
    for path, scale in zip(adapters, SCALES, strict=True):
        words += ["--lora-scaled", str(path), str(scale)]
    program("export_lora", *words)


def program(name: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", f"nbllama.{name}", *words], check=True)


def by_llama_cpp(model: Path, prompts: list[list[int]], args: argparse.Namespace) -> list[Any]:
    """Return the token ids that llama.cpp generates after each prompt (`greedy.py`)."""
    request = {"model": str(model), "prompts": prompts, "n": args.tokens, "threads": args.threads}
    done = subprocess.run(
        [sys.executable, str(HERE / "greedy.py")],
        input=json.dumps(request), capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise NbllamaError(f"llama.cpp failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])["answers"]


def agreement(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return the number of equal tokens at the beginning."""
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    return same


def run(args: argparse.Namespace) -> bool:
    """Run all steps; return whether llama.cpp and nbllama generated the same tokens."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    adapters, merged = [out / "a.gguf", out / "b.gguf"], out / "merged-f32.gguf"
    log: list[dict[str, Any]] = []

    def tell(**row: Any) -> None:
        log.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)

    for text, adapter in zip(args.texts, adapters, strict=True):
        train(args, text, adapter)
    merge(args, adapters, merged)

    model = nbllama.load_model(args.model)
    a, b = (nbllama.load_adapter(path, model) for path in adapters)
    mixed = mix([(a, SCALES[0]), (b, SCALES[1])])
    prompts = [model.tokenizer.encode(text, add_special=True) for text in args.prompt]
    theirs = by_llama_cpp(merged, prompts, args)
    agree = True
    for text, prompt, found in zip(args.prompt, prompts, theirs, strict=True):
        written = {}
        for name, adapter in {"base": None, "a": a, "b": b, "mixed": mixed}.items():
            # exact: the merged model is float32, so llama.cpp does not round activations either
            written[name] = nbllama.generate(model, prompt, args.tokens, adapter, exact=True)
            tell(step=name, prompt=text, text=model.tokenizer.decode(written[name]))
        found = [token for token in found if token not in model.tokenizer.eog_ids]
        tell(step="merged, llama.cpp", prompt=text, text=model.tokenizer.decode(found))
        same, ours = agreement(written["mixed"], found), written["mixed"]
        tell(step="agreement", prompt=text, tokens=len(ours), same=same)
        agree = agree and ours == found
    if args.log:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in log)
        Path(args.log).write_text(rows, encoding="utf-8")
    return agree


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    texts = [str(HERE / "logbook.txt"), str(HERE / "recipes.txt")]
    parser.add_argument("texts", nargs="*", default=texts, help="two UTF-8 text files")
    parser.add_argument("--model", required=True, help="base model (.gguf)")
    parser.add_argument("--out", default="merge-out", help="folder for adapters and merged model")
    parser.add_argument("--log", help="write all results to this file, one JSON object per line")
    parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="prompts to complete")
    parser.add_argument("--tokens", type=int, default=40, help="tokens per answer")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ctx", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    if len(args.texts) != 2:
        parser.error(f"{len(args.texts)} texts; pass two, or none to use those of the example")
    try:
        agree = run(args)
    except NbllamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except subprocess.CalledProcessError as e:
        return int(e.returncode)
    except OSError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    if not agree:
        print("error: llama.cpp and nbllama generated different tokens", file=sys.stderr)
        return 1
    print("llama.cpp with the merged file and nbllama with both adapters gave the same text.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
