"""The weight types and the lookup of their decoders.

The types are listed in `nbllama.gguf_io.types.TENSOR_TYPES`. Each row names the module of this
package (the `family`) that contains the decoder `decode_NAME`. A family is imported when one of its
types is first used, because building the tables for the IQ types takes time, and most files do not
use these types. Importing this module compiles nothing.

There are two sets of decoders with identical results: plain loops in this folder, which are easier
to read, and vector code in the `vector` folder, which is two to five times as fast. Setting the
environment variable `NBLLAMA_KERNELS=plain` selects the plain loops. Types without vector code
always use the plain decoder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from nbllama.errors import GGUFError, UsageError, shown
from nbllama.gguf_io.types import TENSOR_TYPES, TensorType

QUANTS: dict[int, TensorType] = {id: t for id, t in TENSOR_TYPES.items() if t.family}
"""All weight types that can be decoded, by ggml type id."""


def quant_type(type_id: int) -> TensorType:
    """Return the `QUANTS` entry of a type. Raises GGUFError for a type that cannot be decoded."""
    try:
        return QUANTS[type_id]
    except KeyError:
        known = TENSOR_TYPES.get(type_id)
        name = known.name if known else f"number {type_id}"
        raise GGUFError(f"weight type {name} is not supported") from None


def nbytes(type_id: int, n_elements: int) -> int:
    """Return the size of `n_elements` weights in bytes.

    Raises ValueError if the weights do not fill whole blocks.
    """
    t = quant_type(type_id)
    if n_elements < 0 or n_elements % t.block_size:
        raise ValueError(
            f"{n_elements} weights do not fill whole {t.name} blocks of {t.block_size}"
        )
    return n_elements // t.block_size * t.type_size


KERNEL_SET = os.environ.get("NBLLAMA_KERNELS") or "vector"
"""The set of decoders in use: "vector" or "plain"."""
if KERNEL_SET not in ("vector", "plain"):
    raise UsageError(f"NBLLAMA_KERNELS is {shown(KERNEL_SET)}; use plain or vector")


@cache
def find_decoder(type_id: int, kernel_set: str = KERNEL_SET) -> Any:
    """Return the kernel `decode(raw, src, n_blocks, out, dst)` of a type.

    Raises KeyError for a type that cannot be decoded.
    """
    t = QUANTS[type_id]
    name = f"decode_{t.name.lower()}"  # for example decode_q4_1 in nbllama.quants.legacy
    if kernel_set == "vector" and find_spec(f"nbllama.quants.vector.{t.family}"):
        family = import_module(f"nbllama.quants.vector.{t.family}")
        if hasattr(family, name):
            return getattr(family, name)
    return getattr(import_module(f"nbllama.quants.{t.family}"), name)


class _Decoders(Mapping[int, Any]):
    """A mapping from type ids to decoders in the selected set, imported when they are looked up."""

    def __getitem__(self, type_id: int) -> Any:
        return find_decoder(type_id)

    def __iter__(self) -> Iterator[int]:
        return iter(QUANTS)

    def __len__(self) -> int:
        return len(QUANTS)


DECODERS: Mapping[int, Any] = _Decoders()
