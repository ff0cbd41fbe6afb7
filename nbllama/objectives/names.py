"""The table of objectives, with their options and defaults; this module does not import numpy."""

from __future__ import annotations

from typing import NamedTuple

PAIRS, LABELS, PROMPTS = "pairs", "labels", "prompts"


class Objective(NamedTuple):
    """An objective, with its properties and the defaults of its options.

    `data` is the kind of training data: `PAIRS`, `LABELS`, `PROMPTS`, or "" for SFT. `beta` and
    `sft_weight` are default values. `refers` says whether the loss uses a reference, `smooths`
    whether it supports label smoothing, and `has_margin` whether it has a target margin. The
    default learning rate is divided by `rate_divisor`.
    """

    name: str
    data: str
    beta: float = 0.1
    sft_weight: float = 0.0
    refers: bool = True
    smooths: bool = False
    has_margin: bool = False
    rate_divisor: float = 5.0


SFT = Objective("sft", "", beta=0.0, refers=False, rate_divisor=1.0)
OBJECTIVES = {
    row.name: row
    for row in (
        SFT,
        Objective("dpo", PAIRS, smooths=True),
        Objective("ipo", PAIRS),
        Objective("orpo", PAIRS, sft_weight=1.0, refers=False),
        Objective("simpo", PAIRS, beta=2.0, refers=False, smooths=True, has_margin=True),
        Objective("kto", LABELS),
        Objective("grpo", PROMPTS, beta=0.04, rate_divisor=10.0),
    )
}
MARGIN = 1.0
"""The default of `--margin` for each loss that uses a margin."""
GROUP_SIZE, MAX_ANSWER, TEMPERATURE = 8, 128, 1.0
"""The defaults of `--group-size`, `--max-answer` and `--temperature`."""
NONE, BASE, START = "none", "base", "start"
