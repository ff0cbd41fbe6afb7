"""Measure how much a merge changes the predictions.

The merged model is compared with the base and its adapters, on a short text or on records that were
not used for calibrating the merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch
from nbllama.errors import GGUFError, shown
from nbllama.evaluate.sample_text import compare, of_text, own_text, reader
from nbllama.evaluate.scores import Compared, Reader, compare_chunk
from nbllama.export.merge import Parts
from nbllama.lora.mix import mix
from nbllama.model.passes import Model, load_model

LOST = 0.1  # share of the effect that a merge may lose; also limits the difference from llama.cpp
HARDLY = 1e-6  # nats per token; float32 rounding can have the same effect
TOO_MUCH = 0.5  # lost share of the effect above which a merge fails


class Change(NamedTuple):
    """The change in predictions caused by a merge.

    `found` compares the merged model with the base and its adapters. `effect` is the KL divergence
    of the base with adapters from the base alone, in nats per token.
    """

    found: Compared
    effect: float

    @property
    def lost(self) -> float:
        """The share of the effect that the merge lost, or 0 if the effect is negligible."""
        return float(self.found.kl.mean()) / self.effect if self.effect > HARDLY else 0.0


def describe(c: Compared) -> str:
    """Describe a comparison in one line."""
    n_different = int((~c.same_top).sum())
    return (
        f"KL divergence {c.kl.mean():.3g} nats per token (maximum {c.kl.max():.3g}); the most "
        f"likely token differs at {n_different} of {len(c.kl)} positions"
    )


def rows_of(held: Sequence[Batch]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return every sequence in `held` with at least one trained token.

    The sequence is returned as its tokens (int32 `[n]`) and a mask of the positions whose next
    token is trained on (bool `[n]`).
    """
    rows = []
    for batch in held:
        for first, last in zip(batch.seq_offsets[:-1], batch.seq_offsets[1:], strict=True):
            trained = batch.targets[first:last] != NOT_TRAINED
            trained[-1] = False  # the next token is not in the row
            if trained.any():
                rows.append((batch.tokens[first:last], trained))
    return rows


def _compare_trained(
    one: Reader, other: Reader, rows: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Compared:
    """Compare both models' predictions of the trained tokens."""
    parts = []
    for tokens, trained in rows:
        c, mask = compare_chunk(one, other, tokens, first=0), trained[:-1]
        parts.append(Compared(c.kl[mask], c.base[mask], c.other[mask], c.same_top[mask]))
    return Compared.joined(parts)


def change_on_held(model: Model, merged: Model, parts: Parts, held: Sequence[Batch]) -> Change:
    """Measure the change on the trained tokens in `held`, which must contain at least one."""
    rows = rows_of(held)
    tokens = [row for row, _ in rows]
    unmerged = reader(model, mix(parts), tokens)
    found = _compare_trained(unmerged, reader(merged, None, tokens), rows)
    effect = _compare_trained(unmerged, reader(model, None, tokens), rows)
    return Change(found, float(effect.kl.mean()))


def change_on_text(
    model: Model, merged: Model, parts: Parts, text: str | None, *, name: str
) -> Change:
    """Measure the change on a text from the file `name`.

    If `text` is None, the base model generates a text.

    Raises `DataError` for a text that is too short, and `GGUFError` for a model without a
    tokenizer.
    """
    rows = own_text(model) if text is None else of_text(model, text, shown(name, 400))
    unmerged = reader(model, mix(parts), rows)
    found = compare(unmerged, reader(merged, None, rows), rows)
    return Change(found, float(compare(unmerged, reader(model, None, rows), rows).kl.mean()))


def print_change(
    base: str,
    merged: str,
    parts: Parts,
    text: str | None,
    *,
    name: str,
    held: Sequence[Batch] = (),
    advice: str,
) -> Change | None:
    """Compare the model in the file `merged` with `base` and its adapters, and print the result.

    If rounding loses more than the share `LOST` of the adapters' effect, also print a warning with
    `advice`. The models are compared on `held` if no text is given and `held` contains trained
    tokens; otherwise, they are compared as in `change_on_text`. A model without a tokenizer cannot
    be compared; in this case, print a line that says so and return None.
    """
    model, other = load_model(base), load_model(merged)
    try:
        if text is None and rows_of(held):
            change, where = change_on_held(model, other, parts, held), "held-out records"
        else:
            change = change_on_text(model, other, parts, text, name=name)
            where = "a short text"
    except GGUFError as e:
        print(f"merged against unmerged: not compared ({e})")
        return None
    print(f"merged against unmerged, on {where}: {describe(change.found)}")
    effect = f"KL divergence {change.effect:.3g} nats per token; {kept(change)}"
    print(f"effect of the adapters: {effect}")
    if change.lost > LOST:
        print(
            f"warning: rounding to these types loses {change.lost:.0%} of the adapters' effect; "
            f"{advice}"
        )
    return change


def kept(change: Change) -> str:
    """Return a clause that says how much of the adapters' effect is kept."""
    if change.effect <= HARDLY:
        return "this effect is too small to compare"
    return f"{max(0.0, 1 - change.lost):.1%} of this effect is kept"
