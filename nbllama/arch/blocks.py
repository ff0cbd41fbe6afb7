"""Sizes of blocks in models whose blocks differ in their heads and feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nbllama.arch.keys import per_block, size
from nbllama.arch.row import ArchRow
from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT


class BlockSizes(NamedTuple):
    """Sizes of one block; `kv_from`: the block whose keys and values its queries read."""

    n_head_kv: int
    head_dim: int
    n_rot: int
    n_ff: int
    kv_from: int


def read_blocks(
    f: GGUFFile,
    row: ArchRow,
    *,
    n_layer: int,
    n_head: int,
    head_dim: int,
    n_rot: int,
    has_window: Callable[[int], bool],
) -> tuple[BlockSizes, ...]:
    """Read the sizes of every block; () if the row's models have the same in all blocks.

    `head_dim` and `n_rot` are those of the blocks without a window. The last blocks can have no
    keys and values of their own: they use those of the last earlier block of the same kind.
    """
    if not row.varied:
        return ()
    prefix = f"{row.name}.attention"
    own = size(f, f"{prefix}.key_length_swa")
    if (values := size(f, f"{prefix}.value_length_swa")) != own:
        raise f.error(
            f"key '{prefix}.value_length_swa'",
            f"{values}, but keys have {own}; different sizes are not supported",
        )
    key = f"{row.name}.rope.dimension_count_swa"
    own_rot = int(f.count(key, MAX_COUNT, default=n_rot))
    if own_rot < 2 or own_rot % 2 or own_rot > own:
        raise f.error(f"key '{key}'", f"{own_rot}, must be even, from 2 to the head size {own}")
    kv_heads = per_block(f, f"{prefix}.head_count_kv", n_layer, default=n_head)
    n_ff = per_block(f, f"{row.name}.feed_forward_length", n_layer)
    key = f"{prefix}.shared_kv_layers"
    start = n_layer - int(f.count(key, max(0, n_layer - 2), default=0))
    blocks = []
    for i in range(n_layer):
        if n_head % kv_heads[i]:
            raise f.error(
                f"key '{prefix}.head_count_kv'",
                f"{kv_heads[i]} does not divide head_count {n_head}",
            )
        of = i if i < start else start - (2 if has_window(i) else 1)
        if has_window(of) != has_window(i) or kv_heads[of] != kv_heads[i]:
            raise f.error(
                f"key '{key}'",
                f"{n_layer - start}: block {i} would use the keys and values of block {of}, "
                "which has another kind of attention",
            )
        sizes = (own, own_rot) if has_window(i) else (head_dim, n_rot)
        blocks.append(BlockSizes(kv_heads[i], *sizes, n_ff[i], of))
    return tuple(blocks)
