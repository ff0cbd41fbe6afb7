"""What merging has changed: the merged model against base and adapters on a short text."""

from __future__ import annotations

from nbllama.errors import GGUFError, shown
from nbllama.evaluate.sample_text import compare, of_text, own_text, reader
from nbllama.evaluate.scores import Compared
from nbllama.export.merge import Parts
from nbllama.lora.mix import mix
from nbllama.model.passes import load_model

LOST = 0.1  # of the effect: what merging may change, and llama.cpp may differ by


def told(c: Compared) -> str:
    """Write a comparison in one line."""
    other = int((~c.same_top).sum())
    return (
        f"KL divergence {c.kl.mean():.3g} nats a token, {c.kl.max():.3g} at most; "
        f"another most likely token at {other} of {len(c.kl)} places"
    )


def print_change(base: str, merged: str, parts: Parts, text: str | None, *, name: str) -> None:
    """Print how far the model in the file `merged` is from `base` with its adapters.

    Print a warning too where rounding took more than `LOST` of what the adapters do.

    `text`: the sample, from a file `name`; None: a text that the base model writes. A model without
    a tokenizer cannot be compared, and the line says so. Raises `DataError` for a text that is too
    short.
    """
    model = load_model(base)
    try:
        rows = own_text(model) if text is None else of_text(model, text, shown(name, 400))
    except GGUFError as e:
        print(f"merged against unmerged: not compared: {e}")
        return
    unmerged = reader(model, mix(parts), rows)
    found = compare(unmerged, reader(load_model(merged), None, rows), rows)
    print(f"merged against unmerged: {told(found)}")
    effect = compare(reader(model, None, rows), unmerged, rows).kl.mean()
    lost = found.kl.mean()
    if lost > LOST * effect:
        print(
            f"warning: that is {lost / effect:.0%} of what the adapters change (KL divergence "
            f"{effect:.3g}): these types round it away; keep the adapters beside the base "
            "(--lora), or merge with --outtype q8_0, f16 or f32"
        )
