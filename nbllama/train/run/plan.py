"""The plan for a run on records: its length, learning rate, batch size and held-out records.

The plan depends on the number of records. The learning rate also depends on the width of the model.
The numbers come from the experiment in docs/results/defaults.md. Explicit options override the
plan. For plain text, the defaults are the same as in the old llama.cpp `finetune`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from nbllama.objectives.names import (
    BASE,
    GROUP_SIZE,
    MARGIN,
    MAX_ANSWER,
    NONE,
    OBJECTIVES,
    PROMPTS,
    SFT,
    START,
    TEMPERATURE,
)
from nbllama.opt.names import OPTIMISERS
from nbllama.options.finetune.table import Options

if TYPE_CHECKING:
    from nbllama.checkpoint.state import TrainState


class Row(NamedTuple):
    """The plan for runs on data sets of at most `records` records."""

    records: float
    batch: int
    epochs: int


# With fewer records, the batches are smaller and each record is used more often: ten records
# give sixty steps, and thirty records give ninety-six.
TABLE = (
    Row(16, batch=2, epochs=12),
    Row(40, batch=4, epochs=12),
    Row(150, batch=4, epochs=6),
    Row(400, batch=8, epochs=3),
    Row(float("inf"), batch=8, epochs=2),
)
# The learning rate was determined on a model of this width (SmolLM2-135M). Wider models require a
# lower learning rate: 2e-4 is customary at 4096, the width of models with 7 billion parameters.
RATE, WIDTH = 1e-3, 576
CUSTOMARY_RATE, CUSTOMARY_WIDTH = 2e-4, 4096

HELD_OUT_FROM = 50  # minimum number of records for holding out some of them
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 100
PATIENCE = 4  # number of evaluations without a lower validation loss
KEPT = 2  # number of numbered checkpoints to keep
ANSWERS = 3  # number of questions of each kind to ask
PROMPTS_AT_ONCE, PASSES = 4, 1  # batch size and epochs if the run draws answers
BATCH_BEFORE = 8  # for plain text, and for checkpoints that are older than the plan
RATE_OF_TEXT = 1e-3


def row_of(n_records: int) -> Row:
    """Return the row of the table for this number of records."""
    return next(row for row in TABLE if n_records <= row.records)


def rate_of(n_embd: int) -> float:
    """Return the learning rate for a model of this width, rounded to two significant digits.

    The learning rate follows a power law in the width, fitted to the learning rates at two known
    widths. Models narrower than the smaller known width use the learning rate for that width.
    """
    from math import floor, log, log10

    power = log(RATE / CUSTOMARY_RATE) / log(CUSTOMARY_WIDTH / WIDTH)
    rate = RATE * (WIDTH / max(n_embd, WIDTH)) ** power
    return float(round(rate, 1 - floor(log10(rate))))


def held_out_share(n_records: int) -> float:
    """Return the share of records to hold out, or 0 for fewer than `HELD_OUT_FROM` records."""
    if n_records < HELD_OUT_FROM:
        return 0.0
    return min(HELD_OUT_SHARE, HELD_OUT_MOST / n_records)


def with_plan(
    options: Options,
    data_kind: str,
    n_records: int,
    *,
    n_embd: int = WIDTH,
    state: TrainState | None = None,
    validated: bool = False,
) -> Options:
    """Fill in missing options with values from the plan.

    `data_kind` is "raw" (plain text) or "chat" (records of any kind). `n_embd` is the width of the
    model. `state` is the checkpoint to resume from, if any; its plan is kept, and its values are
    already in `options`. `validated` says whether validation data already exist. If the length of
    the run is given, no records are held out.
    """
    row, chat = row_of(n_records), data_kind == "chat"
    draws = OBJECTIVES[options.objective].data == PROMPTS
    if draws:
        row = Row(row.records, PROMPTS_AT_ONCE, PASSES)
    timed = options.epochs is not None or options.adam_iter is not None
    planned: dict[str, Any] = {
        "batch": row.batch if chat and state is None else BATCH_BEFORE,
        "adam_alpha": (rate_of(n_embd) if chat else RATE_OF_TEXT)
        / OPTIMISERS[options.optimizer].rate_divisor
        / OBJECTIVES[options.objective].rate_divisor,
        "keep_last": KEPT if chat else 0,
        "answers": ANSWERS if chat and not (options.compat or draws) else 0,
        "share_prompts": not (options.compat or options.lora_dropout) and state is None,
    }
    holds_out = chat and state is None and not (timed or validated or draws)
    share = held_out_share(n_records) if holds_out and options.val_split is None else 0.0
    planned |= {"val_split": share, "early_stop": PATIENCE if share else 0}
    if chat and not timed:
        planned["epochs"] = row.epochs
    left = {name: value for name, value in planned.items() if getattr(options, name) is None}
    return with_objective(replace(options, **left))


def with_objective(options: Options) -> Options:
    """Fill in missing options for a preference or reward loss."""
    row = OBJECTIVES[options.objective]
    if row is SFT:
        return options
    filled: dict[str, Any] = {
        "beta": row.beta,
        "label_smoothing": 0.0,
        "margin": MARGIN if row.has_margin else 0.0,
        "reference": (START if options.lora_in else BASE) if row.refers else NONE,
        "sft_weight": row.sft_weight,
    }
    if row.data == PROMPTS:
        filled |= {
            "group_size": GROUP_SIZE, "max_answer": MAX_ANSWER, "temperature": TEMPERATURE,
            "trunk_cache": 0,
        }  # fmt: skip
        if options.beta == 0:
            filled["reference"] = NONE
    left = {name: value for name, value in filled.items() if getattr(options, name) is None}
    return replace(options, **left)
