"""Load the adapters given by `--lora` and `--lora-scaled` for a base model."""

from __future__ import annotations

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

    `shapes` contains the shapes of the base model's tensors. Raises `CheckpointError` if an adapter
    belongs to a different base model, and `UsageError` if a file is missing.
    """
    found = []
    for path, scale in files:
        try:
            adapter = load_adapter(path, hp, shapes, say)
        except FileNotFoundError:
            raise UsageError(f"{shown(path, 400)}: no such adapter file") from None
        say(f"{shown(path, 400)}: {counted(len(adapter.pairs), 'pair')}, scale {scale:g}")
        found.append((adapter, scale))
    return found
