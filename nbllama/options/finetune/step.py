"""Options for a training step: learning rate and optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.opt.names import OPTIMISERS
from nbllama.opt.schedule import SCHEDULES
from nbllama.options.parser import Saved, option
from nbllama.options.values import Choice, Real, Whole

_rate = partial(option, "Learning rate")
_adam = partial(option, "Optimiser")

_OTHERS = [row for row in OPTIMISERS.values() if row.rate_divisor != 1]
_RATE = "".join(f"; divided by {row.rate_divisor:g} with {row.name}" for row in _OTHERS)
_OTHERS = [row for row in OPTIMISERS.values() if row.beta2 != OPTIMISERS["adamw"].beta2]
_BETA2 = "".join(f"; {row.beta2:g} with {row.name}" for row in _OTHERS)


@dataclass(frozen=True)
class StepOptions:
    """Options for the learning rate schedule and the optimiser."""

    adam_alpha: float | None = _rate(
        Real(0, 1e3, above=True),
        None,
        "peak learning rate",
        also=["--lr", "--learning-rate"],
        first="--lr",
        shown_default=f"0.001 for plain text; for records, depends on the model size{_RATE}",
        saved=Saved(4, taken=True),
    )
    lr_schedule: str = _rate(
        Choice(tuple(SCHEDULES)),
        "cosine",
        "learning rate schedule; wsd: warm-up, stable, decay",
        saved=Saved(28),
        without="cosine",
    )
    wsd_decay: float = _rate(
        Real(0, 1, above=True),
        0.1,
        "final fraction of the schedule, during which wsd lowers the learning rate",
        saved=Saved(29),
    )
    loraplus_lr_ratio: float = _rate(
        Real(1e-6, 1e6),
        1.0,
        "ratio of B's learning rate to A's, for all pairs (LoRA+)",
        saved=Saved(32),
        without=1.0,
    )
    adam_min_alpha: float = _rate(
        Real(0, 1e3), 0.0, "minimum learning rate, including during warm-up", saved=Saved(5)
    )
    warmup: int | None = _rate(
        Whole(),
        None,
        "number of warm-up iterations, during which the learning rate rises from its minimum",
        shown_default="100 for plain text, 3 % of the run for chat",
        saved=Saved(11, taken=True),
    )
    cos_decay_steps: int | None = _rate(
        Whole(1),
        None,
        "iteration at which the decay ends",
        also=["--lr-decay-steps"],
        first="--lr-decay-steps",
        shown_default="1000 for plain text with cosine, else the last iteration of the run",
        saved=Saved(12, taken=True),
    )
    cos_decay_min: float | None = _rate(
        Real(0, 1),
        None,
        "learning rate at the end of the decay, as a fraction of --lr",
        also=["--lr-decay-min"],
        first="--lr-decay-min",
        shown_default="0.1 for plain text with cosine, else 0",
        saved=Saved(13, taken=True),
    )
    enable_restart: bool = _rate(
        None,
        False,
        "restart the cosine decay when it ends",
        off=["--disable-restart"],
        saved=Saved(15),
    )
    cos_decay_restart: float = _rate(
        Real(1, 1e3),
        1.1,
        "factor by which each restart multiplies the length of the decay",
        saved=Saved(14),
    )

    optimizer: str = _adam(
        Choice(tuple(OPTIMISERS)),
        "adamw",
        "optimiser to use",
        saved=Saved(27),
        without="adamw",
    )
    adam_decay: float = _adam(
        Real(0, 1e3),
        0.1,
        "weight decay, multiplied by the learning rate",
        also=["--weight-decay"],
        first="--weight-decay",
        saved=Saved(8),
    )
    adam_decay_min_ndim: int = _adam(
        Whole(),
        2,
        "apply weight decay only to tensors with at least this many dimensions",
        saved=Saved(9),
    )
    adam_beta1: float = _adam(
        Real(0, 1, below=True),
        0.9,
        "decay rate of the first moment; momentum of sgd",
        saved=Saved(6),
    )
    adam_beta2: float | None = _adam(
        Real(0, 1, below=True),
        None,
        "decay rate of the second moment, or of the moving average in lion",
        shown_default=f"{OPTIMISERS['adamw'].beta2:g}{_BETA2}",
        saved=Saved(7),
    )
    adam_gclip: float = _adam(
        Real(),
        1.0,
        "maximum gradient norm; 0: no limit",
        also=["--grad-clip"],
        first="--grad-clip",
        saved=Saved(10),
    )
