"""The table of weight types and where their decoders are; nothing is compiled here.

A row says which file of this package (`family`) decodes a type and at which bytes of a block its
scales (IEEE halves) sit. Sizes come from `nbllama.gguf_io.types`. A family is imported when one of
its types is first asked for: the tables of the IQ types cost time that most files need not pay.

There are two sets of decoders with equal results: plain loops in this folder (the text to read),
and vectors in the folder `vector`, which run two to five times as fast. The environment chooses
the first with `NBLLAMA_KERNELS=plain`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from nbllama.errors import GGUFError, UsageError, shown
from nbllama.gguf_io.types import TENSOR_TYPES


class QuantType(NamedTuple):
    """A weight type: `block_size` weights are packed into `type_size` bytes.

    `scales` are the byte offsets in a block of the IEEE halves that scale its weights.
    """

    name: str
    id: int
    block_size: int
    type_size: int
    family: str
    scales: tuple[int, ...]


def _row(name: str, family: str, *scales: int) -> QuantType:
    size = next(t for t in TENSOR_TYPES.values() if t.name == name)
    return QuantType(name, size.id, size.block_size, size.type_size, family, scales)


QUANTS: dict[int, QuantType] = {
    t.id: t
    for t in (
        _row("F32", "floats"),
        _row("F16", "floats"),
        _row("BF16", "floats"),
        _row("Q4_0", "legacy", 0),
        _row("Q4_1", "legacy", 0, 2),
        _row("Q5_0", "legacy", 0),
        _row("Q5_1", "legacy", 0, 2),
        _row("Q8_0", "legacy", 0),
        _row("Q2_K", "kquants", 80, 82),
        _row("Q3_K", "kquants", 108),
        _row("Q4_K", "kquants", 0, 2),
        _row("Q5_K", "kquants", 0, 2),
        _row("Q6_K", "kquants", 208),
        _row("IQ1_S", "iquants", 0),
        _row("IQ1_M", "iquants"),
        _row("IQ2_XXS", "iquants", 0),
        _row("IQ2_XS", "iquants", 0),
        _row("IQ2_S", "iquants", 0),
        _row("IQ3_XXS", "iquants", 0),
        _row("IQ3_S", "iquants", 0),
        _row("IQ4_NL", "iq4", 0),
        _row("IQ4_XS", "iq4", 0),
        _row("TQ1_0", "ternary", 52),
        _row("TQ2_0", "ternary", 64),
        _row("MXFP4", "mxfp4"),
    )
}
"""Every weight type that can be decoded, by ggml's id."""


def quant_type(type_id: int) -> QuantType:
    """The row of a type; GGUFError for a type that cannot be decoded."""
    try:
        return QUANTS[type_id]
    except KeyError:
        known = TENSOR_TYPES.get(type_id)
        name = known.name if known else f"number {type_id}"
        raise GGUFError(f"weight type {name} is not supported") from None


def nbytes(type_id: int, n_elements: int) -> int:
    """Bytes of `n_elements` weights; ValueError unless they are whole blocks."""
    t = quant_type(type_id)
    if n_elements < 0 or n_elements % t.block_size:
        raise ValueError(f"{n_elements} weights are not whole {t.name} blocks of {t.block_size}")
    return n_elements // t.block_size * t.type_size


KERNEL_SET = os.environ.get("NBLLAMA_KERNELS") or "vector"
"""Which decoders run: "vector" or "plain"."""
if KERNEL_SET not in ("vector", "plain"):
    raise UsageError(f"NBLLAMA_KERNELS is {shown(KERNEL_SET)}; it can be plain or vector")


def find_decoder(type_id: int, kernel_set: str = KERNEL_SET) -> Any:
    """The kernel `decode(raw, src, n_blocks, out, dst)` of a type; KeyError if there is none.

    The plain formats (family `floats`) have one kernel for both sets.
    """
    t = QUANTS[type_id]
    folder = "vector." if kernel_set == "vector" and t.family != "floats" else ""
    family = import_module(f"nbllama.quants.{folder}{t.family}")
    return getattr(family, f"decode_{t.name.lower()}")


class _Decoders(Mapping[int, Any]):
    """Type id -> kernel of the chosen set, imported when first looked up."""

    def __getitem__(self, type_id: int) -> Any:
        return find_decoder(type_id)

    def __iter__(self) -> Iterator[int]:
        return iter(QUANTS)

    def __len__(self) -> int:
        return len(QUANTS)


DECODERS: Mapping[int, Any] = _Decoders()
