"""Which tensors of a base model can carry a LoRA pair, and in which order.

One row a kind of tensor: all that is done for each of them (options, ranks, checkpoint keys,
initialisation) goes through this table. Names are llama.cpp's; the order is that in which its old
`finetune` wrote tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_MAX_LAYERS = 1 << 20


class Slot(NamedTuple):
    """One kind of base tensor that can carry a pair."""

    name: str  # as in `--rank-NAME`, with `_` for `-`
    tensor: str  # GGUF name without block number and ".weight"
    kind: str  # "linear", "embedding" or "norm"
    in_block: bool

    def base_name(self, layer: int = 0) -> str:
        """GGUF name of the base tensor in block `layer`."""
        return f"blk.{layer}.{self.tensor}.weight" if self.in_block else f"{self.tensor}.weight"


# In the order in which the old tool writes its tensors.
SLOTS = (
    Slot("tok_embd", "token_embd", "embedding", False),
    Slot("out_norm", "output_norm", "norm", False),
    Slot("out", "output", "linear", False),
    Slot("att_norm", "attn_norm", "norm", True),
    Slot("wq", "attn_q", "linear", True),
    Slot("wk", "attn_k", "linear", True),
    Slot("wv", "attn_v", "linear", True),
    Slot("wo", "attn_output", "linear", True),
    Slot("ffn_norm", "ffn_norm", "norm", True),
    Slot("w1", "ffn_gate", "linear", True),
    Slot("w2", "ffn_down", "linear", True),
    Slot("w3", "ffn_up", "linear", True),
)
# Of models that have several linears in one matrix (the old tool knew none of them).
FUSED_SLOTS = (Slot("wqkv", "attn_qkv", "linear", True),)
EVERY_SLOT = SLOTS + FUSED_SLOTS
SLOT_BY_NAME = {slot.name: slot for slot in EVERY_SLOT}
_BY_TENSOR = {slot.tensor: slot for slot in EVERY_SLOT}
_ENDS = [slot for slot in SLOTS if not slot.in_block]
_IN_BLOCK = [slot for slot in SLOTS if slot.in_block]
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,6})\.)?([a-z_]+)\.weight")


def slot_of(name: str) -> tuple[Slot, int] | None:
    """Slot and block number (-1 outside the blocks) of a base tensor; None: takes no pair."""
    found = _NAME.fullmatch(name)
    slot = _BY_TENSOR.get(found[2]) if found else None
    if found is None or slot is None or slot.in_block != (found[1] is not None):
        return None
    layer = int(found[1]) if slot.in_block else -1
    return (slot, layer) if layer < _MAX_LAYERS else None


def tensor_index(name: str) -> int:
    """Place of a base tensor in the old tool's order: three ends, then nine a block; fused ones
    come after all these.

    Raises `KeyError` for a tensor that takes no pair.
    """
    found = slot_of(name)
    if found is None:
        raise KeyError(name)
    slot, layer = found
    if not slot.in_block:
        return _ENDS.index(slot)
    if slot in FUSED_SLOTS:
        after = len(_ENDS) + _MAX_LAYERS * len(_IN_BLOCK)
        return after + layer * len(FUSED_SLOTS) + FUSED_SLOTS.index(slot)
    return len(_ENDS) + layer * len(_IN_BLOCK) + _IN_BLOCK.index(slot)


def base_names(n_layer: int, slots: tuple[Slot, ...] = SLOTS) -> Iterator[tuple[Slot, str]]:
    """Every (slot, base tensor name) that a model of `n_layer` blocks may have, in the order of
    `slots`, the ends first.
    """
    yield from ((slot, slot.base_name()) for slot in slots if not slot.in_block)
    for layer in range(n_layer):
        yield from ((slot, slot.base_name(layer)) for slot in slots if slot.in_block)


def pair_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(n_out, n_in) of a base tensor's numpy shape; a vector (n,) counts as (1, n)."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def without_tensor(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Names of the slots that a model with these tensors does not have."""
    return {slot.name for slot in EVERY_SLOT if slot.base_name() not in shapes}
