"""The table of docs/which-model.md: memory and time of a training run by model size.

Memory is the `--dry-run` forecast for a sparse random model of the shape (`make_random_model.py
--sparse`): it is a sum of array sizes, so other programs on the machine do not affect it. Time is
not from that forecast, which measures this machine in its current state. It is computed from the
throughput in docs/results/bench.json, in products per second, which hardly depends on model size.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CTX, BATCH, RANK = 256, 4, 16
TOKENS = 100_000
# Name, example model, arguments for make_random_model, parameters in billions.
MODELS = (
    ("0.5B", "Qwen 2.5 0.5B", "qwen2 896 24 14 2 4864 151936 tied", 0.49),
    ("1.5B", "Qwen 2.5 1.5B", "qwen2 1536 28 12 2 8960 151936 tied", 1.54),
    ("3B", "Llama 3.2 3B", "llama 3072 28 24 8 8192 128256 tied", 3.21),
    ("8B", "Llama 3 8B", "llama 4096 32 32 8 14336 128256 untied", 8.03),
    ("13B", "LLaMA 2 13B", "llama 5120 40 40 40 13824 32000 untied", 13.02),
)
SIZES = ("n-embd", "n-layer", "n-head", "n-head-kv", "n-ff", "n-vocab")


def run(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"error: {done.stderr.strip()}")
    return done.stdout


def tokens_per_second(billions: float) -> float:
    """Return the expected throughput with checkpointing, from docs/results/bench.json."""
    bench = json.loads((ROOT / "docs" / "results" / "bench.json").read_text(encoding="utf-8"))
    measured = [
        row["gflops"]
        for row in (*bench["step"], *bench["models"])
        if row["checkpointing"] and row["threads"] == 2 and row["ctx"] * row["batch"] >= 256
    ]
    return float(statistics.median(measured) / (4 * billions))


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def row(name: str, like: str, shape: str, billions: float, kind: str) -> str:
    arch, *sizes, tied = shape.split()
    with tempfile.TemporaryDirectory() as folder:
        model, text = Path(folder, "model.gguf"), Path(folder, "text.txt")
        text.write_text("the hen and the heron are on the other end of it\n" * 90, encoding="utf-8")
        words = [w for pair in zip(SIZES, sizes, strict=True) for w in (f"--{pair[0]}", pair[1])]
        words += [
            "--arch",
            arch,
            "--type",
            kind,
            "--mix",
            "--sparse",
            *["--tied"] * (tied == "tied"),
        ]
        run("scripts/tools/make_random_model.py", model, *words)
        size = model.stat().st_size / 1e9
        out = run(
            "-m", "nbllama.finetune", "--model-base", model, "--train-data", text, "--dry-run",
            "--ctx", str(CTX), "--batch", str(BATCH), "--lora-r", str(RANK), "--threads", "2",
        )  # fmt: skip
    memory = re.search(r"^memory +([\d.]+ [KMG]B)", out, re.MULTILINE)
    if memory is None:
        raise SystemExit(f"error: no forecast in\n{out}")
    speed = tokens_per_second(billions)
    return (
        f"| {name} ({like}) | {kind}, {size:.2f} GB | {memory[1]} | {speed:.0f} tokens/s "
        f"| {hours(TOKENS / speed)} |"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--model", choices=[m[0] for m in MODELS], help="only this size")
    given = p.parse_args()
    print(f"| model | file | memory | throughput | {TOKENS:,} tokens |")
    print("|---|---|---:|---:|---:|")
    for name, like, shape, billions in MODELS:
        if given.model in (None, name):
            print(row(name, like, shape, billions, "Q4_K"), flush=True)


if __name__ == "__main__":
    main()
