"""GGUF files through llama.cpp's own reader and writer."""

from __future__ import annotations

import ctypes as C
import os

import numpy as np

from tests.oracle.lib import MAX_DIMS, function
from tests.oracle.quant import dequantize

_P = C.c_void_p


class _InitParams(C.Structure):
    _fields_ = [("no_alloc", C.c_bool), ("ctx", _P)]


_open = function("gguf_init_from_file", _P, C.c_char_p, _InitParams)
_free = function("gguf_free", None, _P)
_n_tensors = function("gguf_get_n_tensors", C.c_int64, _P)
_name = function("gguf_get_tensor_name", C.c_char_p, _P, C.c_int64)
_type = function("gguf_get_tensor_type", C.c_int, _P, C.c_int64)
_ne = function("gguf_get_tensor_ne", C.POINTER(C.c_int64), _P, C.c_int64)
_size = function("gguf_get_tensor_size", C.c_size_t, _P, C.c_int64)
_offset = function("gguf_get_tensor_offset", C.c_size_t, _P, C.c_int64)
_data_offset = function("gguf_get_data_offset", C.c_size_t, _P)
_set_type = function("gguf_set_tensor_type", None, _P, C.c_char_p, C.c_int)
_meta_size = function("gguf_get_meta_size", C.c_size_t, _P)
_meta_data = function("gguf_get_meta_data", None, _P, C.c_char_p)


def decode_to_f32(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
    """Write `dst`: the model `src` with every tensor decoded to float32, all metadata kept.

    llama.cpp computes the new file in float32 throughout. Raises RuntimeError when llama.cpp
    cannot read `src`, ValueError for a tensor type the oracle does not decode.
    """
    gguf = _open(os.fsencode(src), _InitParams(True, None))
    if not gguf:
        raise RuntimeError(f"llama.cpp cannot read {os.fspath(src)}")
    try:
        start, tensors = _data_offset(gguf), range(_n_tensors(gguf))
        places = [(_type(gguf, i), start + _offset(gguf, i), _size(gguf, i)) for i in tensors]
        for i in tensors:
            _set_type(gguf, _name(gguf, i), 0)
        meta = C.create_string_buffer(_meta_size(gguf))
        _meta_data(gguf, meta)
        raw = np.memmap(src, dtype=np.uint8, mode="r")
        with open(dst, "wb") as out:
            out.write(meta.raw)
            for i, (type_id, at, size) in zip(tensors, places, strict=True):
                out.seek(len(meta.raw) + _offset(gguf, i))
                n = int(np.prod(_ne(gguf, i)[:MAX_DIMS]))
                dequantize(type_id, raw[at : at + size], n).tofile(out)
    finally:
        _free(gguf)
