"""Options for validation and early stopping, and options from the old finetune."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf

from nbllama.options.parser import Saved, option
from nbllama.options.values import Choice, Real, Text, Whole

_val = partial(option, "Validation and samples")
_stop = partial(option, "Early end")
_old = partial(option, "Coming from the old finetune")


@dataclass(frozen=True)
class EndOptions:
    """Options for evaluations and early stopping, and options from the old finetune."""

    val_data: str = _val(
        Text(),
        "",
        "validation data, read like --train-data; the adapter with the lowest loss on it is kept"
        " as BEST",
        shown_default="none",
        file="reads",
    )
    val_split: float | None = _val(
        Real(0, 1, below=True),
        None,
        "hold out this share of --train-data for validation; 0: none",
        shown_default="none; for 50 records or more a tenth, at most 100 of them",
        saved=Saved(36, taken=True, may_change=True),
        without=0.0,
    )
    eval_every: int | None = _val(
        Whole(1),
        None,
        "iterations between two evaluations",
        shown_default="a tenth of the run, at least 5",
        saved=Saved(35, taken=True, may_change=True),
    )
    early_stop: int | None = _val(
        Whole(),
        None,
        "end after this many evaluations without a new lowest loss; 0: off",
        shown_default="off; 4 for records if --val-split is not given",
        saved=Saved(37, taken=True, may_change=True),
    )
    answers: int | None = _val(
        Whole(0, 100),
        None,
        "questions from the training data, and as many from the validation data, that are answered "
        "before and after the run; 0: none",
        shown_default="3 for records, else 0",
    )
    sample_prompts: str = _val(
        Text(),
        "",
        "file of prompts, one per line, that are answered greedily at each evaluation",
        shown_default="none",
        file="reads",
    )
    sample_tokens: int = _val(Whole(1, 4096), 48, "longest answer to --sample-prompts, in tokens")

    opt_past: int = _stop(
        Whole(0, 1 << 20),
        0,
        "for --opt-delta, compare the loss with that of this many iterations ago; 0: off",
    )
    opt_delta: float = _stop(
        Real(-inf), 1e-5, "relative change of the loss below which --opt-past ends the run"
    )
    opt_max_no_improvement: int = _stop(
        Whole(-(2**31)), 0, "end after this many iterations without a new lowest loss; 0: off"
    )
    adam_epsf: float = _stop(
        Real(-inf), 0.0, "end when the loss changes by less than this fraction; 0: off"
    )

    compat: bool = _old(
        None,
        False,
        "compute as llama.cpp's finetune of 2024 did, quirks and defaults included",
        saved=Saved(26),
    )
    checkpoint_order: str | None = _old(
        Choice(("left", "right")),
        None,
        "evaluation order of the run that wrote an old checkpoint",
        shown_default="detected from its moments",
    )
    n_gpu_layers: int = _old(
        Whole(-(2**31)), 0, "only 0 is allowed: this trainer computes on the CPU", also=["-ngl"]
    )
    use_flash: bool | None = _old(
        None, None, "no effect", off=["--no-flash"], shown_default="not given"
    )
