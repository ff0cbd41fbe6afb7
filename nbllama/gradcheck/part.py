"""Extract a few blocks of a model as a separate model with the same embeddings and output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nbllama.arch import BlockSizes, Hparams
from nbllama.errors import UsageError
from nbllama.gguf_io import GGUFFile
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model

_BLOCK = re.compile(r"blk\.([0-9]+)\.(.+)")


class PartOfFile(GGUFFile):
    """A view of a file that contains only some of the file's blocks, renumbered from 0."""

    def __init__(self, whole: GGUFFile, layers: Sequence[int]) -> None:
        self.path, self.paths = whole.path, whole.paths
        self.metadata, self._whole = whole.metadata, whole
        self.old_names = {}
        for name in whole.tensors:
            new = renamed(name, layers)
            if new is not None:
                self.old_names[new] = name
        self.tensors = {n: whole.tensors[old] for n, old in self.old_names.items()}

    def data(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor, given its name in the part."""
        return self._whole.data(self.old_names[name])


def renamed(name: str, layers: Sequence[int]) -> str | None:
    """Return the name that a tensor has in the part, or None if its block is not in the part."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return name
    layer = int(match[1])
    return f"blk.{layers.index(layer)}.{match[2]}" if layer in layers else None


def part_of(model: Model, layers: Sequence[int]) -> Model:
    """Return a model that consists of these blocks, in this order.

    Raises `UsageError` if a block uses the keys and values of a block outside the part.
    """
    hp = replace(model.hp, n_layer=len(layers))
    if hp.mixers:
        hp = replace(hp, mixers=tuple(hp.mixers[layer] for layer in layers), next_blocks=0)
    if hp.blocks:
        hp = replace(hp, blocks=_blocks(hp, layers))
    if hp.xielu:
        hp = replace(hp, xielu=tuple(hp.xielu[layer] for layer in layers))
    if hp.experts:
        dense = sum(not hp.experts.at(layer) for layer in layers)  # they precede the other blocks
        hp = replace(hp, experts=hp.experts._replace(first=dense), next_blocks=0)
    return Model(PartOfFile(model.gguf, layers), hp)


def _blocks(hp: Hparams, layers: Sequence[int]) -> tuple[BlockSizes, ...]:
    blocks = [hp.blocks[layer] for layer in layers]
    for i, (layer, of) in enumerate(zip(layers, blocks, strict=True)):
        if of.kv_from not in layers[: i + 1]:
            raise UsageError(
                f"--layers: block {layer} uses the keys and values of block {of.kv_from}; add "
                f"block {of.kv_from}"
            )
        blocks[i] = of._replace(kv_from=layers.index(of.kv_from))
    return tuple(blocks)


def part_of_adapter(adapter: Adapter, layers: Sequence[int]) -> Adapter:
    """Return an adapter with the pairs in these blocks and the pairs outside all blocks."""
    pairs = {new: p for name, p in adapter.pairs.items() if (new := renamed(name, layers))}
    return replace(adapter, pairs=pairs)


def usual_layers(model: Model) -> list[int]:
    """Choose the last block, and enough others to cover all kinds of blocks and weight types.

    If the use of sliding windows or RoPE follows a repeating pattern, choose the blocks of its
    first period instead.
    """
    hp = model.hp
    period = max(hp.window_period if hp.window and not hp.blocks else 0, hp.rope_period)
    if 0 < period <= hp.n_layer:
        return list(range(period))
    kinds: dict[tuple[object, ...], int] = {}
    for layer in range(hp.n_layer):
        of = hp.sizes_at(layer)
        own = of.kv_from == layer
        kind = (hp.mixer_at(layer), own, of._replace(row=0, kv_from=0), model.block_types(layer))
        kinds.setdefault(kind, layer)
    chosen = {*kinds.values(), hp.n_layer - 1}
    return sorted(chosen | {hp.sizes_at(layer).kv_from for layer in chosen})
