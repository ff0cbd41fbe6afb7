"""The table of slots: which tensors of a base model can have a LoRA pair, and all their names.

All code that iterates over the slots (options, ranks, checkpoint keys, initialisation, the linear
layers of a block) uses this table. A matrix has four names:

| example | name of the | used in |
|---|---|---|
| `wq` | slot | options (`--rank-wq`), as in llama.cpp's old `finetune` |
| `attn_q` | tensor | GGUF files (`blk.3.attn_q.weight`) |
| `q` | linear layer | the code of the forward and backward passes |
| `Qcur` | node (the layer's output) | llama.cpp's graph and `nbllama.peek` |

This module imports no large packages, so that the command line can use the table without loading
numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_MAX_LAYERS = 1 << 20


class Slot(NamedTuple):
    """One kind of base tensor that can have a pair."""

    name: str  # as in `--rank-NAME`, with `_` instead of `-`
    tensor: str  # GGUF name, without block number and ".weight"
    kind: str  # "linear", "embedding", "norm" or "experts"
    in_block: bool
    linear: str = ""  # name of the linear layer in the block
    node: str = ""  # name of that layer's output
    source: int = -1  # index of the block input that the layer reads

    def base_name(self, layer: int = 0) -> str:
        """Return the GGUF name of the base tensor in block `layer`."""
        return f"blk.{layer}.{self.tensor}.weight" if self.in_block else f"{self.tensor}.weight"


# In the order in which the old tool writes tensors.
SLOTS = (
    Slot("tok_embd", "token_embd", "embedding", False),
    Slot("out_norm", "output_norm", "norm", False),
    Slot("out", "output", "linear", False),
    Slot("att_norm", "attn_norm", "norm", True),
    Slot("wq", "attn_q", "linear", True, "q", "Qcur", 0),
    Slot("wk", "attn_k", "linear", True, "k", "Kcur", 0),
    Slot("wv", "attn_v", "linear", True, "v", "Vcur", 0),
    Slot("wo", "attn_output", "linear", True, "o", "attn_out", 1),
    Slot("ffn_norm", "ffn_norm", "norm", True),
    Slot("w1", "ffn_gate", "linear", True, "gate", "ffn_gate", 2),
    Slot("w2", "ffn_down", "linear", True, "down", "ffn_out", 3),
    Slot("w3", "ffn_up", "linear", True, "up", "ffn_up", 2),
)
# Tensors that the old tool did not support: fused matrices, tensors for the routed experts and the
# shared expert, tensors in blocks without attention, and tensors for per-block embeddings.
FUSED_SLOTS = (
    Slot("wqkv", "attn_qkv", "linear", True, "qkv", "delta_qkv", 0),
    Slot("gate_shexp", "ffn_gate_shexp", "linear", True, "gate_shexp", "ffn_gate_shexp", 2),
    Slot("down_shexp", "ffn_down_shexp", "linear", True, "down_shexp", "ffn_shexp", 3),
    Slot("up_shexp", "ffn_up_shexp", "linear", True, "up_shexp", "ffn_up_shexp", 2),
    Slot("gate_exps", "ffn_gate_exps", "experts", True),
    Slot("down_exps", "ffn_down_exps", "experts", True),
    Slot("up_exps", "ffn_up_exps", "experts", True),
    Slot("conv_in", "shortconv.in_proj", "linear", True, "conv_in", "conv_in", 0),
    Slot("conv_out", "shortconv.out_proj", "linear", True, "conv_out", "conv_out", 1),
    Slot("attn_gate", "attn_gate", "linear", True, "z", "delta_z", 0),
    Slot("ssm_alpha", "ssm_alpha", "linear", True, "alpha", "delta_alpha", 0),
    Slot("ssm_beta", "ssm_beta", "linear", True, "beta", "delta_beta", 0),
    Slot("ssm_out", "ssm_out", "linear", True, "ssm_out", "ssm_out", 1),
    Slot("inp_gate", "inp_gate", "linear", True, "inp_gate", "per_layer_gate", 4),
    Slot("proj", "proj", "linear", True, "proj", "per_layer_out", 5),
)
EVERY_SLOT = SLOTS + FUSED_SLOTS
SLOT_BY_NAME = {slot.name: slot for slot in EVERY_SLOT}
LINEARS = {slot.linear: slot for slot in EVERY_SLOT if slot.linear}
"""The slots of the linear layers in blocks, except for routed experts, keyed by `Slot.linear`."""
_BY_TENSOR = {slot.tensor: slot for slot in EVERY_SLOT}
_ENDS = [slot for slot in SLOTS if not slot.in_block]
_IN_BLOCK = [slot for slot in SLOTS if slot.in_block]
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,6})\.)?([a-z_]+(?:\.[a-z_]+)?)\.weight")


def slot_of(name: str) -> tuple[Slot, int] | None:
    """Return the slot and the block number (-1 outside the blocks) of a base tensor.

    Returns None if the tensor has no slot.
    """
    found = _NAME.fullmatch(name)
    slot = _BY_TENSOR.get(found[2]) if found else None
    if found is None or slot is None or slot.in_block != (found[1] is not None):
        return None
    layer = int(found[1]) if slot.in_block else -1
    return (slot, layer) if layer < _MAX_LAYERS else None


def tensor_index(name: str) -> int:
    """Return the index of a base tensor in the old tool's order.

    The three tensors outside the blocks come first, then the nine tensors of each block, and
    finally, for each of `FUSED_SLOTS`, the tensors of all blocks. Raises `KeyError` if the tensor
    has no slot.
    """
    found = slot_of(name)
    if found is None:
        raise KeyError(name)
    slot, layer = found
    if not slot.in_block:
        return _ENDS.index(slot)
    if slot in FUSED_SLOTS:
        after = len(_ENDS) + _MAX_LAYERS * len(_IN_BLOCK)
        return after + layer + _MAX_LAYERS * FUSED_SLOTS.index(slot)
    return len(_ENDS) + layer * len(_IN_BLOCK) + _IN_BLOCK.index(slot)


def base_names(n_layer: int, slots: tuple[Slot, ...] = SLOTS) -> Iterator[tuple[Slot, str]]:
    """Yield every (slot, base tensor name) pair of a model with `n_layer` blocks.

    Tensors outside the blocks come first; within a block, tensors follow the order of `slots`.
    """
    yield from ((slot, slot.base_name()) for slot in slots if not slot.in_block)
    for layer in range(n_layer):
        yield from ((slot, slot.base_name(layer)) for slot in slots if slot.in_block)


def pair_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (n_out, n_in) for the numpy shape of a base tensor; (n,) is treated as (1, n).

    For expert tensors, the result is (n_expert, n_out, n_in).
    """
    return (1, shape[0]) if len(shape) == 1 else tuple(shape)


def without_tensor(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return the names of the slots that match none of these tensors."""
    present = {of[0].name for of in map(slot_of, shapes) if of is not None}
    return {slot.name for slot in EVERY_SLOT} - present
