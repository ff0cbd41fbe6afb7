"""Values in memory that a Python caller passes instead of file names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbllama.report.log import EvaluationRecord, StepRecord

if TYPE_CHECKING:
    from nbllama.generation.model import Model

# A record, as on a line of a file; a string is trained on as a whole.
Records = Sequence[Mapping[str, Any] | str]


@dataclass(frozen=True)
class Given:
    """Values in memory; each replaces the file that the option of the same name would read.

    `on_step`, `on_eval`: called after each iteration and evaluation; if one returns True, the run
    ends after it. `keep_best`: keep a copy of the adapter with the lowest validation loss.
    """

    model: Model | None = None
    train_data: Records | None = None
    val_data: Records | None = None
    sample_prompts: Sequence[str] | None = None
    on_step: Callable[[StepRecord], object] | None = None
    on_eval: Callable[[EvaluationRecord], object] | None = None
    keep_best: bool = False


NOTHING = Given()
