"""The step: learning rate and optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.opt.names import OPTIMISERS
from nbllama.opt.schedule import SCHEDULES
from nbllama.options.parser import option
from nbllama.options.values import Choice, Real, Whole

_rate = partial(option, "Learning rate")
_adam = partial(option, "Optimiser")

_OTHERS = [row for row in OPTIMISERS.values() if row.rate_divisor != 1]
_RATE = "".join(f"; divided by {row.rate_divisor:g} with {row.name}" for row in _OTHERS)
_OTHERS = [row for row in OPTIMISERS.values() if row.beta2 != OPTIMISERS["adamw"].beta2]
_BETA2 = "".join(f"; {row.beta2:g} with {row.name}" for row in _OTHERS)


@dataclass(frozen=True)
class RateOptions:
    """The learning rate over the iterations."""

    adam_alpha: float | None = _rate(
        Real(above=True),
        None,
        "learning rate at its highest",
        also=["--lr", "--learning-rate"],
        first="--lr",
        shown_default=f"0.001 for plain text, 0.0002 for chat{_RATE}",
    )
    lr_schedule: str = _rate(
        Choice(tuple(SCHEDULES)), "cosine", "how the rate falls; wsd: warm-up, stable, decay"
    )
    wsd_decay: float = _rate(
        Real(0, 1, above=True),
        0.1,
        "share of the iterations up to the decay's end in which wsd falls",
    )
    loraplus_lr_ratio: float = _rate(
        Real(above=True), 1.0, "rate of the Bs of all pairs / rate of their As (LoRA+)"
    )
    adam_min_alpha: float = _rate(Real(), 0.0, "lowest learning rate, also during warm-up")
    warmup: int | None = _rate(
        Whole(),
        None,
        "iterations in which the rate rises from its lowest",
        shown_default="100 for plain text, 3 % of the run for chat",
    )
    cos_decay_steps: int | None = _rate(
        Whole(1),
        None,
        "iteration at which the decay has reached its end",
        also=["--lr-decay-steps"],
        first="--lr-decay-steps",
        shown_default="1000 for plain text with cosine, else the run's last",
    )
    cos_decay_min: float | None = _rate(
        Real(0, 1),
        None,
        "end of the decay, as a fraction of the rate",
        also=["--lr-decay-min"],
        first="--lr-decay-min",
        shown_default="0.1 for plain text with cosine, else 0",
    )
    enable_restart: bool = _rate(
        None,
        False,
        "start the cosine again when it has ended",
        off=["--disable-restart"],
    )
    cos_decay_restart: float = _rate(Real(1), 1.1, "factor on the decay's length at each restart")


@dataclass(frozen=True)
class OptimiserOptions:
    """From a gradient to a step."""

    optimizer: str = _adam(Choice(tuple(OPTIMISERS)), "adamw", "how a gradient becomes a step")
    adam_decay: float = _adam(
        Real(),
        0.1,
        "weight decay, a factor on the learning rate",
        also=["--weight-decay"],
        first="--weight-decay",
    )
    adam_decay_min_ndim: int = _adam(
        Whole(), 2, "decay only tensors with at least so many dimensions"
    )
    adam_beta1: float = _adam(
        Real(0, 1, below=True), 0.9, "decay rate of the first moment; momentum of sgd"
    )
    adam_beta2: float | None = _adam(
        Real(0, 1, below=True),
        None,
        "decay rate of the second moment, or of lion's mean",
        shown_default=f"{OPTIMISERS['adamw'].beta2:g}{_BETA2}",
    )
    adam_gclip: float = _adam(
        Real(),
        1.0,
        "limit of the gradient's norm; 0: none",
        also=["--grad-clip"],
        first="--grad-clip",
    )
