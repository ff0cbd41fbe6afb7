"""An answer with a label: {"prompt", "completion", "label": true or false}.

The prompt and the completion are read as in the `completion` format. The label can also be 1, 0,
1.0 or 0.0 (pandas writes labels as 1.0 if any is missing), or any of these values as a string.
"""

from __future__ import annotations

from typing import Any

from nbllama.data.formats import completion
from nbllama.data.formats.checks import Record
from nbllama.data.formats.record import Format, Labelled, Style, weight_of
from nbllama.errors import DataError

_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def read(record: Record, style: Style) -> Labelled:
    """Read an answer and its label. Raises `DataError`."""
    good = _label(record.get("label"))
    if good is None:
        raise DataError('"label" must be true or false')
    sample = completion.read(record, style)
    return Labelled(sample, good, weight_of(record))


def _label(value: Any) -> bool | None:
    if isinstance(value, float):
        value = float(value)  # as text, 1.00 becomes 1.0
    return _LABELS.get(str(value).strip().lower())


FORMAT = Format(
    "labelled",
    ("prompt", "completion", "label"),
    read,
    lambda record: _label(record.get("label")) is not None,
)
