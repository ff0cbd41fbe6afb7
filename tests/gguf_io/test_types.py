"""The tables of numbers, against the `gguf` package and against llama.cpp."""

from __future__ import annotations

import gguf
import pytest

from nbllama.gguf_io import TENSOR_TYPES, UNSUPPORTED_TYPES, ValueType
from nbllama.gguf_io.types import NUMPY_TENSOR_TYPES, SCALARS


def test_value_types_are_those_of_gguf() -> None:
    assert {t.name: int(t) for t in ValueType} == {t.name: int(t) for t in gguf.GGUFValueType}


def test_scalar_sizes() -> None:
    sizes = {int(t): SCALARS[t].itemsize for t in SCALARS}
    assert sizes == {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda t: t.name)
def test_tensor_types_are_those_of_gguf(kind) -> None:
    theirs = gguf.GGMLQuantizationType(kind.id)
    assert theirs.name == kind.name
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block_size, kind.type_size)
    assert TENSOR_TYPES[kind.id] is kind
    assert kind.nbytes(3 * kind.block_size) == 3 * kind.type_size


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda t: t.name)
def test_tensor_types_are_those_of_ggml(kind) -> None:
    pytest.importorskip("xllamacpp")
    import ctypes as C

    from tests.oracle.lib import function

    assert function("ggml_type_name", C.c_char_p, C.c_int)(kind.id).decode().upper() == kind.name
    assert function("ggml_blck_size", C.c_int64, C.c_int)(kind.id) == kind.block_size
    assert function("ggml_type_size", C.c_size_t, C.c_int)(kind.id) == kind.type_size


def test_every_type_of_gguf_is_known_by_name() -> None:
    for theirs in gguf.GGMLQuantizationType:
        known = theirs in TENSOR_TYPES or UNSUPPORTED_TYPES.get(theirs, "").startswith(theirs.name)
        assert known, theirs
    assert not set(TENSOR_TYPES) & set(UNSUPPORTED_TYPES)


def test_numpy_types() -> None:
    for dtype, type_id in NUMPY_TENSOR_TYPES.items():
        kind = TENSOR_TYPES[type_id]
        assert (kind.block_size, kind.type_size) == (1, dtype.itemsize)
        assert kind.name == f"{dtype.kind.upper()}{8 * dtype.itemsize}"
