"""What a checkpoint gives to the run that continues it, and what both must have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nbllama.cli.options import Options
from nbllama.cli.settings import Settings
from nbllama.identity import Identity, model_fingerprint, model_numbers

if TYPE_CHECKING:
    from nbllama.checkpoint import TrainState
    from nbllama.data import Dataset
    from nbllama.model import Model

# Settings whose change would make a continued run another run. Those in STORED are taken from the
# checkpoint where the command line does not give them.
SETTINGS = (
    "batch",
    "grad_acc",
    "ctx",
    "adam_alpha",
    "adam_min_alpha",
    "adam_beta1",
    "adam_beta2",
    "adam_decay",
    "adam_decay_min_ndim",
    "adam_gclip",
    "warmup",
    "cos_decay_steps",
    "cos_decay_min",
    "cos_decay_restart",
    "enable_restart",
    "seed",
)
STORED = ("ctx", "adam_alpha", "warmup", "cos_decay_steps", "cos_decay_min")


def completed(options: Options, state: TrainState | None) -> Options:
    """Options with what the command line left open taken from the checkpoint that is continued."""
    if state is None:
        return options
    same = state.identity
    stored = {name: same.settings[name] for name in STORED if name in same.settings}
    if options.lora_r is None:
        stored |= {f"rank_{slot}": rank for slot, rank in same.ranks.items()}
    stored |= {"lora_r": same.lora_r, "lora_alpha": same.lora_alpha}
    left = {name: value for name, value in stored.items() if getattr(options, name) is None}
    if options.seed < 0:
        left["seed"] = state.seed
    return replace(options, **left)  # type: ignore[arg-type]


def identity(settings: Settings, model: Model, data: Dataset) -> Identity:
    """What a checkpoint of this run must share with it."""
    return Identity(
        model.hp.arch,
        settings.lora_r,
        settings.lora_alpha,
        settings.ranks,
        model_fingerprint(model.gguf),
        data.fingerprint,
        model_numbers(model.hp),
        {name: getattr(settings, name) for name in SETTINGS},
    )
