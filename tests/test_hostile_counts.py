"""Every key that a reader uses, with numbers that no file should have: refused in one line, or
harmless; never a loop, an allocation or an error of another kind.
"""

from __future__ import annotations

import math
import os
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.adapter.file import read_stored, save_adapter
from nbllama.adapter.stored import Base
from nbllama.arch import hparams_from_gguf
from nbllama.checkpoint.file import load_checkpoint, save_checkpoint
from nbllama.errors import NbllamaError
from nbllama.gguf_io import StringArray, ValueType, open_gguf, write_gguf
from nbllama.text import tokenizer_from_gguf
from tests.checkpoint.old_states import write
from tests.checkpoint.run_states import forge, make_state
from tests.checkpoint.test_old_checkpoint import parts
from tests.conftest import ROOT
from tests.train.toy_runs import toy_adapter, toy_model

SECONDS, BYTES = 2.0, 300 << 20
Entries = dict[str, tuple[Any, ValueType]]

FEW = (2**64 - 1, "nan", "[]")  # of each key in the tests that are not slow
INTEGERS = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1]
FLOATS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-320, 1e-40, 1e39, 1e308]
TEXTS = ["", "\x1b[31m\n", "9" * 10_000, "yarn"]


def hostile(value: Any, kind: ValueType) -> Iterator[tuple[Any, ValueType]]:
    """Values for a key that has this one, of its type and of others."""
    if kind == ValueType.ARRAY:
        yield (value[:0] if isinstance(value, np.ndarray) else StringArray.of([])), kind
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            for x in FLOATS:
                yield np.array([x, *value[1:]], np.float64), kind
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            for x in (-1, 2**31 - 1):
                yield np.array([x, *value[1:]], np.int32), kind
        yield np.full(3, 2**64 - 1, np.uint64), kind
        return
    yield from ((x, ValueType.UINT64) for x in INTEGERS)
    yield -1, ValueType.INT64
    yield from ((x, ValueType.FLOAT64) for x in FLOATS)
    if kind == ValueType.STRING:
        yield from ((x, ValueType.STRING) for x in TEXTS)
    elif kind == ValueType.BOOL:
        yield not value, ValueType.BOOL
    else:
        yield "1", ValueType.STRING


def changed(path: Path, key: str, value: tuple[Any, ValueType]) -> None:
    with open_gguf(path) as f:
        entries = {k: (v, t) for k, v, t in f.entries()} | {key: value}
        tensors = [
            (t.name, f.data(t.name).view("<f4").reshape(t.shape)) for t in f.tensors.values()
        ]
        write_gguf(path.with_name("changed.gguf"), [(k, *v) for k, v in entries.items()], tensors)


def changed_with_digest(path: Path, key: str, value: tuple[Any, ValueType]) -> None:
    target = path.with_name("changed.gguf")
    target.write_bytes(path.read_bytes())
    forge(target, lambda entries, tensors: entries.update({key: value}))


def read_model(path: Path) -> None:
    with open_gguf(path) as f:
        hparams_from_gguf(f)
        tokenizer_from_gguf(f).encode("hen", add_special=True)


def make_model(folder: Path) -> Path:
    make_llama(folder / "model.gguf")
    return folder / "model.gguf"


def make_adapter(folder: Path) -> Path:
    model = toy_model(folder)
    save_adapter(folder / "adapter.gguf", toy_adapter(model), model.hp)
    return folder / "adapter.gguf"


def make_checkpoint(folder: Path) -> Path:
    save_checkpoint(folder / "checkpoint.gguf", make_state())
    return folder / "checkpoint.gguf"


def make_old(folder: Path) -> Path:
    return write(folder / "old.gguf", *parts())


READERS: dict[str, tuple[Callable[..., Path], Callable[..., None], Callable[..., object]]] = {
    "model": (make_model, changed, read_model),
    "adapter": (make_adapter, changed, lambda path: read_stored(path, Base())),
    "checkpoint": (make_checkpoint, changed_with_digest, load_checkpoint),
    "old checkpoint": (make_old, changed, load_checkpoint),
}


@pytest.mark.parametrize("all_values", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_every_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, all_values: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no file here outlives its test
    make, change, read = READERS[name]
    path = make(tmp_path)
    read(path)
    with open_gguf(path) as f:
        entries: Entries = {k: (v, t) for k, v, t in f.entries()}
    refused, tried = set(), 0
    tracemalloc.start()
    try:
        for key, found in entries.items():
            if key == "nbllama.sha256":
                continue
            for value in hostile(*found):
                if not all_values and str(value[0]) not in map(str, FEW):
                    continue
                change(path, key, value)
                tracemalloc.reset_peak()
                start, tried = time.monotonic(), tried + 1
                where = f"{key} = {value[0]!r:.60}"
                try:
                    read(path.with_name("changed.gguf"))
                except NbllamaError as e:
                    assert str(e).isprintable() and len(str(e)) < 2000, where
                    refused.add(key)
                assert time.monotonic() - start < SECONDS, where
                assert tracemalloc.get_traced_memory()[1] < BYTES, where
    finally:
        tracemalloc.stop()
    assert tried >= len(entries) - 1 and len(refused) > len(entries) // 3


def test_the_number_of_blocks_that_hung(tmp_path: Path) -> None:
    """It took 4 GB within 45 s, and more after that."""
    path = make_old(tmp_path)
    changed(path, "llama.block_count", (2**32 - 1, ValueType.UINT32))
    with pytest.raises(NbllamaError, match=r"block_count': 4294967295, but must be from 0 to 512"):
        load_checkpoint(tmp_path / "changed.gguf")


def test_counts_are_read_by_one_function() -> None:
    for path in sorted((ROOT / "nbllama").rglob("*.py")):
        found = re.findall(r'"uint"', path.read_text(encoding="utf-8"))
        assert not found or path.name == "file.py", path
