"""The time of a step on one worker, compared with a run without Ray. Needs a quiet machine."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from nbllama.kernels.cores import physical_cores
from scripts.many_parts.runs import Run

# the demo model, 8 blocks of 4 samples with 256 tokens per step
STEP = ["--ctx", "256", "--batch", "4", "--grad-acc", "8", "--block", "1"]


def seconds(run: Run) -> list[float]:
    """Return the times of a run's steps, without the first one."""
    run.bits()
    lines = (run.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["seconds"] for row in rows if "loss" in row and "event" not in row][1:]


def overhead(folder: Path, model: str, rounds: int, steps: int = 4) -> list[str]:
    """Run without Ray and with one worker in turn; compare medians of all steps."""
    times: dict[str, list[float]] = {"": [], "local:1": []}
    for i in range(rounds):
        for ray, own in times.items():
            more = [*STEP, "--threads", str(physical_cores()), "--model-base", model]
            own += seconds(Run(folder, f"time{i}-{ray[:5]}", steps, *more, ray=ray))
    plain, with_ray = median(times[""]), median(times["local:1"])
    return [
        f"overhead | a step of the demo model, 256 x 4, 8 blocks, medians of {len(times[''])}: "
        f"{plain:.2f} s without Ray, {with_ray:.2f} s with local:1 | "
        f"{100 * (with_ray / plain - 1):+.1f} % | -"
    ]
