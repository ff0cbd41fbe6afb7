"""Losses, gradients and moments that are not numbers (F14, F15)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

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


@fault("F14", "a loss, a moment or a parameter that is not a number")
def not_a_number(box: Box) -> Iterator[str]:
    """Three steps are skipped, exit 7, and what is saved is of before."""
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
            wrong = box.told(done, (7,)) or box.torn(folder)
            if skipped != [at + 1, at + 2, at + 3]:
                wrong = wrong or f"skipped: {skipped}"
            if box.reached(folder) != at // 3 * 3:
                wrong = wrong or f"saved after iteration {box.reached(folder)}"
            yield wrong or box.resumed(folder)
            shutil.rmtree(folder)


@fault("F15", "a spike of the loss")
def spike(box: Box) -> Iterator[str]:
    """There is no rule that skips such a step."""
    raise NotRun("the program has no rule that skips a finite loss")
    yield ""
