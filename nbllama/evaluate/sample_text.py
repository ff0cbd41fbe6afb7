"""A short text for comparing two models, or a model with and without its adapter.

If the user provides no text, the model completes a few openings greedily. The text therefore suits
the model, regardless of the languages and data that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nbllama.errors import DataError
from nbllama.evaluate.scores import Compared, Reader, compare_chunk
from nbllama.generation.session import Session
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model

OPENINGS = (
    "Once upon a time",
    "The capital of France is",
    "Question: What is two and two?",
    "今天",
)
OWN_TOKENS = 20  # tokens generated after each opening
TEXT_TOKENS = 256  # number of tokens used from a text
ROW = 64  # number of tokens read at a time

Rows = Sequence[np.ndarray]


def own_text(model: Model, check: Callable[[], None] | None = None) -> list[np.ndarray]:
    """Return the int32 token ids of each completed opening; end tokens do not stop a completion."""
    rows = []
    for opening in OPENINGS:
        ids = model.tokenizer.encode(opening, add_special=True)
        session = Session(model, None, len(ids) + OWN_TOKENS, check=check)
        new = ids
        for _ in range(OWN_TOKENS):
            new = [int(np.argmax(session.feed(new)))]
            ids = ids + new
        rows.append(np.array(ids, np.int32))
    return rows


def of_text(model: Model, text: str, name: str) -> list[np.ndarray]:
    """Split the first `TEXT_TOKENS` tokens of a text into rows of `ROW`.

    Each row begins with BOS if the model adds one. Raises `DataError` for a text that is too short.
    """
    tokenizer = model.tokenizer
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids = tokenizer.encode(text, add_special=False)[:TEXT_TOKENS]
    rows = [bos + ids[i : i + ROW] for i in range(0, len(ids), ROW)]
    usable = [np.array(row, np.int32) for row in rows if len(row) > 1]
    if not usable:
        raise DataError(f"{name}: the text has {len(ids)} tokens; use a longer text")
    return usable


def reader(model: Model, adapter: Adapter | None, rows: Rows) -> Reader:
    """Return a reader for these rows of tokens."""
    return Reader(model, adapter, max(map(len, rows)))


def compare(base: Reader, other: Reader, rows: Rows) -> Compared:
    """Compare both models on every token of `rows` except the first in each row; see `Compared`."""
    return Compared.joined([compare_chunk(base, other, row, first=0) for row in rows])
