"""Written files, read back by this package, by `gguf` and by ggml."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nbllama.errors import OutputError
from nbllama.gguf_io import (
    TENSOR_TYPES,
    GGUFFile,
    RawTensor,
    StringArray,
    ValueType,
    open_gguf,
    write_gguf,
)
from nbllama.gguf_io.types import NUMPY_TENSOR_TYPES, SCALARS
from tests.gguf_io.build import SMALL
from tests.gguf_io.checker import check_against_ggml, check_ranges

V = ValueType


def written(path: Path, metadata: Any = (), tensors: Any = ()) -> GGUFFile:
    write_gguf(path, metadata, tensors)
    f = open_gguf(path)
    check_ranges(f)
    check_against_ggml(f)
    return f


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.gguf"


EXTREMES = [
    (V.UINT8, 0, 255),
    (V.INT8, -128, 127),
    (V.UINT16, 0, 65535),
    (V.INT16, -32768, 32767),
    (V.UINT32, 0, 2**32 - 1),
    (V.INT32, -(2**31), 2**31 - 1),
    (V.UINT64, 0, 2**64 - 1),
    (V.INT64, -(2**63), 2**63 - 1),
]


@pytest.mark.parametrize(("kind", "low", "high"), EXTREMES)
def test_integers(path: Path, kind: ValueType, low: int, high: int) -> None:
    with written(path, [("a", low, kind), ("b", high, kind)]) as f:
        assert f.metadata == {"a": low, "b": high}
    for value in (low - 1, high + 1, 0.5, "1", True):
        with pytest.raises(ValueError, match="key 'a'"):
            write_gguf(path, [("a", value, kind)], [])


def test_other_values(path: Path) -> None:
    metadata = [
        ("f", 0.1, V.FLOAT32),
        ("d", 0.1, V.FLOAT64),
        ("n", float("nan"), V.FLOAT32),
        ("t", True, V.BOOL),
        ("s", "é\0\n", V.STRING),
        ("e", "", V.STRING),
        ("from gguf", 3, gguf.GGUFValueType.UINT32),
    ]
    with written(path, metadata) as f:
        assert f.metadata["f"] == float(np.float32(0.1))
        assert f.metadata["d"] == 0.1
        assert str(f.metadata["n"]) == "nan"
        assert [f.metadata[k] for k in ("t", "s", "e")] == [True, "é\0\n", ""]
        assert [int(t) for _, _, t in f.entries()] == [int(t) for _, _, t in metadata]


ARRAYS = [
    (["a", "", "é"], V.STRING, ["a", "", "é"]),
    ([b"\xff\x00", "x"], V.STRING, ["\udcff\x00", "x"]),
    (StringArray.of(["p", "q"]), V.STRING, ["p", "q"]),
    ([], V.STRING, []),
    (np.zeros(0, np.uint8), V.UINT8, []),
    ([True, False], V.BOOL, [True, False]),
    ((1, -2), V.INT64, [1, -2]),
    ([0.5], V.FLOAT32, [0.5]),
    (np.arange(4, dtype=np.int32)[::2], V.INT32, [0, 2]),
    (np.array([0.1, 0.2]), V.FLOAT64, [0.1, 0.2]),
]


@pytest.mark.parametrize(("value", "kind", "want"), ARRAYS)
def test_arrays(path: Path, value: Any, kind: ValueType, want: list[Any]) -> None:
    with written(path, [("a", value, V.ARRAY)]) as f:
        assert list(f.metadata["a"]) == want  # type: ignore[call-overload]
        assert f.element_type("a") == kind


REFUSED: list[tuple[Any, Any, str]] = [
    ([("", 1, V.UINT8)], [], "key ''"),
    ([("a\nb", 1, V.UINT8)], [], r"key 'a\\nb'"),
    ([("k" * 65_536, 1, V.UINT8)], [], "1 to 65535 bytes"),
    ([("a", 1, V.UINT8), ("a", 2, V.UINT8)], [], "key 'a' appears twice"),
    ([("a", 1, V.STRING)], [], "1 is not a str"),
    ([("a", 1, V.BOOL)], [], "1 is not a bool"),
    ([("a", "xy", V.ARRAY)], [], "str is not an array"),
    ([("a", [1, "x"], V.ARRAY)], [], "elements must all be"),
    ([("a", [1, True], V.ARRAY)], [], "elements must all be"),
    ([("a", [[1]], V.ARRAY)], [], "elements must all be"),
    ([("a", np.zeros((2, 2), np.int32), V.ARRAY)], [], "2 dimensions"),
    ([("a", np.zeros(2, np.complex64), V.ARRAY)], [], "complex64"),
    ([("a", 1, 13)], [], "13 is not a valid"),
    ([("a", "x" * ((16 << 20) + 1), V.STRING)], [], "limit is 16777216"),
    (
        [("a", np.zeros(48 << 20, np.uint8), V.ARRAY)],
        [],
        "bytes of metadata, but the limit is 50331648",
    ),
    ([(f"k{i}", 1, V.UINT8) for i in range((1 << 14) + 1)], [], "16385 keys and 0 tensors"),
    ([("general.alignment", 48, V.UINT32)], [], "power of two"),
    ([("general.alignment", 32, V.UINT64)], [], "power of two"),
    ([], [("", np.zeros(1, np.float32))], "tensor ''"),
    ([], [("x" * 64, np.zeros(1, np.float32))], "1 to 63 bytes"),
    ([], [("t", np.zeros(1, np.float32))] * 2, "tensor 't' appears twice"),
    ([], [("t", np.zeros((2, 0), np.float32))], "positive dimensions"),
    ([], [("t", np.zeros((), np.float32))], "1 to 4 positive"),
    ([], [("t", np.zeros((1, 1, 1, 1, 1), np.float32))], "1 to 4 positive"),
    ([], [("t", np.zeros(2, np.uint32))], "dtype uint32 has no GGUF type"),
    ([], [("t", np.zeros(2, ">f4"))], "dtype >f4 has no GGUF type"),
    ([], [("t", RawTensor((32,), 2, bytes(17)))], "17 bytes, but its shape and type require 18"),
    ([], [("t", RawTensor((33,), 2, bytes(18)))], "row length 33 is not a multiple of the Q4_0"),
    ([], [("t", RawTensor((32,), 99, bytes(18)))], "type 99 is not supported"),
]


@pytest.mark.parametrize(("metadata", "tensors", "said"), REFUSED)
def test_refused_before_the_first_byte(path: Path, metadata: Any, tensors: Any, said: str) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=said):
        write_gguf(path, metadata, tensors)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["w.gguf"]


def test_tensors(path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 5, 7), dtype=np.float32)
    tensors: list[tuple[str, Any]] = [
        ("a", a),
        ("transposed", a.T),
        ("every second", a[::2, :, 1:]),
        ("one", np.full(1, 3, np.float32)),
        ("raw", RawTensor((2, 64), 8, rng.integers(0, 255, 136, dtype=np.uint8))),
        ("raw bytes", RawTensor((5,), 0, bytes(20))),
    ]
    tensors += [(f"d{i}", np.ones(3, dtype)) for i, dtype in enumerate(NUMPY_TENSOR_TYPES)]
    with written(path, [], tensors) as f:
        assert list(f.tensors) == [name for name, _ in tensors]
        for name, t in tensors:
            info = f.tensors[name]
            if isinstance(t, RawTensor):
                assert (info.shape, info.type_id) == (t.shape, t.type_id)
                assert f.data(name).tobytes() == bytes(t.raw)
            else:
                assert (info.shape, info.type_id) == (t.shape, NUMPY_TENSOR_TYPES[t.dtype])
                assert f.data(name).tobytes() == t.tobytes()


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda t: t.name)
def test_every_type(path: Path, kind: Any) -> None:
    raw = np.arange(6 * kind.type_size, dtype=np.uint8)
    with written(path, [], [("t", RawTensor((2, 3 * kind.block_size), kind.id, raw))]) as f:
        assert f.tensors["t"].type_id == kind.id
        assert f.data("t").tobytes() == raw.tobytes()


@pytest.mark.parametrize("alignment", [8, 64, 1 << 16])
def test_alignment(path: Path, alignment: int) -> None:
    metadata = [("general.alignment", alignment, V.UINT32)]
    with written(path, metadata, [("a", np.ones(3, np.int8)), ("b", np.ones(5, np.int8))]) as f:
        assert f.alignment == alignment
        assert f.size % alignment == 0


def test_gguf_reads_it(path: Path) -> None:
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_gguf(path, [("general.architecture", "llama", V.STRING)], [("w", weights)])
    theirs = gguf.GGUFReader(path)
    assert theirs.fields["general.architecture"].contents() == "llama"
    assert theirs.tensors[0].name == "w"
    np.testing.assert_array_equal(theirs.tensors[0].data, weights)


def test_a_copy_is_the_same_file(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(SMALL.build())
    copy(source, path)
    assert filecmp.cmp(source, path, shallow=False)


def test_a_copy_of_the_demo_model_is_the_same_file(path: Path, demo_model: Path) -> None:
    copy(demo_model, path)
    assert filecmp.cmp(demo_model, path, shallow=False)


def copy(source: Path, target: Path) -> None:
    with open_gguf(source) as f:
        raw = [(t.name, RawTensor(t.shape, t.type_id, f.data(t.name))) for t in f.tensors.values()]
        write_gguf(target, f.entries(), raw)


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file") as caught:
        write_gguf(tmp_path / "none" / "f.gguf", [], [])
    assert caught.value.exit_code == 3


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=15)
VALUES = st.one_of(
    st.tuples(st.booleans(), st.just(V.BOOL)),
    st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.just(V.STRING)),
    st.tuples(st.floats(), st.just(V.FLOAT64)),
    st.tuples(st.floats(width=32), st.just(V.FLOAT32)),
    *[st.tuples(st.integers(low, high), st.just(kind)) for kind, low, high in EXTREMES],
    st.tuples(st.lists(st.binary()), st.just(V.ARRAY)),
    st.tuples(
        st.sampled_from(list(SCALARS.values())).flatmap(
            lambda dtype: npst.arrays(dtype, st.integers(0, 9))
        ),
        st.just(V.ARRAY),
    ),
)
TENSORS = npst.arrays(
    st.sampled_from(list(NUMPY_TENSOR_TYPES)),
    npst.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5),
)


@hypothesis.given(
    st.dictionaries(NAMES, VALUES, max_size=6), st.dictionaries(NAMES, TENSORS, max_size=4)
)
@hypothesis.settings(
    max_examples=100, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_round_trip(path: Path, metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
    path.unlink(missing_ok=True)
    with written(path, [(k, *v) for k, v in metadata.items()], tensors.items()) as f:
        assert list(f.metadata) == list(metadata)
        for key, value, kind in f.entries():
            sent = metadata[key][0]
            assert kind == metadata[key][1]
            if isinstance(sent, np.ndarray):
                assert isinstance(value, np.ndarray) and value.dtype == sent.dtype
                assert value.tobytes() == sent.tobytes()
            elif isinstance(sent, list):
                assert isinstance(value, StringArray) and list(value.iter_raw()) == sent
            else:
                assert value == sent or (value != value and sent != sent)
        assert list(f.tensors) == list(tensors)
        for name, sent in tensors.items():
            assert f.tensors[name].shape == sent.shape
            assert f.data(name).tobytes() == sent.tobytes()


def test_a_tensor_in_pieces(tmp_path: Path) -> None:
    """Pieces are requested in order, give the same file as one array, and must be complete."""
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    asked: list[str] = []

    def pieces(name: str, rows: int) -> Callable[[], Iterator[np.ndarray]]:
        def give() -> Iterator[np.ndarray]:
            asked.append(name)
            yield from (x[i] for i in range(rows))

        return give

    whole, path = tmp_path / "whole.gguf", tmp_path / "pieces.gguf"
    write_gguf(whole, [], [("a", x), ("b", x)])
    write_gguf(path, [], [(n, RawTensor(x.shape, 0, pieces(n, 4))) for n in "ab"])
    assert path.read_bytes() == whole.read_bytes()
    assert asked == ["a", "b"]
    with pytest.raises(ValueError, match="'a': its pieces do not add up to 96 bytes"):
        write_gguf(path, [], [("a", RawTensor(x.shape, 0, pieces("a", 3)))])
    with pytest.raises(ValueError, match="'a': its pieces do not add up to 72 bytes"):
        write_gguf(path, [], [("a", RawTensor((3, 6), 0, pieces("a", 4)))])
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pieces.gguf", "whole.gguf"]
