"""The start-up time: import, a start without compiled kernels, and the next start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def first_step(model: str, cache: str, folder: str) -> tuple[float, bool]:
    """Return the seconds from the start of the process to its first iteration, and whether it
    reported compilation before that.
    """
    text = Path(folder) / "data.txt"
    text.write_text("once upon a time there was a small bench. " * 2000, encoding="utf-8")
    words = [sys.executable, "-u", "-m", "nbllama.finetune", "--model-base", model]
    words += ["--train-data", str(text), "--ctx", "64", "--batch", "1", "--adam-iter", "1"]
    words += ["--force"]
    words += ["--lora-out", f"{folder}/out.gguf", "--checkpoint-out", f"{folder}/checkpoint.gguf"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    env |= {"NBLLAMA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    start, compiled = time.perf_counter(), False
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    ) as run:
        assert run.stdout is not None
        lines = []
        for line in run.stdout:
            lines.append(line)
            compiled = compiled or line.startswith("compiling")
            if "loss" in line and "iter" in line:
                seconds = time.perf_counter() - start
                for _ in run.stdout:
                    pass
                return seconds, compiled
    raise RuntimeError(f"no iteration was printed: {lines[-1:]}")


def import_time() -> float:
    """Return the seconds of `import nbllama` in a new process, measured inside the process: the
    start of Python itself takes longer and varies more.
    """
    code = "from time import perf_counter as t; a = t(); import nbllama; print(t() - a)"
    words, env = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
    return float(subprocess.run(words, check=True, env=env, capture_output=True, text=True).stdout)


def bench_start(model: str) -> Iterator[dict[str, Any]]:
    yield {
        "what": "import nbllama",
        "seconds": median(import_time() for _ in range(9)),
        "told": True,
    }
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        for what in ("first start", "second start"):
            seconds, compiled = first_step(model, cache, folder)
            Path(folder, "checkpoint.gguf").unlink(missing_ok=True)
            yield {"what": what, "seconds": seconds, "told": compiled}
