"""Losses, gradients and moments that are NaN (F14, F15)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nbllama.checkpoint.file import load_checkpoint
from nbllama.train.trainer import Trainer
from scripts.fault_parts.box import Box, NotRun, fault
from tests.train.toy_runs import log_rows


def _moment(t: Trainer) -> None:
    next(iter(t.opt.v.values())).reshape(-1)[0] = np.nan


def _parameter(t: Trainer) -> None:
    next(iter(t.adapter.parameters().values())).reshape(-1)[0] = np.inf


def _loss(t: Trainer) -> None:
    real = t.model.loss

    def bad(*args: Any, **more: Any) -> float:
        real(*args, **more)
        return float("nan")

    t.model.loss = bad  # type: ignore[method-assign]


def _not_finite(folder: Path) -> str:
    """Return an error for a checkpoint with a number that is not finite, else ""."""
    for path in folder.glob("chk-*.gguf"):
        state = load_checkpoint(path)
        for arrays in (state.adapter.parameters(), state.m, state.v):
            if not all(np.isfinite(x).all() for x in arrays.values()):
                return f"{path.name} is not finite"
    return ""


@fault("F14", "a loss, a moment or a parameter that is not a number")
def not_a_number(box: Box) -> Iterator[str]:
    """Expect skipped steps, exit 7, and only finite numbers in saved files."""
    for spoil in (_loss, _moment, _parameter):
        for at in (2, 5, 7) if box.full else (5,):
            folder = box.copy()

            def setup(spoil: Callable[[Trainer], None] = spoil, at: int = at) -> None:
                real = Trainer.step

                def step(self: Trainer, *args: Any) -> Any:
                    if self.iteration == at:
                        spoil(self)
                    return real(self, *args)

                Trainer.step = step  # type: ignore[method-assign]

            done = box.run(box.args(folder), folder, setup)
            skipped = [row["iter"] for row in log_rows(folder / "log.jsonl") if row["skipped"]]
            wrong = box.told(done, (7,))
            # a bad state is not saved: the run ends at the first save after the first such step
            if skipped != list(range(at + 1, at + 1 + len(skipped))) or not 1 <= len(skipped) <= 3:
                wrong = wrong or f"skipped: {skipped}"
            if spoil is _loss and len(skipped) != 3:
                wrong = wrong or f"{len(skipped)} skipped, not 3"
            yield wrong or _not_finite(folder)
            shutil.rmtree(folder)


@fault("F15", "a spike in the loss")
def spike(box: Box) -> Iterator[str]:
    """Report that this is not run: no rule skips such a step."""
    raise NotRun("nbllama does not skip steps with a finite loss")
    yield ""
