"""An independent check of the reader's results, and ggml's own reader for comparison."""

from __future__ import annotations

import ctypes as C
import math
import os
from typing import NamedTuple

import gguf
import numpy as np

from nbllama.gguf_io import GGUFFile


def check_ranges(f: GGUFFile) -> None:
    """Every tensor is inside the file, aligned, separate from the others, and can be read."""
    size = os.path.getsize(f.path)
    free_from = 24  # the smallest header
    for t in sorted(f.tensors.values(), key=lambda t: t.offset):
        block, type_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(t.type_id)]
        assert len(t.shape) >= 1 and all(n > 0 for n in t.shape)
        assert t.shape[-1] % block == 0
        assert t.nbytes == math.prod(t.shape) // block * type_size
        assert t.offset % f.alignment == 0
        assert t.offset >= free_from
        free_from = t.offset + t.nbytes
        assert free_from <= size
        data = f.data(t.name)
        assert data.dtype == np.uint8 and data.shape == (t.nbytes,) and not data.flags.writeable
        int(data.sum())  # touches every byte
    for key in f.metadata:
        assert key.isprintable()
    for name in f.tensors:
        assert name.isprintable() and 0 < len(name.encode()) < 64


class GgmlTensor(NamedTuple):
    name: str
    type_id: int
    offset: int
    nbytes: int


class GgmlFile(NamedTuple):
    """What ggml's `gguf_init_from_file` found: absolute offsets, keys with value types."""

    version: int
    alignment: int
    keys: dict[str, int]
    tensors: list[GgmlTensor]


def read_with_ggml(path: str | os.PathLike[str]) -> GgmlFile | None:
    """The file as read by real llama.cpp; None if it refuses the file.

    Only for files that this package accepts: ggml ends the process on some bad ones.
    """
    from tests.oracle.lib import function

    class InitParams(C.Structure):
        _fields_ = [("no_alloc", C.c_bool), ("ctx", C.c_void_p)]

    p, i64, size_t, text = C.c_void_p, C.c_int64, C.c_size_t, C.c_char_p
    init = function("gguf_init_from_file", p, text, InitParams)
    ctx = init(os.fsencode(path), InitParams(True, None))
    if not ctx:
        return None
    start = function("gguf_get_data_offset", size_t, p)(ctx)
    n_kv = function("gguf_get_n_kv", i64, p)(ctx)
    key = function("gguf_get_key", text, p, i64)
    kind = function("gguf_get_kv_type", C.c_int, p, i64)
    n_tensors = function("gguf_get_n_tensors", i64, p)(ctx)
    name = function("gguf_get_tensor_name", text, p, i64)
    type_id = function("gguf_get_tensor_type", C.c_int, p, i64)
    offset = function("gguf_get_tensor_offset", size_t, p, i64)
    nbytes = function("gguf_get_tensor_size", size_t, p, i64)
    found = GgmlFile(
        function("gguf_get_version", C.c_uint32, p)(ctx),
        function("gguf_get_alignment", size_t, p)(ctx),
        {key(ctx, i).decode(): kind(ctx, i) for i in range(n_kv)},
        [
            GgmlTensor(
                name(ctx, i).decode(), type_id(ctx, i), start + offset(ctx, i), nbytes(ctx, i)
            )
            for i in range(n_tensors)
        ],
    )
    function("gguf_free", None, p)(ctx)
    return found


def check_against_ggml(f: GGUFFile) -> None:
    """ggml also accepts a file that this package accepts, with the same tensors and bytes."""
    theirs = read_with_ggml(f.path)
    assert theirs is not None, "accepted here, refused by ggml"
    assert (theirs.version, theirs.alignment) == (f.version, f.alignment)
    assert theirs.keys == {key: int(kind) for key, _, kind in f.entries()}
    ours = [GgmlTensor(t.name, t.type_id, t.offset, t.nbytes) for t in f.tensors.values()]
    assert theirs.tensors == ours
