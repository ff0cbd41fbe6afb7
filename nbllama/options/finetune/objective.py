"""Options for the training objective: the likelihood of answers, or a preference loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.objectives.names import MARGIN, OBJECTIVES, SFT
from nbllama.options.parser import Saved, option
from nbllama.options.values import Choice, Real, Text

_objective = partial(option, "Objective")


def _defaults(name: str) -> str:
    rows = [(row.name, getattr(row, name)) for row in OBJECTIVES.values() if row is not SFT]
    usual = rows[0][1]
    others = "".join(f"; {value:g} with {row}" for row, value in rows if value != usual)
    return f"{usual:g}{others}"


@dataclass(frozen=True)
class ObjectiveOptions:
    """Options for choosing the objective and setting the parameters of its loss."""

    objective: str = _objective(
        Choice(tuple(OBJECTIVES)),
        SFT.name,
        "sft: likelihood of all answers; dpo, ipo, orpo and simpo: preferences between two"
        " answers; kto: answers labelled good or bad; grpo: rewards for the model's own answers",
        saved=Saved(41),
        without=SFT.name,
    )
    beta: float | None = _objective(
        Real(0, 1e4),
        None,
        "parameter of the loss: beta in dpo, kto and simpo, tau in ipo, lambda in orpo, and the "
        "weight of the KL divergence in grpo (may be 0); if the loss uses a reference, a larger "
        "value keeps the model closer to it",
        shown_default=_defaults("beta"),
        saved=Saved(42),
    )
    label_smoothing: float | None = _objective(
        Real(0, 0.5, below=True),
        None,
        "assumed share of pairs with swapped labels (dpo and simpo only)",
        shown_default="0",
        saved=Saved(43),
        without=0.0,
    )
    margin: float | None = _objective(
        Real(0, 1e4),
        None,
        "target margin between the chosen and the rejected answer (simpo only; gamma in the paper)",
        shown_default=f"{MARGIN:g}",
        saved=Saved(44),
        without=0.0,
    )
    reference: str | None = _objective(
        Text("none|base|start|FILE"),
        None,
        "reference for dpo, ipo, kto and grpo: base (the base model), start (the adapter passed "
        "as --lora-in), an adapter file, or none",
        shown_default="start with --lora-in, else base",
        file="reads",
    )
    sft_weight: float | None = _objective(
        Real(0, 1e4),
        None,
        "weight of an additional loss term: the per-token negative log-likelihood of the chosen "
        "answer",
        shown_default=_defaults("sft_weight"),
        saved=Saved(45),
        without=0.0,
    )
