"""Options for `--objective grpo`, which draws answers and scores them with a reward function."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.objectives.names import GROUP_SIZE, MAX_ANSWER, TEMPERATURE
from nbllama.options.parser import Saved, option
from nbllama.options.values import Real, Whole, Words

_rewards = partial(option, "Objective")


@dataclass(frozen=True)
class RewardOptions:
    """Options for the reward function, and for drawing answers."""

    reward: str = _rewards(
        Words("REWARD"),
        "",
        "reward for grpo: PATH.py:FUNCTION (called with prompt, answer and record), exact, "
        "regex:PATTERN, json or sql",
        shown_default="none",
    )
    reward_seconds: float | None = _rewards(
        Real(0, 1e5, above=True),
        None,
        "time limit per call of the reward function, in seconds",
        shown_default="10",
    )
    group_size: int | None = _rewards(
        Whole(2, 1024),
        None,
        "number of answers to generate per prompt (grpo only)",
        shown_default=str(GROUP_SIZE),
        saved=Saved(46),
    )
    max_answer: int | None = _rewards(
        Whole(1, 2**20),
        None,
        "maximum length of a generated answer, in tokens",
        shown_default=str(MAX_ANSWER),
        saved=Saved(47),
    )
    temperature: float | None = _rewards(
        Real(0, 100, above=True),
        None,
        "temperature for generating answers; the loss uses temperature 1",
        shown_default=f"{TEMPERATURE:g}",
        saved=Saved(48),
    )
