"""Operations on whole arrays, computed in cache-sized chunks to avoid large copies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

CHUNK = 32768  # elements; three float32 arrays of this size and two scratch arrays fit in L2


def n_dims(name: str, shape: tuple[int, ...]) -> int:
    """Return the number of dimensions without trailing 1s, as llama.cpp's `ggml_n_dims` does.

    The old tool stores both arrays of a LoRA pair as ne = [rank, n]. Only the `lora_b` of a norm
    vector, ne = [rank, 1], therefore has one dimension, whereas a rank-1 `lora_a`, ne = [1, n], has
    two.
    """
    ne = list(shape[::-1] if name.endswith(".lora_b") else shape)
    while len(ne) > 1 and ne[-1] == 1:
        ne.pop()
    return len(ne)


def check_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the first array that contains a NaN or an infinity, or None."""
    for name, x in arrays.items():
        # min and max propagate NaN and do not require a mask as large as the array
        if x.size and not (math.isfinite(x.min()) and math.isfinite(x.max())):
            return name
    return None


def chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Yield views of at most `CHUNK` elements, in order."""
    flat = x.reshape(-1)
    return (flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK))


def global_norm(arrays: Mapping[str, np.ndarray]) -> float:
    """Return the L2 norm over all arrays, summed in order in float64.

    The norm is finite only if every value is finite.
    """
    wide = np.empty(CHUNK, np.float64)
    total = 0.0
    for x in arrays.values():
        for part in chunks(x):
            square = wide[: part.size]
            np.multiply(part, part, out=square, dtype=np.float64)
            total += float(np.add.reduce(square))
    return math.sqrt(total)
