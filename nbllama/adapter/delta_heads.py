"""Whether the matrices of a delta net have Hugging Face's order of heads.

Where several heads of values share a head of keys, llama.cpp's converter has brought them into
another order: rows of some matrices, columns of another.
"""

from __future__ import annotations

from collections.abc import Iterable

from nbllama.adapter.stored import Base
from nbllama.arch import ARCHS
from nbllama.errors import UsageError
from nbllama.lora.slots import slot_of

_OF_A_DELTA_NET = ("attn_gate", "ssm_alpha", "ssm_beta", "ssm_out")


def check_heads(base: Base, names: Iterable[str]) -> None:
    """Raise `UsageError` unless Hugging Face has these base tensors' rows and columns as they are.

    `names`: of base tensors that have a pair.
    """
    for name in names:
        found = slot_of(name)
        if found is None or not _in_delta_net(found[0].tensor, base):
            continue
        if base.delta is None:
            raise UsageError(
                f"whether Hugging Face has the rows of {name} in another order depends on the"
                " model: give --model-base FILE"
            )
        if base.delta.key_heads != base.delta.heads:
            raise UsageError(
                f"Hugging Face has the heads of {name} in another order than this model's GGUF"
                " file: a PEFT folder cannot hold this adapter; .gguf and .bin do"
            )


def _in_delta_net(tensor: str, base: Base) -> bool:
    row = ARCHS.get(base.arch or "")
    of_one = row is not None and row.mixer == "delta"
    return tensor in _OF_A_DELTA_NET or (tensor == "attn_qkv" and of_one)
