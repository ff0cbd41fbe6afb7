"""Options for validation and early stopping, and options from the old finetune."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf

from nbllama.options.file_names import File
from nbllama.options.parser import Saved, option
from nbllama.options.values import Choice, Real, Whole

_val = partial(option, "Validation and samples")
_stop = partial(option, "Early stopping")
_old = partial(option, "Compatibility with the old finetune")


@dataclass(frozen=True)
class EndOptions:
    """Options for evaluations and early stopping, and options from the old finetune."""

    val_data: str = _val(
        File(),
        "",
        "validation data, read in the same way as --train-data; the adapter with the lowest "
        "validation loss is saved under the --lora-out name, with BEST instead of ITERATION",
        shown_default="none",
        file="reads",
    )
    val_split: float | None = _val(
        Real(0, 1, below=True),
        None,
        "hold out this share of --train-data for validation; 0: none",
        shown_default="none; for 50 records or more, a tenth (at most 100)",
        saved=Saved(36, taken=True, may_change=True),
        without=0.0,
    )
    eval_every: int | None = _val(
        Whole(1),
        None,
        "number of iterations between evaluations",
        shown_default="a tenth of the run, at least 5",
        saved=Saved(35, taken=True, may_change=True),
    )
    early_stop: int | None = _val(
        Whole(),
        None,
        "stop after this many evaluations without a new lowest loss; 0: off",
        shown_default="off; 4 for records if --val-split is not given",
        saved=Saved(37, taken=True, may_change=True),
    )
    answers: int | None = _val(
        Whole(0, 100),
        None,
        "number of questions to answer from each of the training and validation sets, before and "
        "after the run; 0: none",
        shown_default="3 for records, else 0",
    )
    sample_prompts: str = _val(
        File(),
        "",
        "file of prompts, one per line, to answer with greedy decoding at each evaluation",
        shown_default="none",
        file="reads",
    )
    sample_tokens: int = _val(
        Whole(1, 4096), 48, "maximum length of answers to --sample-prompts, in tokens"
    )

    opt_past: int = _stop(
        Whole(0, 1 << 20),
        0,
        "compare the loss with its value this many iterations earlier (see --opt-delta); 0: off",
    )
    opt_delta: float = _stop(
        Real(-inf), 1e-5, "relative change in the loss below which --opt-past stops the run"
    )
    opt_max_no_improvement: int = _stop(
        Whole(-(2**31)), 0, "stop after this many iterations without a new lowest loss; 0: off"
    )
    adam_epsf: float = _stop(
        Real(-inf), 0.0, "stop when the loss changes by less than this fraction; 0: off"
    )

    compat: bool = _old(
        None,
        False,
        "reproduce llama.cpp's 2024 finetune program, including its quirks and defaults",
        saved=Saved(26),
    )
    checkpoint_order: str | None = _old(
        Choice(("left", "right")),
        None,
        "evaluation order of the compute graph in the run that wrote an old checkpoint",
        shown_default="detected from the moments in the checkpoint",
    )
    n_gpu_layers: int = _old(
        Whole(-(2**31)), 0, "must be 0, because this trainer runs on the CPU", also=["-ngl"]
    )
    use_flash: bool | None = _old(
        None, None, "no effect", off=["--no-flash"], shown_default="not given"
    )
