"""Checkpoints that are damaged or have impossible values: refused with one line and exit 5."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.checkpoint.file import load_checkpoint, save_checkpoint
from nbllama.errors import CheckpointError, GGUFError
from nbllama.gguf_io import StringArray, ValueType, open_gguf
from tests.checkpoint.run_states import forge, make_state


@pytest.fixture(scope="module")
def good() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(f"{folder}/c.gguf", make_state())
        return Path(folder, "c.gguf").read_bytes()


def refused(path: Path, message: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=message) as e:
        load_checkpoint(path)
    assert e.value.exit_code == 5
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


def test_bit_flips(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    rng = random.Random(1)
    header = good.index(b"blk.1.ffn_up.weight.lora_b") + 60
    places = [rng.randrange(len(good)) for _ in range(100)]
    places += [rng.randrange(header) for _ in range(300)]
    for place in places:
        raw = bytearray(good)
        raw[place] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        refused(path)


def test_format_version_is_covered(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    assert good[4] == 3
    path.write_bytes(good[:4] + b"\2" + good[5:])  # for our reader, GGUF 2 and 3 are the same
    refused(path, "damaged")


def test_padding_is_covered(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    with open_gguf(path) as f:
        gaps = [t.offset + t.nbytes for t in f.tensors.values() if t.nbytes % f.alignment]
    assert len(gaps) > 5
    for place in gaps:
        raw = bytearray(good)
        raw[place] = 1
        path.write_bytes(raw)
        refused(path, "damaged")


def test_truncations(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    rng = random.Random(2)
    # the file ends with padding, which can be missing
    sizes = {0, 1, 23, 24, len(good) - 32, *(rng.randrange(len(good) - 32) for _ in range(200))}
    for size in sizes:
        path.write_bytes(good[:size])
        refused(path)
    path.write_bytes(good + b"\0" * 32)
    refused(path)


def test_two_tensors_exchanged(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    with open_gguf(path) as f:
        m, v = (f.tensors[f"optimizer.adam.{n}_moments"] for n in ("first", "second"))
    raw = bytearray(good)
    raw[m.offset : m.offset + m.nbytes] = good[v.offset : v.offset + v.nbytes]
    raw[v.offset : v.offset + v.nbytes] = good[m.offset : m.offset + m.nbytes]
    path.write_bytes(raw)
    refused(path, "damaged")


Table = dict[str, Any]
Change = Callable[[Table, Table], None]


def key(name: str, value: Any, kind: ValueType) -> Change:
    return lambda entries, tensors: entries.update({name: (value, kind)})


def drop(name: str) -> Change:
    return lambda entries, tensors: (entries if name in entries else tensors).pop(name)


def tensor(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda entries, tensors: tensors.update({name: make(tensors[name])})


def spoil(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(x: np.ndarray) -> np.ndarray:
        x.reshape(-1)[-1] = value
        return x

    return change


U32, U64, F32 = ValueType.UINT32, ValueType.UINT64, ValueType.FLOAT32
A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
M, V = "optimizer.adam.first_moments", "optimizer.adam.second_moments"
FORGED: dict[str, tuple[Change, str]] = {
    "a counter of another type": (key("training.iteration_count", "10", ValueType.STRING), "count"),
    "a negative counter": (key("training.token_count", -1, ValueType.INT64), "token_count"),
    "no counter": (drop("training.shuffle.next_sample"), "next_sample.*missing"),
    "no seed": (drop("nbllama.seed"), "seed"),
    "no rank": (drop("training.lora.rank.ffn_norm"), "rank.ffn_norm"),
    "loss of another type": (key("optimizer.adam.best_loss", 3, U32), "best_loss"),
    "lora_r 0": (key("nbllama.lora_r", 0, U32), "lora_r"),
    "alpha NaN": (key("nbllama.lora_alpha", float("nan"), ValueType.FLOAT64), "alpha"),
    "alpha 0": (key("nbllama.lora_alpha", 0.0, ValueType.FLOAT64), "alpha"),
    "newer format": (key("nbllama.checkpoint_version", 2, U32), "newer nbllama"),
    "another kind": (key("training.type", "train_model", ValueType.STRING), "not a checkpoint"),
    "an adapter": (key("general.type", "adapter", ValueType.STRING), "an adapter"),
    "NaN in a first moment": (tensor(M, spoil(np.nan)), "NaN"),
    "infinite second moment": (tensor(V, spoil(np.inf)), "infinity"),
    "negative second moment": (tensor(V, spoil(-1e-9)), "negative"),
    "NaN parameter": (tensor(A, spoil(np.nan)), "NaN"),
    "short moments": (tensor(M, lambda x: x[:-1].copy()), "shape"),
    "no moments": (drop(V), "second_moments.*missing"),
    "half a pair": (drop(B), "two halves"),
    "ranks of the halves differ": (tensor(B, lambda x: x[:, :3].copy()), "does not match"),
    "another tensor": (
        lambda entries, tensors: tensors.update({"x.weight": np.ones(1, np.float32)}), "halves"),
    "integers": (tensor(A, lambda x: x.astype(np.int32)), "must be F32"),
    "order without a tensor": (
        key("nbllama.moment_order", StringArray.of([A]), ValueType.ARRAY), "moment_order"),
    "order of another type": (key("nbllama.moment_order", A, ValueType.STRING), "moment_order"),
    "all tensors gone": (lambda entries, tensors: tensors.clear(), "pairs of a LoRA run"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_content_that_cannot_be(tmp_path: Path, good: bytes, name: str) -> None:
    change, message = FORGED[name]
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    forge(path, change)
    refused(path, message)


def test_a_forged_file_without_change_is_good(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    forge(path, lambda entries, tensors: None)
    assert path.read_bytes() == good


def test_no_file_and_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.gguf")
    (tmp_path / "link.gguf").symlink_to("nowhere.gguf")
    for path in (tmp_path, tmp_path / "link.gguf"):
        refused(path)


def test_errors_are_not_gguf_errors(tmp_path: Path) -> None:
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError) as e:
        load_checkpoint(tmp_path / "c.gguf")
    assert not isinstance(e.value, GGUFError)
