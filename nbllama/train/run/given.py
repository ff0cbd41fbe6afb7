"""Values in memory that a Python caller passes instead of file names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbllama.report.log import EvaluationRecord, StepRecord

if TYPE_CHECKING:
    from nbllama.generation.model import Model

# Each record is like a line of a JSON Lines file, or a string that is trained on as a whole.
Records = Sequence[Mapping[str, Any] | str]


@dataclass(frozen=True)
class Given:
    """Values in memory, each used instead of the file that the option of the same name would read.

    `on_step` is called after each iteration, and `on_eval` after each evaluation; the run ends if
    one of them returns True. `keep_best` says whether to keep a copy of the adapter with the lowest
    validation loss. `from_python` says that the caller is a Python program, so that errors suggest
    keywords instead of commands.
    """

    model: Model | None = None
    train_data: Records | None = None
    val_data: Records | None = None
    sample_prompts: Sequence[str] | None = None
    on_step: Callable[[StepRecord], object] | None = None
    on_eval: Callable[[EvaluationRecord], object] | None = None
    keep_best: bool = False
    from_python: bool = False


NOTHING = Given()
