"""The time of a step on one worker, compared with a run without Ray. Needs a quiet machine."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from nbllama.kernels.cores import physical_cores, use_threads
from nbllama.options.finetune.table import parse
from nbllama.train.run.given import Given
from nbllama.train.run.many import many_machines
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.screen import Silent
from nbllama.train.run.session import RunSession
from nbllama.train.run.stop import StopFlag

# the demo model, 8 blocks of 4 samples with 256 tokens per step
STEP = ["--ctx", "256", "--batch", "4", "--grad-acc", "8", "--block", "1", "--ray", "local:1"]


def overhead(folder: Path, model: str, pairs: int) -> list[str]:
    """Compute steps of one run here and on the worker in turn; compare each pair of steps."""
    use_threads(physical_cores())
    words = [*STEP, "--model-base", model, "--train-data", str(folder / "text.txt"), "--seed", "1"]
    words += ["--adam-iter", str(2 * pairs + 4), "--warmup", "2", "--checkpoint-in", ""]
    words += ["--checkpoint-out", "", "--lora-out", "", "--answers", "0"]
    options = parse(words)
    session = RunSession(
        options, words, physical_cores(), outputs=Outputs(options), ui=Recorder(Silent()),
        stop=StopFlag("SIGINT"), given=Given(),
    )  # fmt: skip
    trainer, here = session.trainer, session.trainer.steps
    times: dict[str, list[float]] = {"here": [], "ray": []}
    with many_machines(session):
        kinds = {"here": here, "ray": trainer.steps}
        for i in range(pairs + 1):
            for name in ("here", "ray") if i % 2 else ("ray", "here"):
                trainer.steps = kinds[name]
                start = time.perf_counter()
                trainer.step()
                if i:  # the first pair may compile kernels
                    times[name].append(time.perf_counter() - start)
        trainer.steps = kinds["ray"]
    ratios = [b / a for a, b in zip(times["here"], times["ray"], strict=True)]
    fastest = min(times["ray"]) / min(times["here"])
    return [
        f"overhead | a step of the demo model, 256 x 4, 8 blocks, {pairs} pairs in turn: "
        f"{median(times['here']):.2f} s without Ray, {median(times['ray']):.2f} s with local:1; "
        f"ratios {min(ratios):.3f} to {max(ratios):.3f}, of the fastest steps {fastest:.3f} | "
        f"{100 * (median(ratios) - 1):+.1f} % | -"
    ]
