"""The data, the loss and the reference model of a run that trains on preferences."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from nbllama.adapter.file import load_adapter
from nbllama.checkpoint.identity import model_fingerprint
from nbllama.data.batch import Dataset
from nbllama.data.judged import LABELLED
from nbllama.data.preferences import Preferences
from nbllama.data.samples import Samples
from nbllama.errors import DataError, UsageError, shown
from nbllama.objectives.names import BASE, LABELS, NONE, OBJECTIVES, SFT, START
from nbllama.train.preference.loss import Numbers, PreferenceLoss
from nbllama.train.preference.reference import Reference
from nbllama.train.run.history import FirstAndLast

if TYPE_CHECKING:
    from nbllama.lora.pairs import Adapter
    from nbllama.model.passes import Model
    from nbllama.options.finetune.table import Options
    from nbllama.train.run.outputs import Outputs

_OF_PAIRS = "dpo, ipo, orpo or simpo"


def as_wanted(objective: str, path: str, data: Dataset) -> Dataset:
    """Convert the data to the form that the objective needs.

    If the data are unsuitable, raises a `DataError` whose message suggests what to do.
    """
    row, name = OBJECTIVES[objective], shown(path, 400)
    judged = data.judged if isinstance(data, Samples) else None
    labelled = isinstance(data, Samples) and data.format == LABELLED
    if row is SFT:
        if judged is None:
            return data
        held = (
            "answers labelled good or bad"
            if labelled
            else "pairs of a chosen and a rejected answer"
        )
        wanted = "kto" if labelled else _OF_PAIRS
        column = "--data-format completion" if labelled else "--data-columns completion=chosen"
        raise DataError(
            f"{name} contains {held}; pass --objective {wanted}, or pass {column} to train on "
            f"{'all answers' if labelled else 'the chosen answers'} directly"
        )
    if judged is None or not isinstance(data, Samples):
        form = (
            "prompt, completion and label" if row.data == LABELS else "prompt, chosen and rejected"
        )
        kind = "labelled" if row.data == LABELS else "preference"
        raise DataError(
            f"{name} contains no {'labels' if row.data == LABELS else 'pairs'}: --objective "
            f"{row.name} requires records with {form} (pass --data-format {kind} if they also "
            "have other keys)"
        )
    if row.data == LABELS:
        return Preferences(data, 1)
    if labelled:
        raise DataError(
            f"{name} contains labelled answers, not pairs; pass --objective kto, not {row.name}"
        )
    return Preferences(data, 2)


class RunPreferences(FirstAndLast):
    """The objective of a run that trains on preferences, and the reference model, if any."""

    def __init__(
        self,
        options: Options,
        model: Model,
        data: Preferences,
        validation: Dataset | None,
        *,
        outputs: Outputs,
        say: Callable[[str], None],
    ) -> None:
        """Load the reference adapter, if any.

        Raises `UsageError` if the adapter does not exist, and `CheckpointError` if it does not
        match the model.
        """
        sets = [data]
        if validation is not None:
            assert isinstance(validation, Preferences)
            sets.append(validation)
        self._options, self._data = options, data
        row = OBJECTIVES[options.objective]
        self.reference: Reference | None = None
        if options.reference != NONE:
            self.reference = Reference(
                reference_adapter(options, model, say),
                model_fingerprint(model.gguf),
                sets,
                row.data == LABELS,
                _folder(outputs),
            )
        numbers = Numbers(
            row.name, options.beta or 0.0, options.label_smoothing or 0.0, options.margin or 0.0,
            options.sft_weight or 0.0,
        )  # fmt: skip
        self.objective: PreferenceLoss = PreferenceLoss(numbers, sets, self.reference)

    def identity(self) -> dict[str, str]:
        """Return the values that must match between a checkpoint and a run that resumes from it."""
        return {"reference": NONE if self.reference is None else self.reference.name}

    def header(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs to display."""
        o = self._options
        line = f"{o.objective}, beta {o.beta:g}"
        line += f", margin {o.margin:g}" if o.margin else ""
        line += f", label smoothing {o.label_smoothing:g}" if o.label_smoothing else ""
        line += f", plus {o.sft_weight:g} x the loss on chosen answers" if o.sft_weight else ""
        if OBJECTIVES[o.objective].refers:
            line += f"; reference: {shown(o.reference, 400)}"
        good = self._data.judged.good
        held = f"{int(good.sum())} good, {int((~good).sum())} bad answers"
        if OBJECTIVES[o.objective].data != LABELS:
            held = f"{self._data.n_samples} pairs"
        return [("objective", line), ("preferences", held)]


def reference_adapter(options: Options, model: Model, say: Callable[[str], None]) -> Adapter | None:
    """Read a separate copy of the reference adapter, or return None for the base model.

    Raises `UsageError` if the adapter does not exist, and `CheckpointError` if it does not
    match the model.
    """
    if options.reference == BASE:
        return None
    option, path = "--reference", options.reference or ""
    if path == START:
        option, path = "--reference start: --lora-in", options.lora_in
    try:
        return load_adapter(path, model.hp, model.shapes, say)
    except FileNotFoundError as e:
        raise UsageError(
            f"{option} {shown(path, 400)}: no such file or folder; use none, base, start or an "
            "adapter file"
        ) from e


def _folder(outputs: Outputs) -> str | None:
    """Return the folder that the run writes to, or None if it writes no files."""
    name = outputs.checkpoint or outputs.adapter
    return os.path.dirname(name.rstrip("/" + os.sep)) if name else None
