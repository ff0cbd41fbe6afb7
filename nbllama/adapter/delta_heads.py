"""Check that the heads in a delta net's matrices are in Hugging Face's order.

If several value heads share a key head, llama.cpp's converter reorders the value heads in the rows
of some matrices and in the columns of one matrix.
"""

from __future__ import annotations

from collections.abc import Iterable

from nbllama.adapter.stored import Base
from nbllama.arch import ARCHS
from nbllama.errors import UsageError
from nbllama.lora.slots import slot_of

_OF_A_DELTA_NET = ("attn_gate", "ssm_alpha", "ssm_beta", "ssm_out")


def check_heads(base: Base, names: Iterable[str]) -> None:
    """Raise `UsageError` unless the rows and columns of these tensors are in Hugging Face's order.

    `names` lists the base tensors that have a pair.
    """
    for name in names:
        found = slot_of(name)
        if found is None or not _in_delta_net(found[0].tensor, base):
            continue
        if base.delta is None:
            raise UsageError(
                f"Hugging Face's row order for {name} depends on the base model: "
                "pass --model-base FILE"
            )
        if base.delta.key_heads != base.delta.heads:
            raise UsageError(
                f"Hugging Face orders the heads in {name} differently from this model's GGUF file, "
                "so a PEFT folder cannot store this adapter; use .gguf or .bin"
            )


def _in_delta_net(tensor: str, base: Base) -> bool:
    row = ARCHS.get(base.arch or "")
    has_delta_net = row is not None and row.mixer == "delta"
    return tensor in _OF_A_DELTA_NET or (tensor == "attn_qkv" and has_delta_net)
