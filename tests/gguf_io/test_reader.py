"""The reader's results for good files."""

from __future__ import annotations

import contextlib
import gc
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import gguf
import numpy as np
import pytest

from nbllama.errors import GGUFError
from nbllama.gguf_io import GGUFFile, StringArray, TensorInfo, ValueType, open_gguf
from tests.conftest import GOLDEN
from tests.gguf_io.build import (
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    SMALL,
    U8,
    U16,
    U32,
    U64,
    Gguf,
    T,
    kv,
    kv_array,
    kv_f32,
    kv_str,
    kv_strings,
    kv_u32,
    small,
    u32,
)
from tests.gguf_io.cases import DATA, GOOD
from tests.gguf_io.checker import check_against_ggml, check_ranges


def opened(path: Path, raw: bytes) -> GGUFFile:
    path.write_bytes(raw)
    return open_gguf(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "f.gguf"


NUMBERS = [
    (U8, "B", 200),
    (I8, "b", -100),
    (U16, "H", 60000),
    (I16, "h", -30000),
    (U32, "I", 4_000_000_000),
    (I32, "i", -2_000_000_000),
    (U64, "Q", (1 << 64) - 1),
    (I64, "q", -(1 << 63)),
    (F32, "f", 0.5),
    (F64, "d", 0.1),
    (BOOL, "?", True),
]


@pytest.mark.parametrize(("kind", "code", "value"), NUMBERS)
def test_numbers(path: Path, kind: int, code: str, value: object) -> None:
    payload = struct.pack("<" + code, value)
    entries = (kv("x", kind, payload), kv_array("a", kind, 3, payload * 3))
    with opened(path, Gguf(kvs=entries).build()) as f:
        assert f.metadata["x"] == value and type(f.metadata["x"]) is type(value)
        array = f.metadata["a"]
        assert isinstance(array, np.ndarray)
        assert array.tolist() == [value] * 3
        assert f.element_type("a") == kind
        assert [(k, t) for k, _, t in f.entries()] == [("x", kind), ("a", ValueType.ARRAY)]


def test_float32_is_exact(path: Path) -> None:
    with opened(path, Gguf(kvs=(kv_f32("x", 1e-5),)).build()) as f:
        assert f.metadata["x"] == float(np.float32(1e-5))
    with opened(path, Gguf(kvs=(kv_f32("x", np.nan),)).build()) as f:
        assert str(f.metadata["x"]) == "nan"


def test_strings(path: Path) -> None:
    with opened(path, GOOD) as f:
        tokens = f.get("tokenizer.ggml.tokens", "strings")
        assert len(tokens) == 4
        assert list(tokens) == ["<unk>", "\udcff\x01", "", "é"]
        assert [tokens[i] for i in range(-4, 4)] == list(tokens) * 2
        assert tokens[1:3] == ["\udcff\x01", ""]
        assert list(tokens.iter_raw()) == [b"<unk>", b"\xff\x01", b"", "é".encode()]
        assert [tokens.raw(i) for i in range(4)] == list(tokens.iter_raw())
        assert tokens[1].encode("utf-8", "surrogateescape") == tokens.raw(1)
        assert tokens == ["<unk>", "\udcff\x01", "", "é"] and tokens != ["<unk>"]
        assert tokens == StringArray.of([b"<unk>", b"\xff\x01", "", "é"])
        assert "é" in tokens and tokens.index("") == 2
        for i in (4, -5):
            with pytest.raises(IndexError):
                tokens[i]
        assert isinstance(f.metadata["tokenizer.ggml.token_type"], np.ndarray)
        assert f.element_type("tokenizer.ggml.tokens") == ValueType.STRING
        with pytest.raises(TypeError):
            f.element_type("general.architecture")


def test_empty_arrays(path: Path) -> None:
    raw = Gguf(kvs=(kv_strings("s", []), kv_array("n", F32, 0, b""))).build()
    with opened(path, raw) as f:
        assert list(f.get("s", "strings")) == []
        assert f.get("n", "floats").shape == (0,)


def test_tensors(path: Path) -> None:
    with opened(path, GOOD) as f:
        assert list(f.tensors.values()) == [
            TensorInfo("token_embd.weight", (4, 32), 0, DATA, 512),
            TensorInfo("blk.0.attn_q.weight", (4, 64), 2, DATA + 512, 144),
            TensorInfo("blk.0.attn_norm.weight", (5,), 0, DATA + 672, 20),
        ]
        for i, t in enumerate(f.tensors.values()):
            data = f.data(t.name)
            assert data.tolist() == [(7 * i + j) % 251 for j in range(t.nbytes)]
            assert not data.flags.writeable and not data.flags.owndata
        assert (f.version, f.alignment, f.size) == (3, 32, len(GOOD))
        assert f.path == str(path)
        assert repr(f) == f"GGUFFile('{path}', 6 keys, 3 tensors)"
        check_ranges(f)
        check_against_ggml(f)
        with pytest.raises(GGUFError, match="tensor 'x': is missing"):
            f.data("x")


def test_four_dimensions_and_the_longest_name(path: Path) -> None:
    with opened(path, Gguf(tensors=(T("x" * 63, (2, 3, 4, 5)), T("é", (1,)))).build()) as f:
        assert f.tensors["x" * 63].shape == (5, 4, 3, 2)
        assert list(f.tensors)[1] == "é"
        check_against_ggml(f)


@pytest.mark.parametrize("version", [2, 3])
def test_versions(path: Path, version: int) -> None:
    with opened(path, small(version=u32(version))) as f:
        assert f.version == version
        assert len(f.tensors) == 3


@pytest.mark.parametrize("alignment", [8, 16, 64, 4096, 1 << 20])
def test_alignments(path: Path, alignment: int) -> None:
    kvs = (*SMALL.kvs, kv_u32("general.alignment", alignment))
    with opened(path, small(kvs=kvs, alignment=alignment)) as f:
        assert f.alignment == alignment
        assert f.data("blk.0.attn_norm.weight")[:3].tolist() == [14, 15, 16]
        check_ranges(f)
        check_against_ggml(f)


def test_the_last_padding_may_be_missing(path: Path) -> None:
    with opened(path, GOOD[:-12]) as f:
        assert f.data("blk.0.attn_norm.weight").size == 20


@pytest.mark.parametrize("raw", [Gguf().header(), Gguf().build()])
def test_nothing_inside(path: Path, raw: bytes) -> None:
    with opened(path, raw) as f:
        assert (f.metadata, f.tensors) == ({}, {})


def test_legal_keys_that_others_refuse(path: Path) -> None:
    raw = small(kvs=(kv_u32("GGUF.version", 7), kv_str("a b", ""), kv_u32("é", 1)))
    with opened(path, raw) as f:
        assert f.metadata == {"GGUF.version": 7, "a b": "", "é": 1}


class TestGet:
    @pytest.fixture
    def f(self, path: Path) -> GGUFFile:
        kvs = [kv(f"n{k}", k, struct.pack("<" + c, 1)) for k, c, _ in NUMBERS]
        kvs += [kv(f"m{k}", k, struct.pack("<" + c, -1)) for k, c, v in NUMBERS if v < 0]
        kvs += [kv_array(f"a{k}", k, 1, struct.pack("<" + c, 1)) for k, c, _ in NUMBERS]
        kvs += [kv_str("s", "text"), kv_strings("as", ["x"])]
        return opened(path, Gguf(kvs=kvs).build())

    OF_KIND: ClassVar = {
        "uint": {"n0", "n1", "n2", "n3", "n4", "n5", "n10", "n11"},
        "float": {"n6", "n12"},
        "bool": {"n7"},
        "str": {"s"},
        "strings": {"as"},
        "floats": {"a6", "a12"},
        "ints": {"a0", "a1", "a2", "a3", "a4", "a5", "a10", "a11"},
    }

    @pytest.mark.parametrize("kind", OF_KIND)
    def test_kind(self, f: GGUFFile, kind: str) -> None:
        fitting = set()
        for key in f.metadata:
            try:
                value = f.get(key, kind)
            except GGUFError as e:
                assert f"key '{key}': must be a" in str(e), e
                assert e.exit_code == 2
            else:
                assert value is f.metadata[key]
                fitting.add(key)
        assert fitting == self.OF_KIND[kind]

    def test_message_names_both_types(self, f: GGUFFile) -> None:
        for key, kind, said in (
            ("s", "uint", "must be a count (a non-negative integer), but is STRING"),
            ("m5", "uint", "is INT32 -1"),
            ("n7", "uint", "is BOOL True"),
            ("a4", "floats", "must be an array of floating point numbers, but is array of UINT32"),
            ("as", "ints", "is array of STRING"),
        ):
            with pytest.raises(GGUFError) as caught:
                f.get(key, kind)
            assert said in str(caught.value)

    def test_missing(self, f: GGUFFile) -> None:
        assert f.get("none", "uint", 7) == 7
        assert f.get("none", "uint", None) is None
        with pytest.raises(GGUFError, match=r"f.gguf: key 'none': is missing"):
            f.get("none", "uint")
        with pytest.raises(GGUFError, match="must be a string"):
            f.get("n4", "str", "default")  # a default does not excuse a wrong type

    def test_unknown_kind_is_our_mistake(self, f: GGUFFile) -> None:
        with pytest.raises(ValueError, match="unknown kind"):
            f.get("s", "text")


class TestClose:
    def test_views_outlive_the_file(self, path: Path) -> None:
        f = opened(path, GOOD)
        view = f.data("token_embd.weight")
        f.close()
        f.close()
        assert view[:3].tolist() == [0, 1, 2]
        with pytest.raises(ValueError, match="is closed"):
            f.data("token_embd.weight")

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at /proc")
    @pytest.mark.parametrize("raw", [GOOD, GOOD[:-40], small(version=u32(9))])
    def test_nothing_stays_open(self, path: Path, raw: bytes) -> None:
        gc.collect()  # what earlier tests left
        before = len(list(Path("/proc/self/fd").iterdir()))
        with contextlib.suppress(GGUFError):
            opened(path, raw).close()
        gc.collect()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert str(path) not in Path("/proc/self/maps").read_text()


class TestAgainstGguf:
    """The same values as `gguf.GGUFReader` on valid files."""

    def compare(self, path: Path) -> None:
        theirs = gguf.GGUFReader(path)
        with open_gguf(path) as f:
            keys = [k for k in theirs.fields if not k.startswith("GGUF.")]
            assert list(f.metadata) == keys
            for key, value, kind in f.entries():
                field = theirs.fields[key]
                assert int(field.types[0]) == int(kind)
                want = field.contents()
                if isinstance(value, StringArray | np.ndarray):
                    assert list(value) == list(want)
                    assert int(f.element_type(key)) == int(field.types[-1])
                else:
                    assert value == want or (value != value and want != want)
            assert len(f.tensors) == len(theirs.tensors)
            for info, t in zip(f.tensors.values(), theirs.tensors, strict=True):
                assert info.name == t.name
                assert info.shape == tuple(reversed(t.shape.tolist()))
                assert info.type_id == t.tensor_type
                assert (info.offset, info.nbytes) == (t.data_offset, t.n_bytes)
                assert f.data(info.name).tobytes() == t.data.tobytes()
            check_ranges(f)

    def test_small(self, path: Path) -> None:
        utf8 = kv_strings("tokenizer.ggml.tokens", ["<unk>", "é", ""])
        path.write_bytes(replace(SMALL, kvs=(*SMALL.kvs[:3], utf8, *SMALL.kvs[4:])).build())
        self.compare(path)

    def test_written_by_gguf(self, path: Path) -> None:
        w = gguf.GGUFWriter(path, "llama")
        w.add_uint8("a", 1)
        w.add_int64("b", -5)
        w.add_float64("c", 0.1)
        w.add_bool("d", False)
        w.add_array("e", ["x", "yé"])
        w.add_array("f", [1, -2, 3])
        w.add_array("g", [0.5, 2.5])
        rng = np.random.default_rng(0)
        w.add_tensor("t", rng.standard_normal((3, 7), dtype=np.float32))
        w.add_tensor("u", rng.standard_normal((2, 3, 5)).astype(np.float16))
        quantized = gguf.quants.quantize(
            rng.standard_normal((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0
        )
        w.add_tensor("v", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        self.compare(path)

    def test_golden_files(self) -> None:
        files = sorted(GOLDEN.glob("*.gguf"))
        assert len(files) >= 7
        for file in files:
            self.compare(file)

    @pytest.mark.slow
    def test_demo_model(self, demo_model: Path) -> None:
        self.compare(demo_model)


def test_demo_model_opens_quickly(demo_model: Path) -> None:
    open_gguf(demo_model).close()  # the first time reads the header from the disk
    began = time.process_time()
    with open_gguf(demo_model) as f:
        assert time.process_time() - began < 0.5
        assert len(f.tensors) == 272 and len(f.get("tokenizer.ggml.tokens", "strings")) == 49152
        check_ranges(f)
        check_against_ggml(f)


def test_reading_does_not_import_gguf() -> None:
    code = "import sys, nbllama.gguf_io; print('gguf' in sys.modules, 'numba' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == "False False\n", done.stderr
