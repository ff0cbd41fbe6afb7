"""Load the adapters given by `--lora` and `--lora-scaled` for a base model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from nbllama.adapter.file import load_adapter
from nbllama.arch import Hparams
from nbllama.errors import UsageError, counted, shown
from nbllama.lora.pairs import Adapter


def load_adapters(
    files: Sequence[tuple[str, float]],
    hp: Hparams,
    shapes: Mapping[str, tuple[int, ...]],
    say: Callable[[str], None],
) -> list[tuple[Adapter, float]]:
    """Return the adapters with their scales, reporting each adapter through `say`.

    Also reports adapters that are given more than once. `shapes` contains the shapes of the base
    model's tensors. Raises `CheckpointError` if an adapter belongs to a different base model,
    and `UsageError` if a file is missing.
    """
    found = []
    for i, (path, scale) in enumerate(files):
        if (other := _same_file(path, [name for name, _ in files[:i]])) is not None:
            also = "" if other == path else f" (also as {shown(other, 400)})"
            say(
                f"note: {shown(path, 400)} is given more than once{also}; its effect is added each"
                " time"
            )
        try:
            adapter = load_adapter(path, hp, shapes, say)
        except FileNotFoundError:
            raise UsageError(f"{shown(path, 400)}: no such adapter file") from None
        say(f"{shown(path, 400)}: {counted(len(adapter.pairs), 'pair')}, scale {scale:g}")
        found.append((adapter, scale))
    return found


def _same_file(path: str, others: Sequence[str]) -> str | None:
    """Return the first of `others` that names the same file or folder as `path`, or None."""
    if not os.path.exists(path):
        return None
    return next((o for o in others if os.path.exists(o) and os.path.samefile(o, path)), None)
