"""Timing of llama.cpp's old `finetune` by the lines that it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_parts.step import Case, work_of
from nbllama.model.passes import load_model

CTX, BATCH = 64, 4


def lines_of(words: list[str], folder: str) -> Iterator[str]:
    """Yield the lines of a program as it prints them, through a pseudo-terminal. Into a pipe, a C
    program writes whole buffers, and all lines would arrive at its end.

    Raises RuntimeError on systems without pseudo-terminals (Windows), and for an exit code other
    than 0.
    """
    if sys.platform == "win32":
        raise RuntimeError("the old finetune can be timed on Linux and macOS only")
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=folder,
        env=os.environ | {"LC_ALL": "C"},
    ) as run, open(ours, "rb", buffering=0) as terminal:  # fmt: skip
        os.close(theirs)
        rest = b""
        while True:
            try:
                data = terminal.read(65536)
            except OSError:  # EIO: on Linux, the end of a terminal
                break
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
    if run.returncode:
        raise RuntimeError(f"{words[0]} ended with code {run.returncode}: {rest[-200:]!r}")


def bench_old(program: str, model_path: str, checkpointing: bool, threads: int) -> dict[str, Any]:
    """Measure the tokens/s of llama.cpp's `finetune`, ctx 64 x 4, from the time between iterations
    2 and 4 of its log. `gflops` counts the necessary work of a step.
    """
    at: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "data.txt"
        text.write_text("once upon a time there was a small bench. " * 2000, encoding="utf-8")
        words = [program, "--model-base", str(Path(model_path).resolve())]
        words += ["--train-data", str(text), "-t", str(threads), "--sample-start", " "]
        words += ["--ctx", str(CTX), "--batch", str(BATCH), "--adam-iter", "4"]
        words += ["--checkpoint-out", f"{folder}/c.gguf", "--lora-out", f"{folder}/l.bin"]
        words += ["--use-checkpointing" if checkpointing else "--no-checkpointing"]
        for line in lines_of(words, folder):
            if found := re.search(r"iter=\s*(\d+)", line):
                at.setdefault(int(found.group(1)), time.perf_counter())
    if not {2, 4} <= at.keys():
        raise RuntimeError(f"{program} printed no iterations 2 and 4")
    seconds = (at[4] - at[2]) / 2
    must, _ = work_of(load_model(model_path), Case(model_path, CTX, BATCH, 1, checkpointing))
    return {
        "checkpointing": checkpointing,
        "tokens_per_s": CTX * BATCH / seconds,
        "seconds": seconds,
        "gflops": must / seconds / 1e9,
    }
