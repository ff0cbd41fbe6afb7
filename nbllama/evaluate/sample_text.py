"""A few lines of text on which two models, or a model with and without its adapter, are compared.

Without a text of the user's, a model goes on with a few openings by itself, greedily: what it
writes is what it is sure of, whatever its language or training.
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
OWN_TOKENS = 20  # that the model writes behind each of them
TEXT_TOKENS = 256  # of a text that are used
ROW = 64  # tokens that are read together

Rows = Sequence[np.ndarray]


def own_text(model: Model, check: Callable[[], None] | None = None) -> list[np.ndarray]:
    """Token ids int32 of each opening and what the model makes of it; an end is not looked for."""
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
    """Cut the first `TEXT_TOKENS` tokens of a text into rows of `ROW`.

    Each begins with BOS if the model wants one. Raises `DataError` for a text that is too short.
    """
    tokenizer = model.tokenizer
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids = tokenizer.encode(text, add_special=False)[:TEXT_TOKENS]
    rows = [bos + ids[i : i + ROW] for i in range(0, len(ids), ROW)]
    found = [np.array(row, np.int32) for row in rows if len(row) > 1]
    if not found:
        raise DataError(f"{name}: the text has {len(ids)} tokens; give a longer one")
    return found


def reader(model: Model, adapter: Adapter | None, rows: Rows) -> Reader:
    """Return what reads these rows."""
    return Reader(model, adapter, max(map(len, rows)))


def compare(base: Reader, other: Reader, rows: Rows) -> Compared:
    """Both on every token of `rows` but the first of each; see `evaluate.Compared`."""
    return Compared.joined([compare_chunk(base, other, row, first=0) for row in rows])
