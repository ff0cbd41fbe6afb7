"""Block sizes of models whose heads and feed-forward layers differ in size between blocks."""

from __future__ import annotations

from typing import NamedTuple

from nbllama.arch.keys import per_block, size
from nbllama.arch.row import ArchRow
from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT


class BlockSizes(NamedTuple):
    """The sizes of one block."""

    n_head_kv: int
    head_dim: int
    n_rot: int
    n_ff: int
    window: int = 0  # tokens in the sliding window (only if blocks differ in size); 0: no window
    row: int = 0  # the block's index among the per-block embeddings in the file
    kv_from: int = -1  # the block whose keys and values this block uses


def read_blocks(
    f: GGUFFile,
    row: ArchRow,
    *,
    n_layer: int,
    n_head: int,
    head_dim: int,
    n_rot: int,
    window: int,
) -> tuple[BlockSizes, ...]:
    """Read the sizes of each block, or return () if the architecture has a single block size.

    `head_dim` and `n_rot` apply to the blocks without a window. The last blocks may lack keys and
    values. They then use the keys and values of the last block of the same kind that has them.
    """
    if not row.varied:
        return ()
    prefix = f"{row.name}.attention"
    own = size(f, f"{prefix}.key_length_swa")
    if (values := size(f, f"{prefix}.value_length_swa")) != own:
        raise f.error(
            f"key '{prefix}.value_length_swa'",
            f"{values}, but keys have size {own}; different sizes are not supported",
        )
    key = f"{row.name}.rope.dimension_count_swa"
    own_rot = int(f.count(key, MAX_COUNT, default=n_rot))
    if own_rot < 2 or own_rot % 2 or own_rot > own:
        raise f.error(
            f"key '{key}'", f"{own_rot}, but must be an even number from 2 to the head size ({own})"
        )
    kv_heads = per_block(f, f"{prefix}.head_count_kv", n_layer, default=n_head)
    n_ff = per_block(f, f"{row.name}.feed_forward_length", n_layer)
    has_window = _windows(f, f"{prefix}.sliding_window_pattern", n_layer)
    key = f"{prefix}.shared_kv_layers"
    start = n_layer - int(f.count(key, max(0, n_layer - 2), default=0))
    blocks = []
    for i in range(n_layer):
        if n_head % kv_heads[i]:
            raise f.error(
                f"key '{prefix}.head_count_kv'",
                f"{kv_heads[i]} does not divide head_count {n_head}",
            )
        of = i if i < start else start - (2 if has_window[i] else 1)
        if has_window[of] != has_window[i] or kv_heads[of] != kv_heads[i]:
            raise f.error(
                f"key '{key}'",
                f"{n_layer - start}: block {i} would use the keys and values of block {of}, "
                "which has a different kind of attention",
            )
        heads = (own, own_rot) if has_window[i] else (head_dim, n_rot)
        blocks.append(
            BlockSizes(kv_heads[i], *heads, n_ff[i], window if has_window[i] else 0, i, of)
        )
    return tuple(blocks)


def _windows(f: GGUFFile, key: str, n_layer: int) -> list[bool]:
    """Return whether each block has a window, as specified by the flags in the file."""
    flags = [bool(flag) for flag in f.get(key, "flags")]
    if len(flags) != n_layer:
        raise f.error(f"key '{key}'", f"{len(flags)} values for {n_layer} layers")
    return flags
