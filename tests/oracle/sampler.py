"""llama.cpp's own samplers, combined as in its programs."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.oracle.lib import function

_P = C.c_void_p


class _TokenData(C.Structure):
    """`llama_token_data`."""

    _fields_ = [("id", C.c_int32), ("logit", C.c_float), ("p", C.c_float)]


class _TokenDataArray(C.Structure):
    """`llama_token_data_array`."""

    _fields_ = [
        ("data", C.POINTER(_TokenData)),
        ("size", C.c_size_t),
        ("selected", C.c_int64),
        ("sorted", C.c_bool),
    ]


class _ChainParams(C.Structure):
    """`llama_sampler_chain_params`."""

    _fields_ = [("no_perf", C.c_bool)]


_new_chain = function("llama_sampler_chain_init", _P, _ChainParams)
_chain_add = function("llama_sampler_chain_add", None, _P, _P)
_free = function("llama_sampler_free", None, _P)
_apply = function("llama_sampler_apply", None, _P, C.POINTER(_TokenDataArray))
_accept = function("llama_sampler_accept", None, _P, C.c_int32)
_reset = function("llama_sampler_reset", None, _P)

_F, _I, _U, _N = C.c_float, C.c_int32, C.c_uint32, C.c_size_t
_MAKE = {
    "penalties": function("llama_sampler_init_penalties", _P, _I, _I, _F, _F, _F),
    "top_k": function("llama_sampler_init_top_k", _P, _I),
    "typical": function("llama_sampler_init_typical", _P, _F, _N),
    "top_p": function("llama_sampler_init_top_p", _P, _F, _N),
    "min_p": function("llama_sampler_init_min_p", _P, _F, _N),
    "temp": function("llama_sampler_init_temp", _P, _F),
    "temp_ext": function("llama_sampler_init_temp_ext", _P, _F, _F, _F),
    "dist": function("llama_sampler_init_dist", _P, _U),
    "mirostat": function("llama_sampler_init_mirostat", _P, _I, _U, _F, _F, _I),
    "mirostat_v2": function("llama_sampler_init_mirostat_v2", _P, _U, _F, _F),
}


class LlamaSampler:
    """A chain of samplers, each (name, arguments of its C function)."""

    def __init__(self, *links: tuple[Any, ...]) -> None:
        self._chain = _new_chain(_ChainParams(True))
        for name, *arguments in links:
            _chain_add(self._chain, _MAKE[name](*arguments))

    def accept(self, token: int) -> None:
        _accept(self._chain, token)

    def reset(self) -> None:
        _reset(self._chain)

    def apply(self, logits: np.ndarray) -> tuple[list[int], list[float], int]:
        """Ids and logits that are left, and the chosen id (-1: no link chooses)."""
        n = len(logits)
        data = (_TokenData * n)(*(_TokenData(i, float(x), 0.0) for i, x in enumerate(logits)))
        array = _TokenDataArray(data, n, -1, False)
        _apply(self._chain, C.byref(array))
        ids = [array.data[i].id for i in range(array.size)]
        chosen = ids[array.selected] if array.selected >= 0 else -1
        return ids, [array.data[i].logit for i in range(array.size)], chosen

    def close(self) -> None:
        _free(self._chain)


@contextmanager
def sampler(*links: tuple[Any, ...]) -> Iterator[LlamaSampler]:
    made = LlamaSampler(*links)
    try:
        yield made
    finally:
        made.close()
