"""The old `.bin`: bytes by hand, the old tool's own files, and files that must be refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from nbllama.adapter.file import load_adapter, save_adapter
from nbllama.adapter.ggla import read_ggla, write_ggla
from nbllama.adapter.stored import Base, Stored
from nbllama.arch import hparams_from_gguf
from nbllama.errors import CheckpointError
from nbllama.gguf_io import open_gguf
from nbllama.lora.pairs import Adapter, Pair
from tests.conftest import GOLDEN

NAME = "blk.0.attn_q.weight"


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


HEADER = b"algg" + u32(1, 2, 3)  # version, r, alpha


def record(name: bytes, ne: tuple[int, ...], data: bytes, at: int, kind: int = 0) -> bytes:
    head = u32(len(ne), len(name), kind, *ne) + name
    return head + bytes(-(at + len(head)) % 32) + data


def file_of(*records: tuple[bytes, tuple[int, ...], bytes], kind: int = 0) -> bytes:
    out = HEADER
    for name, ne, data in records:
        out += record(name, ne, data, len(out), kind)
    return out


A = np.array([[1, 2, 3], [4, 5, 6]], np.float32)  # (rank 2, n_in 3)
B = np.array([[7, 8], [9, 10], [11, 12], [13, 14]], np.float32)  # (n_out 4, rank 2)
NORM = "output_norm.weight"


def small() -> Stored:
    pairs = {NAME: Pair(A, B), NORM: Pair(A[:1].copy(), np.full((1, 1), 5, np.float32))}
    return Stored.of(Adapter("", 3, 2, pairs), Base())


def by_hand(norm_ne: tuple[int, ...]) -> bytes:
    floats = struct.Struct
    return file_of(
        (b"output_norm.weight.loraA", (1, 3), floats("<3f").pack(1, 2, 3)),
        (b"output_norm.weight.loraB", norm_ne, floats("<f").pack(5)),
        (b"blk.0.attn_q.weight.loraA", (2, 3), floats("<6f").pack(1, 4, 2, 5, 3, 6)),
        (b"blk.0.attn_q.weight.loraB", (2, 4), floats("<8f").pack(*range(7, 15))),
    )


@pytest.mark.parametrize("july", [False, True])
def test_bytes_by_hand(tmp_path: Path, july: bool) -> None:
    """Rank fastest; data on 32 bytes, the next record follows; one dimension in July 2024."""
    path = tmp_path / "a.bin"
    assert write_ggla(path, small(), july_2024=july) == []
    assert path.read_bytes() == by_hand((1,) if july else (1, 1))
    back = read_ggla(path)
    assert (back.alpha, back.lora_r) == (3, 2)
    np.testing.assert_array_equal(back.pairs[NAME].a, A)
    np.testing.assert_array_equal(back.pairs[NAME].b, B)
    np.testing.assert_array_equal(back.pairs[NORM].a, A[:1])
    np.testing.assert_array_equal(back.pairs[NORM].b, [[5]])
    # alpha / r is the same for all: the pair of rank 1 has a separate alpha
    assert back.alphas == {NAME: 3, NORM: 1.5}


@pytest.mark.parametrize(("run", "base"), [("a", "tiny-q8_0"), ("b", "tiny-q4_k")])
def test_the_old_tool_s_files(tmp_path: Path, run: str, base: str) -> None:
    """Reading and writing again gives the same bytes."""
    folder = GOLDEN
    with open_gguf(folder / f"{base}.gguf") as f:
        hp, shapes = hparams_from_gguf(f), {t.name: t.shape for t in f.tensors.values()}
    for source in sorted(folder.glob(f"{run}-lora-*.bin")):
        adapter = load_adapter(source, hp, shapes)
        assert len(adapter.pairs) == 3 + 9 * 3
        assert adapter.lora_r == adapter.alpha == {"a": 4, "b": 6}[run]
        assert save_adapter(tmp_path / "again.bin", adapter, hp, july_2024=True) == []
        assert (tmp_path / "again.bin").read_bytes() == source.read_bytes()


def test_a_checkpoint_s_tensors_make_the_old_tool_s_file(tmp_path: Path) -> None:
    folder = GOLDEN
    pairs = {}
    with open_gguf(folder / "tiny-q8_0.gguf") as f:
        hp = hparams_from_gguf(f)
    with open_gguf(folder / "a-chk-20.gguf") as f:
        arrays = {
            t.name: f.data(t.name).view("<f4").reshape(*t.shape)
            for t in f.tensors.values()
            if ".lora_" in t.name
        }
    for name in {n.rpartition(".")[0] for n in arrays}:
        a, b = arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"]
        rank = a.shape[1]  # (n_in, rank) in that file
        pairs[name] = Pair(np.ascontiguousarray(a.T), np.ascontiguousarray(b.reshape(-1, rank)))
    save_adapter(tmp_path / "a.bin", Adapter(hp.arch, 4, 4, pairs), hp, july_2024=True)
    assert (tmp_path / "a.bin").read_bytes() == (folder / "a-lora-20.bin").read_bytes()


@pytest.mark.parametrize(
    ("alpha", "lora_r", "header", "back"),
    [
        (16.0, 8, (8, 16), (16, 8)),
        (2.5, 5, (10, 5), (5, 10)),
        (0.125, 1 << 14, (1 << 17, 1), None),  # r of the header is not a rank any more
    ],
)
def test_alpha_as_a_whole_number(
    tmp_path: Path,
    alpha: float,
    lora_r: int,
    header: tuple[int, int],
    back: tuple[float, int] | None,
) -> None:
    path = tmp_path / "a.bin"
    stored = Stored.of(Adapter("", alpha, lora_r, {NAME: Pair(A, B)}), Base())
    assert write_ggla(path, stored) == []
    assert struct.unpack("<II", path.read_bytes()[8:16]) == header
    got = read_ggla(path)
    assert got.alpha / got.lora_r == alpha / lora_r
    assert (got.alpha, got.lora_r) == (back or (2 * alpha / lora_r, 2))
    np.testing.assert_array_equal(got.pairs[NAME].b, B)


def test_an_alpha_that_no_header_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    stored = Stored.of(Adapter("", 0.1, 2, {NAME: Pair(A, B)}), Base())
    (note,) = write_ggla(path, stored)
    assert note.startswith("a .bin file stores alpha and r as whole numbers, but alpha is 0.1")
    got = read_ggla(path)
    assert (got.alpha, got.lora_r) == (2, 2)
    np.testing.assert_array_equal(got.pairs[NAME].b, B * np.float32(0.05))


@pytest.mark.parametrize(("kind", "dtype"), [(1, "<f2"), (30, "bf16")])
def test_half_precision(tmp_path: Path, kind: int, dtype: str) -> None:
    def raw(x: np.ndarray) -> bytes:
        if dtype == "bf16":
            return (x.view(np.uint32) >> 16).astype("<u2").tobytes()  # exact for small integers
        return x.astype(dtype).tobytes()

    data = file_of(
        (f"{NAME}.loraA".encode(), (2, 3), raw(np.ascontiguousarray(A.T))),
        (f"{NAME}.loraB".encode(), (2, 4), raw(B)),
        kind=kind,
    )
    (tmp_path / "h.bin").write_bytes(data)
    pair = read_ggla(tmp_path / "h.bin").pairs[NAME]
    np.testing.assert_array_equal(pair.a, A)
    np.testing.assert_array_equal(pair.b, B)


LABEL = f"{NAME}.loraA".encode()
GOOD = (LABEL, (2, 3), bytes(24))
BAD = {
    "empty": (b"algg", "header"),
    "no record": (HEADER, "no pair"),
    "version": (b"algg" + u32(2, 2, 3), "version 2"),
    "r 0": (b"algg" + u32(1, 0, 3), "r 0"),
    "alpha 0": (b"algg" + u32(1, 2, 0), "alpha 0"),
    "alpha huge": (b"algg" + u32(1, 2, 2**32 - 1), "alpha 4294967295"),
    "no dims": (HEADER + u32(0, 5, 0) + b"abcde", "0 dimensions"),
    "three dims": (HEADER + u32(3, 5, 0, 1, 1, 1) + b"abcde", "3 dimensions"),
    "dims by the million": (HEADER + u32(2**32 - 1, 5, 0), "dimensions"),
    "long name": (HEADER + u32(2, 2**31, 0, 2, 3), "name of"),
    "no name": (HEADER + u32(2, 0, 0, 2, 3), "name of 0"),
    "type": (HEADER + u32(2, 5, 8, 2, 3) + b"abcde", "type 8"),
    "name cut": (HEADER + u32(2, 99, 0, 2, 3) + b"abcde", "99 bytes"),
    "size of exabytes": (HEADER + record(LABEL, (2**32 - 1, 2**32 - 1), b"", 16), "at offset"),
    "zero size": (HEADER + record(LABEL, (0, 3), b"", 16), r"dimensions \(0, 3\)"),
    "data cut": (file_of(GOOD)[:-1], "the file ends at"),
    "padding cut": (file_of(GOOD)[:-25], "the file ends at"),
    "half a record head": (file_of(GOOD) + u32(2), "12 bytes"),
    "today's name": (file_of((NAME.encode() + b".lora_a", (2, 3), bytes(24))), "neither"),
    "control characters": (file_of((b"\x1b[2J\n.loraX", (2, 3), bytes(24))), r"\\x1b\[2J\\n"),
    "not text": (file_of((b"\xff\xfe.loraA", (2, 3), bytes(24))), "no model has"),
    "no such tensor": (file_of((b"x.weight.loraA", (2, 3), bytes(24))), "no model has"),
    "no loraB": (file_of(GOOD), "no lora_b"),
    "twice": (file_of(GOOD, GOOD), "twice"),
    "ranks": (file_of(GOOD, (NAME.encode() + b".loraB", (3, 2), bytes(24))), "differ"),
    "NaN": (file_of((LABEL, (1, 1), struct.pack("<f", np.nan))), "NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str) -> None:
    data, message = BAD[name]
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as e:
        read_ggla(path)
    assert str(e.value).startswith(f"{path}: ") and str(e.value).isprintable()


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = by_hand((1, 1))
    path = tmp_path / "cut.bin"
    fine = {len(whole)}
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size in fine:
            continue
        try:
            pairs = read_ggla(path).pairs
        except CheckpointError:
            continue
        # Nothing in a file that ends after a complete pair indicates that more should follow.
        assert list(pairs) == [NORM]
        assert whole[size:].find(b"blk.0.attn_q.weight.loraA") == 20
