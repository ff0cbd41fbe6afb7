"""The training objective: likelihood of answers, or a loss on preferences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nbllama.errors import UsageError
from nbllama.objectives.names import BASE, MARGIN, NONE, OBJECTIVES, SFT, START
from nbllama.options.parser import Saved, option
from nbllama.options.values import Choice, Real, Text

if TYPE_CHECKING:
    from nbllama.options.finetune.table import Options

_objective = partial(option, "Objective")


def _defaults(name: str) -> str:
    rows = [(row.name, getattr(row, name)) for row in OBJECTIVES.values() if row is not SFT]
    usual = rows[0][1]
    others = "".join(f"; {value:g} with {row}" for row, value in rows if value != usual)
    return f"{usual:g}{others}"


_OF_PREFERENCES = ("beta", "label_smoothing", "margin", "reference", "sft_weight")


@dataclass(frozen=True)
class ObjectiveOptions:
    """The objective and its numbers."""

    objective: str = _objective(
        Choice(tuple(OBJECTIVES)),
        SFT.name,
        "sft: the likelihood of all answers; dpo, ipo, orpo and simpo: preferences between two"
        " answers; kto: answers that are good or bad",
        saved=Saved(41),
        without=SFT.name,
    )
    beta: float | None = _objective(
        Real(0, 1e4, above=True),
        None,
        "weight of preferences against the distance from the reference: beta of dpo, kto and"
        " simpo, tau of ipo, lambda of orpo",
        shown_default=_defaults("beta"),
        saved=Saved(42),
    )
    label_smoothing: float | None = _objective(
        Real(0, 0.5, below=True),
        None,
        "assumed share of pairs whose sides are swapped, with dpo and simpo",
        shown_default="0",
        saved=Saved(43),
        without=0.0,
    )
    margin: float | None = _objective(
        Real(0, 1e4),
        None,
        "target margin of the chosen answer, with simpo (gamma of the paper)",
        shown_default=f"{MARGIN:g}",
        saved=Saved(44),
        without=0.0,
    )
    reference: str | None = _objective(
        Text("none|base|start|FILE"),
        None,
        "reference of dpo, ipo and kto: the base model, the adapter of --lora-in (start), the"
        " adapter in a file, or none",
        shown_default="start with --lora-in, else base",
        file="reads",
    )
    sft_weight: float | None = _objective(
        Real(0, 1e4),
        None,
        "weight of an additional term: negative log-likelihood of the chosen answer, per token",
        shown_default=_defaults("sft_weight"),
        saved=Saved(45),
        without=0.0,
    )


def check_objective(options: Options) -> None:
    """Raise `UsageError` for options that the objective does not use."""
    row = OBJECTIVES[options.objective]
    fits = {
        "label_smoothing": row.smooths, "margin": row.has_margin, "reference": row.refers,
    }  # fmt: skip
    for name in _OF_PREFERENCES:
        value = getattr(options, name)
        if value is None or (row is not SFT and fits.get(name, True)):
            continue
        if not (name == "reference" and value == NONE) and value != 0:
            raise UsageError(
                f"--{name.replace('_', '-')} has no meaning with --objective {row.name}; leave it"
                " out"
            )
    if row is SFT:
        return
    if options.reference == START and not options.lora_in:
        raise UsageError("--reference start: the run does not start from an adapter; give "
                         "--lora-in, or --reference base")  # fmt: skip
    if options.reference == "":
        raise UsageError("--reference is empty; give none, base, start or a file")
    for name in ("packing", "train_on_prompt", "compat"):
        if getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is not possible with --objective {row.name}; leave it"
                " out"
            )


def with_objective(options: Options) -> Options:
    """Return the options with the defaults of the objective's numbers filled in."""
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
    left = {name: value for name, value in filled.items() if getattr(options, name) is None}
    return replace(options, **left)
