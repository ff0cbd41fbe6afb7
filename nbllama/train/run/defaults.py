"""Defaults that depend on the training data.

This module also derives the values that are needed before the settings exist: context, iterations
and ranks.

For plain text, the defaults are the same as in the old llama.cpp `finetune`. Defaults that depend
on the number of records are in `nbllama.train.run.plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from nbllama.errors import UsageError
from nbllama.lora.slots import EVERY_SLOT
from nbllama.options.data import DataOptions
from nbllama.options.finetune.table import Options

SHORT = 10  # in a shorter run, no iteration should be lost to a learning rate of 0


@dataclass(frozen=True)
class Defaults:
    """The defaults for one kind of data."""

    ctx: int
    lora_r: int
    alpha_per_r: int  # lora_alpha = alpha_per_r * lora_r
    train_ends: bool  # whether token_embd and output (if untied) have pairs
    cos_decay_min: float
    warmup: int | float  # number of iterations, or share of the run
    cos_decay_steps: int | None  # None means the last iteration
    adam_iter: int | None


DEFAULTS: dict[str, Defaults] = {
    "raw": Defaults(
        ctx=128,
        lora_r=4,
        alpha_per_r=1,
        train_ends=True,
        cos_decay_min=0.1,
        warmup=100,
        cos_decay_steps=1000,
        adam_iter=256,
    ),
    "chat": Defaults(
        ctx=512,
        lora_r=16,
        alpha_per_r=2,
        train_ends=False,
        cos_decay_min=0.0,
        warmup=0.03,
        cos_decay_steps=None,
        adam_iter=None,
    ),
}


def context(options: DataOptions, data_kind: str) -> int:
    """Return `--ctx`, or its default for the kind of data.

    The value is needed to split the data, before the settings exist.
    """
    return options.ctx if options.ctx is not None else DEFAULTS[data_kind].ctx


def iterations(
    options: Options,
    data_kind: str,
    n_samples: int,
    walk: Callable[[int], int] | None = None,
) -> int:
    """Return the number of iterations from `--adam-iter`, `--epochs` and the defaults.

    `options` must already include the plan. If both limits are given, the lower one applies. A pass
    over the data takes `ceil(n_samples / (batch * grad_acc))` iterations; the last one may have
    fewer samples. If this formula does not hold, `walk` converts passes to iterations. With
    `--compat`, the default of `--adam-iter` also limits `--epochs`.
    """
    adam_iter = options.adam_iter
    epochs = options.epochs if options.epochs is None or options.epochs > 0 else None
    if adam_iter is None and (options.epochs is None or options.compat):
        adam_iter = DEFAULTS[data_kind].adam_iter
    limits = [] if adam_iter is None else [adam_iter]
    if epochs is not None and walk is not None:
        limits.append(walk(epochs))
    elif epochs is not None:
        limits.append(epochs * math.ceil(n_samples / (options.batch * options.grad_acc)))
    if not limits:
        raise UsageError("the run would never end: pass --adam-iter, or --epochs above 0")
    return min(limits)


def follows_length(options: Options, data_kind: str) -> bool:
    """Return whether the decay spans the whole run if `--lr-decay-steps` is not given."""
    if options.lr_schedule == "constant" or options.enable_restart:
        return False
    return options.lr_schedule != "cosine" or DEFAULTS[data_kind].cos_decay_steps is None


def with_the_run(total: int, begin: int = 0) -> int:
    """Return the end of a decay that covers the run, from iteration `begin` + 1 to `total`.

    The decay ends at the last iteration, whose learning rate is then 0. In a run of fewer than
    `SHORT` iterations, the decay ends one iteration later, so that the last iteration still learns.
    """
    return total + 1 if total - begin < SHORT else total


def decay_end(options: Options, data_kind: str, total: int) -> int:
    """Return the iteration at which the decay ends in a new run of `total` iterations."""
    own = DEFAULTS[data_kind].cos_decay_steps if options.lr_schedule == "cosine" else None
    fitted = with_the_run(total) if follows_length(options, data_kind) else total
    return options.cos_decay_steps or own or fitted


def slot_ranks(
    options: Options, data_kind: str, lora_r: int, missing: Collection[str]
) -> dict[str, int]:
    """Return the rank of each slot: the given rank, or the default for this kind of data.

    `missing` lists the slots for which the model contains no tensor.
    """
    ends = lora_r if DEFAULTS[data_kind].train_ends and "out" not in missing else 0
    norm = 1 if options.compat or options.lora_out.lower().endswith(".bin") else 0
    defaults = {}
    for slot in EVERY_SLOT:
        of_kind = norm if slot.kind == "norm" else lora_r if slot.in_block else ends
        if slot.kind == "experts":
            of_kind = options.rank_experts or 0
        defaults[slot.name] = 0 if slot.name in missing else of_kind
    given = {name: getattr(options, f"rank_{name}") for name in defaults}
    return {
        name: default if given[name] is None else given[name] for name, default in defaults.items()
    }
