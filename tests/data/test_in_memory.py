"""Records in memory: what pandas and csv give, and what a list must not contain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.data import Continuation, Conversation, DataFile, open_data, open_records
from nbllama.data.formats import Labelled
from nbllama.data.in_memory import json_form
from nbllama.errors import DataError

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TOOL = {"type": "function", "function": {"name": "weigh", "parameters": {"n": {"type": "int"}}}}


class NAType:
    """Stands for pandas' NA, which cannot be compared."""

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


def array(*items: Any) -> np.ndarray:
    """An array of objects, as pandas returns it for a list in a Parquet file."""
    out = np.empty(len(items), object)
    out[:] = items
    return out


def read(*records: Any) -> DataFile:
    return open_records(records, "records")


@pytest.mark.parametrize("missing", [math.nan, np.float64("nan"), np.float32("nan"), NAType()])
def test_an_empty_cell_is_missing(missing: Any) -> None:
    record = {"instruction": "aaa", "input": missing, "output": "b"}
    assert read(record).samples == read({"instruction": "aaa", "output": "b"}).samples
    with pytest.raises(DataError, match='"completion" is null or NaN'):
        read({"prompt": "aaa", "completion": missing})
    turns = [CHAT[0], {"role": "assistant", "content": missing}]
    with pytest.raises(DataError, match='message 2: "content" must be text, not null'):
        read({"messages": turns})
    with pytest.raises(DataError, match="line 1: a record must be an object"):
        read(missing)


def test_arrays_are_lists() -> None:
    more = {"tools": np.array([]), "emb": np.array([1.0, math.nan]), "n": array(1, "x", None)}
    data, plain = read({"messages": array(*CHAT), **more}), read({"messages": CHAT})
    assert data.samples == plain.samples
    assert data.notes == ("keys not used for training: emb (1), n (1)",)
    assert read(array(*CHAT)).samples == plain.samples
    parts = [CHAT[0], {"role": "assistant", "content": array({"type": "text", "text": "a"})}]
    assert read({"messages": array(*parts)}).samples == plain.samples


def test_numpys_numbers_are_numbers() -> None:
    record = {"prompt": "q", "completion": "a", "label": np.bool_(False), "weight": np.float32(2)}
    ((_, sample),) = read(record).samples
    assert isinstance(sample, Labelled) and sample.good is False and sample.weight == 2
    ((_, sample),) = read({"prompt": np.str_("q"), "completion": np.int64(3)}).samples
    assert sample == Continuation("q", "3")
    masked = [*CHAT, CHAT[0], {**CHAT[1], "train": np.bool_(False)}]
    ((_, sample),) = read({"messages": masked}).samples
    assert isinstance(sample, Conversation) and sample.silent == {3}


def test_a_table_from_parquet_is_that_of_the_file(tmp_path: Path) -> None:
    """Objects in a column have the same keys, of which those without a value are left out."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    other = {"type": "function", "function": {"name": "sum", "parameters": {"k": {"type": "int"}}}}
    rows = [{"messages": CHAT, "tools": [TOOL]}, {"messages": CHAT, "tools": [other]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert "k" in table[0]["tools"][0]["function"]["parameters"]
    in_memory = [{name: array(*value) for name, value in row.items()} for row in table]
    data = read(*in_memory)
    assert data.samples == open_data(tmp_path / "t.parquet").samples
    assert data.samples == read(*rows).samples


def test_keys_that_are_not_text() -> None:
    data = read({0: "a", "text": "x"})
    assert data.samples == read({"text": "x"}).samples
    assert data.notes == ("keys not used for training: 0 (1)",)
    columns = {"prompt": "0", "completion": "1"}
    keyed: Any = {0: "q", np.int64(1): "a"}
    numbered = open_records([keyed], "it", columns=columns)
    assert numbered.samples == [(1, Continuation("q", "a"))]
    assert read({"messages": [{1: "x", **CHAT[0]}, CHAT[1]]}).samples == [
        (1, read({"messages": CHAT}).samples[0][1])
    ]
    with pytest.raises(DataError, match=r"line 1: the key None contains \['c'\]; csv\.DictReader"):
        read({"text": "x", None: ["c"]})
    with pytest.raises(DataError, match=r"the key \('a', 'b'\) is of type tuple"):
        read({"text": "x", ("a", "b"): 1})
    with pytest.raises(DataError, match='the key "1" appears twice'):
        read({"text": "x", 1: "a", "1": "b"})


@pytest.mark.parametrize("text", ['{"text": "x"}', ' {"a": 1}\n', '[{"role": "user"}]'])
def test_the_source_of_a_record_is_not_a_text(text: str) -> None:
    with pytest.raises(DataError, match=r"line 2: a string that contains JSON.*json\.loads"):
        read("a text", text)
    assert read({"text": text}).samples == [(1, Continuation("", text))]


def test_the_name_of_a_file_is_not_a_text(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n')
    for name in (tmp_path / "c.jsonl", tmp_path):
        with pytest.raises(DataError, match=r"line 1: .* is the name of a file or a folder"):
            read(str(name))
    assert len(read("{not JSON}", "[1, 2]", "{}x", "nothing.jsonl").samples) == 4
    with pytest.raises(DataError, match=r"line 1: .* contains a NUL character"):
        read("a\0b")


def test_what_json_could_contain_is_not_copied() -> None:
    record = {"messages": CHAT, "n": 1.5, "deep": {"a": [{"b": None}]}}
    assert json_form(record) is record
    assert json_form({"a": [1, {"b": math.nan}]}) == {"a": [1, {"b": None}]}
