"""Runs that are stopped and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.train.runs import logged
from tests.train.toy_runs import log_rows

# 2 x 2 samples an iteration: the 52 samples of the text end within iteration 13.
MORE = ["--batch", "2", "--grad-acc", "2", "--save-every", "10"]
KEPT = ("iter", "epoch", "loss", "lr", "grad_norm", "tokens", "skipped")


def args_in(folder: Path, n_iter: int, *more: str) -> list[str]:
    return logged(folder, n_iter, *MORE, *more)


def results(folder: Path, iteration: int) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Whole files of an iteration, and the log's numbers up to it by iteration."""
    rows = {row["iter"]: {k: row[k] for k in KEPT} for row in log_rows(folder / "log.jsonl")}
    chk, lora = ((folder / f"{k}-{iteration}.gguf").read_bytes() for k in ("chk", "lora"))
    return chk, lora, [rows[i] for i in range(1, iteration + 1)]
