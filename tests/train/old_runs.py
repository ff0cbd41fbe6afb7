"""The golden runs of the real old tool, in tests/golden, as command lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nbllama.gguf_io import GGUFFile, ValueType, open_gguf, write_gguf
from tests.conftest import GOLDEN

RUNS = {
    "a": (
        "tiny-q8_0.gguf",
        "--ctx 32 --batch 4 --seed 7 --lora-r 4 --warmup 10 --adam-alpha 2e-3 --use-checkpointing",
    ),
    "b": (
        "tiny-q4_k.gguf",
        r"--sample-start \n\n --escape --fill-with-next-samples --separate-with-eos"
        " --sample-random-offsets --ctx 48 --batch 2 --grad-acc 2 --seed 21 --lora-r 6 --rank-wq 3"
        " --rank-ffn-norm 1 --warmup 3 --cos-decay-steps 8 --enable-restart --adam-alpha 3e-3"
        " --adam-decay 0.05 --adam-gclip 0.5 --no-checkpointing",
    ),
}


def words(run: str, out: Path, checkpoint: str | Path, *more: str) -> list[str]:
    """Options of a golden run that continues `checkpoint` (a name in `GOLDEN`, or a path)."""
    model, options = RUNS[run]
    return [
        "--model-base", str(GOLDEN / model), "--train-data", str(GOLDEN / "hamlet.txt"),
        *options.split(" "), "--checkpoint-in", str(GOLDEN / checkpoint), "--checkpoint-out",
        str(out / "chk-ITERATION.gguf"), "--lora-out", str(out / "lora-ITERATION.gguf"),
        "--log", str(out / "log.jsonl"), *more,
    ]  # fmt: skip


def printed_losses(log: Path) -> dict[int, float]:
    """Loss by iteration as the old tool printed it; its first line has none."""
    rows = re.findall(r"iter= *(\d+) .* loss=([0-9.]+)", log.read_text(encoding="utf-8"))
    return {int(i): float(loss) for i, loss in rows[1:]}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file of F32, flat; the old writer drops a dimension of 1."""
    with open_gguf(path) as f:
        return {t.name: f.data(t.name).view(np.float32).copy() for t in f.tensors.values()}


def movement(got: Path, start: Path, end: Path) -> dict[str, float]:
    """For each LoRA tensor: RMS of got - end over RMS of end - start."""
    mine, first, last = tensors(got), tensors(start), tensors(end)
    names = [name for name in last if ".lora_" in name]
    assert names and set(names) <= set(mine)
    return {
        n: float(np.linalg.norm(mine[n] - last[n]) / np.linalg.norm(last[n] - first[n]))
        for n in names
    }


def forged(
    source: Path, path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> Path:
    """A copy of an old checkpoint with keys (name -> (value, type)) and tensors changed."""
    with open_gguf(source) as f:
        entries = {k: (v, t) for k, v, t in f.entries()}
        arrays = {
            t.name: f.data(t.name).view(np.float32).reshape(t.shape).copy()
            for t in f.tensors.values()
        }
    change(entries, arrays)
    write_gguf(path, [(k, *v) for k, v in entries.items()], list(arrays.items()))
    return path


def counters(path: Path) -> dict[str, object]:
    """The position of a run that both programs store."""
    with open_gguf(path) as f:
        return {key: value for key, value in f.metadata.items() if _is_counter(f, key)}


def _is_counter(f: GGUFFile, key: str) -> bool:
    kinds = (ValueType.UINT64, ValueType.STRING)
    return (
        key.startswith(("training.", "optimizer.iteration"))
        and key != "training.shuffle.samples_hash"
        and dict((k, t) for k, _, t in f.entries())[key] in (*kinds, ValueType.UINT32)
    )
