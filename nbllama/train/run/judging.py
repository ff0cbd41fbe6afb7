"""Choose the objective of a run that trains on preferences or rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nbllama.data.preferences import Preferences
from nbllama.data.prompts import Prompts
from nbllama.train.run.preferences import RunPreferences
from nbllama.train.run.rewards import RunRewards

if TYPE_CHECKING:
    from nbllama.data.batch import Dataset
    from nbllama.model.passes import Model
    from nbllama.options.finetune.table import Options
    from nbllama.train.run.outputs import Outputs

Judging = RunPreferences | RunRewards


def run_judging(
    options: Options,
    model: Model,
    data: Dataset,
    validation: Dataset | None,
    *,
    outputs: Outputs,
    say: Callable[[str], None],
) -> Judging | None:
    """Return the objective for preferences or rewards, or None for a run on plain answers.

    Raises the same errors as the constructors of `RunPreferences` and `RunRewards`.
    """
    if isinstance(data, Prompts):
        return RunRewards(options, model, data, say=say)
    if isinstance(data, Preferences):
        return RunPreferences(options, model, data, validation, outputs=outputs, say=say)
    return None
