"""A model file cut into parts in the layout of llama.cpp's `gguf-split`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nbllama.gguf_io import RawTensor, ValueType, open_gguf, write_gguf


def split(path: str | os.PathLike[str], prefix: Path, sizes: Sequence[int]) -> list[Path]:
    """Write the tensors of `path` to one file per entry of `sizes` (numbers of tensors); the last
    one gets the rest. 0 for the first is `gguf-split --no-tensor-first-split`.
    """
    names = [Path(f"{prefix}-{i + 1:05}-of-{len(sizes):05}.gguf") for i in range(len(sizes))]
    with open_gguf(path) as f:
        tensors = [
            (t.name, RawTensor(t.shape, t.type_id, f.data(t.name))) for t in f.tensors.values()
        ]
        start = 0
        for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
            end = len(tensors) if i == len(sizes) - 1 else start + size
            keys = list(f.entries()) if i == 0 else []
            keys += [
                ("split.no", i, ValueType.UINT16),
                ("split.count", len(sizes), ValueType.UINT16),
                ("split.tensors.count", len(tensors), ValueType.INT32),
            ]
            write_gguf(name, keys, tensors[start:end])
            start = end
    return names
