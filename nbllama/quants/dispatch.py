"""Select the decoder of a weight type when a kernel is compiled (`decode_blocks`).

A matmul kernel is written once for all types. It calls `decode_blocks(type_id, ...)` with a
`type_id` that is known at compile time, and Numba links the decoder of that type. If the decoder
were passed as an argument, Numba would compile the kernel again in every process. With an if-chain
over all types, Numba would compile all decoders.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from nbllama.quants.base import DECODERS, QUANTS


def decode_blocks(type_id: int, raw: Any, src: Any, n_blocks: Any, out: Any, dst: Any) -> None:
    """Inside a kernel, decode `n_blocks` blocks, starting at `raw[src]`, into `out[dst:]`.

    `raw` is a read-only uint8[::1], and `out` is a float32[::1]. They must not overlap. Bounds are
    not checked; the caller is responsible for them. `type_id` must be an integer known at compile
    time. `src`, `n_blocks` and `dst` can have any integer type, because a `prange` index can be
    unsigned.
    """
    DECODERS[type_id](raw, src, n_blocks, out, dst)


@overload(decode_blocks, prefer_literal=True)
def _decode_blocks(type_id, raw, src, n_blocks, out, dst):
    if not isinstance(type_id, types.IntegerLiteral):
        raise TypingError("decode_blocks: type_id must be a literal integer")
    if type_id.literal_value not in QUANTS:
        raise TypingError(f"decode_blocks: no decoder for weight type {type_id.literal_value}")
    decoder = DECODERS[type_id.literal_value]

    def decode_this_type(type_id, raw, src, n_blocks, out, dst):
        decoder(raw, np.int64(src), np.int64(n_blocks), out, np.int64(dst))

    return decode_this_type
