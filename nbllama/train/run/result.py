"""The result of a run, as returned to the calling program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nbllama.adapter.savable import Adapter
from nbllama.errors import counted
from nbllama.report.log import loss_text

if TYPE_CHECKING:
    from nbllama.generation.model import Model
    from nbllama.train.forecast import Forecast


class Best(NamedTuple):
    """The evaluation with the lowest validation loss."""

    iteration: int
    val_loss: float
    adapter: Adapter | None
    """The adapter at this evaluation; None if the run resumed from a later checkpoint."""


@dataclass
class Run:
    """A run that has ended.

    Attributes
    ----------
    adapter : Adapter
        The adapter after the last iteration; save it with `adapter.save(path)`.
    model : Model
        The base model, which is unchanged.
    losses : list of float
        Training loss of each iteration of this run, in nats per trained token.
    val_losses : list of (int, float)
        Iteration and validation loss of each evaluation of this run.
    best : Best or None
        Lowest validation loss, and the adapter at that time; None without validation data.
    paths : dict of str to str
        The newest file written of each kind: "adapter", "best", "checkpoint", "config", "log",
        "report", "card.md", "Modelfile".
    iteration : int
        Total number of training iterations so far, including those before the checkpoint.
    last : int
        The planned last iteration.
    reason : str
        Why the run ended early, or "" if it did not.
    interrupted : bool
        Whether Ctrl-C, another signal, the live page or a lack of workers ended the run.
    options : dict of str to object
        The value that the run used for each option, by Python name.
    forecast : Forecast or None
        Predicted seconds per iteration and bytes of memory.
    notes : list of str
        All messages of the run, one per line.
    verdict : str
        The result of a run on records: "learned: ...", "hardly learned: ..." or "learned by
        heart: ..."; "" for plain text.
    answers : list of dict
        Questions from the data, with the keys "kind" ("trained" or "held out"), "question",
        "wanted" (the expected answer), "before", "after" and "right" (whether "after" matches
        "wanted"). A truncated answer ends with "…".
    """

    adapter: Adapter
    model: Model
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    best: Best | None = None
    paths: dict[str, str] = field(default_factory=dict)
    iteration: int = 0
    last: int = 0
    reason: str = ""
    interrupted: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    forecast: Forecast | None = None
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    answers: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        parts = [counted(self.iteration, "iteration")]
        if self.losses:
            parts.append(f"loss {loss_text(self.losses[0])} -> {loss_text(self.losses[-1])}")
        if self.best is not None:
            at = f"{loss_text(self.best.val_loss)} at iteration {self.best.iteration}"
            parts.append(f"best validation {at}")
        if self.verdict:
            parts.append(self.verdict.partition(":")[0])
        if self.reason:
            parts.append(self.reason)
        return f"<Run: {', '.join(parts)}>"
