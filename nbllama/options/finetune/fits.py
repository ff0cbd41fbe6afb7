"""Check that the options of a run are compatible with its objective."""

from __future__ import annotations

from typing import Any

from nbllama.errors import UsageError
from nbllama.objectives.names import NONE, OBJECTIVES, PROMPTS, SFT, START

_OF_PREFERENCES = ("beta", "label_smoothing", "margin", "reference", "sft_weight")
_OF_REWARDS = ("reward", "reward_seconds", "group_size", "max_answer", "temperature")
_NOT_WITH_JUDGEMENTS = ("packing", "train_on_prompt", "compat")
_NOT_WITH_REWARDS = (
    "val_data", "val_split", "early_stop", "data_format", "group_prompts", "lora_dropout",
    "trunk_cache",
)  # fmt: skip


def check_objective(options: Any) -> None:
    """Raise `UsageError` if the objective does not use an option or is incompatible with it.

    `options` is a `nbllama.options.finetune.table.Options`.
    """
    row = OBJECTIVES[options.objective]
    draws = row.data == PROMPTS
    fits = {
        "label_smoothing": row.smooths, "margin": row.has_margin, "reference": row.refers,
        "sft_weight": not draws,
    }  # fmt: skip
    for name in _OF_PREFERENCES:
        value = getattr(options, name)
        if value is None or (row is not SFT and fits.get(name, True)):
            continue
        if not (name == "reference" and value == NONE) and value != 0:
            raise UsageError(
                f"{_typed(name)} does not apply to --objective {row.name}; leave it out"
            )
    for name in _OF_REWARDS:
        if not draws and getattr(options, name) not in (None, ""):
            raise UsageError(f"{_typed(name)} is for --objective grpo, not for {row.name}")
    if row is SFT:
        return
    if options.reference == START and not options.lora_in:
        raise UsageError("--reference start: the run does not start from an adapter; pass "
                         "--lora-in, or --reference base")  # fmt: skip
    if options.reference == "":
        raise UsageError("--reference is empty; use none, base, start or a file")
    if options.beta == 0 and not draws:
        raise UsageError("--beta: '0' is not allowed; use a number above 0")
    for name in (*_NOT_WITH_JUDGEMENTS, *(_NOT_WITH_REWARDS if draws else ())):
        if getattr(options, name):
            raise UsageError(
                f"{_typed(name)} cannot be combined with --objective {row.name}; leave it out"
            )
    if not draws:
        return
    if not options.reward:
        raise UsageError(
            "--objective grpo: the reward is missing; pass --reward PATH.py:FUNCTION, exact, "
            "regex:PATTERN, json or sql"
        )
    if options.reference == NONE and options.beta:
        raise UsageError(
            f"--reference none and --beta {options.beta:g}: the KL divergence requires a "
            f"reference; pass --beta 0, or a different reference"
        )


def _typed(name: str) -> str:
    return "--" + name.replace("_", "-")
