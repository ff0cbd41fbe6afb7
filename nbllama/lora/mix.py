"""Combine several adapters into one, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nbllama.lora.pairs import Adapter, Pair


def mix(parts: Sequence[tuple[Adapter, float]]) -> Adapter:
    """Return an adapter that is equivalent to the sum of `parts`, each multiplied by its factor.

    Pairs for the same tensor are stacked as A = [A1; A2; ...] and B = [s1 B1, s2 B2, ...]. The
    scales are applied to B, so the only error is the rounding of s B. The new rank is the sum of
    the ranks. For a single adapter, only alpha changes. Raises `ValueError` if `parts` is empty.
    """
    if not parts:
        raise ValueError("no adapter to mix")
    first, factor = parts[0]
    if len(parts) == 1:
        return replace(first, alpha=first.alpha * factor)
    stacks: dict[str, list[tuple[Pair, float]]] = {}
    for adapter, factor in parts:
        for name, pair in adapter.pairs.items():
            stacks.setdefault(name, []).append((pair, factor * adapter.scale))
    pairs = {}
    for name, stack in stacks.items():
        a = np.concatenate([pair.a for pair, _ in stack], axis=-2)
        b = np.concatenate([np.float32(scale) * pair.b for pair, scale in stack], axis=-1)
        pairs[name] = Pair(a, np.ascontiguousarray(b))
    return Adapter(first.arch, 1.0, 1, pairs)
