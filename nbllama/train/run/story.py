"""Log rows for the start and the end of a run."""

from __future__ import annotations

import itertools
import os
from datetime import datetime
from typing import Any

import numpy as np

from nbllama import __version__
from nbllama.data.prompts import Prompts
from nbllama.system.memory import peak_resident
from nbllama.train.forecast import Forecast
from nbllama.train.run.clock import Clock
from nbllama.train.run.session import RunSession

_BARS = 20  # maximum number of bars in the histogram of sample lengths


def begun(
    session: RunSession, expected: Forecast, options: dict[str, Any], words: list[str]
) -> dict[str, Any]:
    """Return the `run` row: the model, data and options of the run, and the forecast."""
    trainer, hp = session.trainer, session.model.hp
    return {
        "event": "run",
        "iter": trainer.iteration,
        "n_iter": trainer.iteration + session.settings.n_iter,
        "version": __version__,
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "model": os.path.basename(session.options.model_base),
        "words": words,
        "data": {
            "model": f"{hp.arch}, {hp.n_layer} layers",
            "trained parameters": f"{trainer.adapter.n_parameters:,}",
            **data_numbers(session),
        },
        "forecast": {"seconds": expected.seconds, "peak_bytes": expected.peak},
        "options": options,
    }


def data_numbers(session: RunSession) -> dict[str, Any]:
    """Return the size of the training data and a histogram of the sample lengths."""
    data, other = session.data, session.validation
    name = os.path.basename(session.options.train_data.rstrip("/" + os.sep))
    if isinstance(data, Prompts):
        return {"data": name, "kind": data.format, **data.numbers()}
    tokens, trained = data.lengths()
    edges = np.unique(np.linspace(tokens.min(), tokens.max() + 1, _BARS + 1).astype(np.int64))
    counts, _ = np.histogram(tokens, edges)
    names = [f"{a}-{b - 1}" if b - a > 1 else f"{a}" for a, b in itertools.pairwise(edges)]
    share = trained.sum() / tokens.sum()
    return {
        "data": name,
        "kind": getattr(data, "format", data.kind),
        "samples": data.n_samples,
        "samples for validation": other.n_samples if other is not None else 0,
        "tokens of all samples": int(tokens.sum()),
        "trained of them": f"{int(trained.sum())} ({100 * share:.0f} %)",
        "tokens of a sample": f"{tokens.mean():.0f} on average, {tokens.max()} at most",
        "lengths": [[name, int(n)] for name, n in zip(names, counts, strict=True)],
    }


def ended(iteration: int, clock: Clock, reason: str) -> dict[str, Any]:
    """Return the `end` row; `reason` is "" if all iterations were completed."""
    row = {"event": "end", "iter": iteration, **clock.row(), "reason": reason}
    return row | {"peak_bytes": peak_resident()}
