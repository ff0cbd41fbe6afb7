"""The table of docs/chinese-base-models.md: time and memory of 7B and 13B models, by `--dry-run`.

The model files are sparse (`make_random_model --sparse`), because a forecast needs only sizes and
types. Each model is forecast with one and with two threads, and times for more cores follow from
these two by Amdahl's law, which ignores the limit of the memory bandwidth.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT

MODELS = {
    "7B": ["--shape", "7b"],
    "Baichuan-2 13B": ["--arch", "baichuan", "--shape", "baichuan2-13b"],
}
TYPES, CORES = ("Q2_K", "Q4_K"), (2, 8, 32)
CTX, BATCH = 64, 4
TRIES, BUSY = 4, 0.7  # BUSY: largest time of two threads, relative to one thread


def run(*words: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {done.stderr.strip()}")
    return done.stdout


def forecast(model: Path, text: Path, threads: int) -> tuple[float, str]:
    """Return seconds per iteration and peak memory, as the program prints them."""
    out = run(
        "-m", "nbllama.finetune", "--model-base", model, "--train-data", text,
        "--ctx", str(CTX), "--batch", str(BATCH), "--use-checkpointing", "--threads", str(threads),
        "--dry-run",
    )  # fmt: skip
    seconds = re.search(r"^forecast +([\d.]+) s per iteration", out, re.MULTILINE)
    memory = re.search(r"^memory +([\d.]+ [KMG]B)", out, re.MULTILINE)
    if seconds is None or memory is None:
        raise SystemExit(f"error: no forecast in\n{out}")
    return float(seconds[1]), memory[1]


def undisturbed(model: Path, text: Path) -> tuple[float, float, str]:
    """Return the seconds with one and two threads, and memory; repeat while the machine is busy."""
    for _ in range(TRIES):
        (one, _), (two, memory) = (forecast(model, text, n) for n in (1, 2))
        if two < BUSY * one:
            return one, two, memory
    raise SystemExit(
        f"error: two threads took {two:.0f} s and one {one:.0f} s: the machine is busy"
    )


def on(cores: int, one: float, two: float) -> float:
    """Return the seconds on `cores` cores, given those on one and two cores (Amdahl's law)."""
    serial = max(0.0, 2 * two - one)
    return serial + (one - serial) / cores


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--model", choices=MODELS, help="only this model")
    given = p.parse_args()
    print("| model | weights | memory | 1 core | 2 cores | 8 cores | 32 cores |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        text, path = Path(folder, "text.txt"), Path(folder, "model.gguf")
        text.write_text("the hen and the heron are on the other end of it\n" * 40, encoding="utf-8")
        for name in [given.model] if given.model else MODELS:
            for kind in TYPES:
                words = [*MODELS[name], "--type", kind, "--mix", "--sparse"]
                run(ROOT / "scripts" / "tools" / "make_random_model.py", path, *words)
                size = path.stat().st_size / 1e9
                one, two, memory = undisturbed(path, text)
                times = " | ".join(f"{on(n, one, two):.0f} s" for n in (1, *CORES))
                print(f"| {name} | {kind}, {size:.2f} GB | {memory} | {times} |", flush=True)


if __name__ == "__main__":
    main()
