"""Functions that find the blocks with a mixer other than attention and read the mixer's sizes."""

from __future__ import annotations

from nbllama.arch.hparams import DeltaNet
from nbllama.arch.keys import per_layer, size
from nbllama.arch.row import ArchRow
from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT

MOST_TAPS = 64


def kinds(f: GGUFFile, row: ArchRow, n_layer: int) -> tuple[str, ...]:
    """Return "attention" or the row's `mixer` for each block.

    Returns () if the architecture has attention in all blocks.
    """
    if not row.mixer:
        return ()
    key, has = _by_heads(f, row) if row.mixer == "conv" else _by_period(f, row, n_layer)
    if len(has) < n_layer:
        raise f.error(f"key '{key}'", f"{len(has)} values for {n_layer} layers")
    of_blocks = tuple("attention" if x else row.mixer for x in has[:n_layer])
    if "attention" not in of_blocks:
        raise f.error(f"key '{key}'", "no block has attention; such models are not supported")
    return of_blocks


def _by_heads(f: GGUFFile, row: ArchRow) -> tuple[str, list[bool]]:
    """Return the key that was read, and which blocks have attention (those with key heads)."""
    key = f"{row.name}.attention.head_count_kv"
    return key, [n > 0 for n in f.get(key, "ints").tolist()]


def _by_period(f: GGUFFile, row: ArchRow, n_layer: int) -> tuple[str, list[bool]]:
    """Return the key that was read, and which blocks have attention.

    The file either lists the blocks with attention or specifies a period. In the second case, the
    last block of each period has attention.
    """
    key = f"{row.name}.attention.recurrent_layers"
    if key in f.metadata:
        return key, [not flag for flag in f.get(key, "flags")]
    key = f"{row.name}.full_attention_interval"
    period = int(f.count(key, MAX_COUNT, default=4, low=1))
    return key, [(i + 1) % period == 0 for i in range(n_layer)]


def n_head_kv(f: GGUFFile, row: ArchRow, n_layer: int, n_head: int) -> int:
    """Read the number of key heads, which must be the same in all blocks with attention."""
    key = f"{row.name}.attention.head_count_kv"
    if row.mixer != "conv":
        return per_layer(f, key, n_layer, default=n_head)
    values = f.get(key, "ints")
    some = values[values != 0]
    if not (some == some[0]).all():
        raise f.error(
            f"key '{key}'", "differs between attention blocks; such models are not supported"
        )
    if not 1 <= int(some[0]) <= MAX_COUNT:
        raise f.error(f"key '{key}'", f"{int(some[0])}, but must be from 1 to {MAX_COUNT}")
    return int(some[0])


def delta_net(f: GGUFFile, row: ArchRow) -> DeltaNet | None:
    """Read the sizes of the blocks with a delta net, or return None for other models."""
    if row.mixer != "delta":
        return None
    key = f"{row.name}.ssm"
    heads, groups = size(f, f"{key}.time_step_rank"), size(f, f"{key}.group_count")
    of = DeltaNet(
        heads=heads,
        key_heads=groups,
        size=size(f, f"{key}.state_size"),
        taps=int(f.count(f"{key}.conv_kernel", MOST_TAPS, low=2)),
    )
    if heads % groups:
        raise f.error(f"key '{key}.group_count'", f"{groups} does not divide {heads} heads")
    if (inner := size(f, f"{key}.inner_size")) != of.n_values:
        raise f.error(
            f"key '{key}.inner_size'",
            f"{inner}, but {heads} heads of size {of.size} require {of.n_values}",
        )
    return of


def check_sections(f: GGUFFile, row: ArchRow, n_rot: int) -> None:
    """Check that the first three RoPE sections cover all rotated pairs of elements.

    llama.cpp interleaves the pairs of these sections. It would rotate any other pairs by a fourth
    position, which does not exist for text.
    """
    if row.mixer != "delta":
        return
    key = f"{row.name}.rope.dimension_sections"
    sections = f.get(key, "ints").tolist()
    pairs = range(n_rot // 2)
    if len(sections) < 3 or not all(i < 3 * sections[i % 3] for i in pairs):
        raise f.error(f"key '{key}'", f"{sections} do not cover {n_rot // 2} pairs")


def conv_taps(f: GGUFFile, row: ArchRow) -> int:
    """Read the length of a short convolution in tokens; return 0 if the model has none."""
    if row.mixer != "conv":
        return 0
    return int(f.count(f"{row.name}.shortconv.l_cache", MOST_TAPS, low=2))
