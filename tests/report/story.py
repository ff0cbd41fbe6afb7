"""The log of an invented run, in the format of the program."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

EVIL = "<script>document.title='broken'</script><img src=x onerror=alert(1)> \"quoted\" & 'so'"
CHINESE = "“人间清暑殿，天上广寒宫。”的下一句"


def run_row(at: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "event": "run", "iter": at, "n_iter": 120, "version": "9.9", "started": "2026-01-02 03:04",
        "model": f"SmolLM2 {EVIL}.gguf", "words": [],
        "data": {
            "data": "诗.jsonl", "samples": 132, "tokens of all samples": 41000,
            "lengths": [["1-50", 3], ["51-100", 40], ["101-150", 60], ["151-200", 29]],
        },
        "forecast": {"seconds": 1.4, "peak_bytes": 9e8},
        "options": {"lora-r": 16, "sample-start": EVIL, "lora-out": "适配器.gguf"},
    } | more  # fmt: skip


def step_row(i: int) -> dict[str, Any]:
    return {
        "iter": i, "n_iter": 120, "epoch": i // 40,
        "loss": 1 + 2 * math.exp(-i / 30) + 0.1 * (-1) ** i,
        "lr": 2e-4 * min(1, i / 10), "grad_norm": 1.5 / (1 + i / 50), "tokens": 900,
        "computed_tokens": 500,
        "tokens_per_s": 600.0 + 40 * (i % 7),
        "seconds": 1.5, "rss_bytes": 700_000_000 + 1_000_000 * i,
        "skipped": False,
    }  # fmt: skip


def evaluation_row(i: int, loss: float, best: bool) -> dict[str, Any]:
    answer = f"巍巍长庆寺，巍巍大兴宫。第{i}步 " + "long" * 60 if i else EVIL
    return {
        "event": "evaluation", "iter": i, "val_loss": loss, "perplexity": math.exp(loss),
        "train_loss": None if i == 0 else loss - 0.2, "best": best, "seconds": 2.0,
        "samples": [
            {"prompt": CHINESE, "answer": answer},
            {"prompt": EVIL, "answer": "line one\n\n  line two\tand a tab" if i else ""},
        ],
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    found = [run_row(), evaluation_row(0, 3.1, True)]
    for i in range(1, 121):
        found.append(step_row(i))
        if i % 30 == 0:
            found.append(evaluation_row(i, 1.4 + 1.6 * math.exp(-i / 25), i < 120))
    end = {"event": "end", "iter": 120, "seconds": 200.0, "reason": "", "peak_bytes": 850_000_000}
    return [*found, end]


def write_log(path: Path, lines: list[dict[str, Any]] | None = None) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in (rows() if lines is None else lines))
    path.write_text(text, encoding="utf-8")
    return path
