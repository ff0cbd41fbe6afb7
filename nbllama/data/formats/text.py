"""Documents ({"text": ...}). The model is trained on the whole text and the token that ends it."""

from __future__ import annotations

from nbllama.data.formats.checks import Record, filled, text_of
from nbllama.data.formats.record import Continuation, Format, Style


def read(record: Record, style: Style) -> Continuation:
    """Read the document. Raises `DataError`."""
    return Continuation("", filled(text_of(record, "text"), "the text"))


FORMAT = Format("text", ("text",), read)
