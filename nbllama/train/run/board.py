"""`--tensorboard`: event files, written with the `tensorboardX` package."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from nbllama.errors import OutputError, UsageError, shown
from nbllama.report.log import EvaluationRecord, StepRecord, as_row
from nbllama.system.run_lock import RunLock

_FILES = "events.out.tfevents"  # how the names of event files begin

_STEP = {
    "loss": "loss/train", "lr": "learning_rate", "grad_norm": "gradient_norm",
    "tokens_per_s": "tokens_per_second", "rss_bytes": "memory_bytes",
}  # fmt: skip
_EVALUATION = {"val_loss": "loss/validation", "perplexity": "perplexity/validation"}


class Board:
    """A folder of event files; errors that occur during training do not stop the run."""

    def __init__(self, folder: str, stack: ExitStack) -> None:
        """Open the folder, and lock it until `stack` ends.

        Raises `UsageError` if the package is missing, and `OutputError` if the folder is not
        writable or another run writes to it.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as e:
            raise UsageError(
                "--tensorboard requires the tensorboardX package: pip install "
                "'nbllama[tensorboard]'"
            ) from e
        try:
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(RunLock(os.path.join(folder, _FILES)))
            self._writer: Any = SummaryWriter(folder)
        except OSError as e:
            raise OutputError(f"--tensorboard {shown(folder, 400)}: {e.strerror or e}") from e

    def write(self, record: StepRecord | EvaluationRecord) -> None:
        """Write the numbers in a record, labelled with the record's iteration."""
        row = as_row(record)
        names = _EVALUATION if isinstance(record, EvaluationRecord) else _STEP
        for key, tag in names.items():
            if row[key] is not None:
                self._writer.add_scalar(tag, row[key], record.iter)
        part = "validation" if isinstance(record, EvaluationRecord) else "train"
        for key, value in record.measures.items():
            if row[key] is not None:
                self._writer.add_scalar(f"{key}/{part}", value, record.iter)
        for i, sample in enumerate(row.get("samples", ())):
            text = f"**{sample['prompt']}**\n\n{sample['answer']}"
            self._writer.add_text(f"samples/{i + 1}", text, record.iter)

    def close(self) -> None:
        """Write the remaining events, and close the file."""
        self._writer.close()
