"""The forms of JSON record files, and where the records are in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Conversation, DataFile, open_data
from nbllama.errors import DataError

CASES = Path(__file__).parent / "cases" / "files"


def _chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer},
        ]
    }  # fmt: skip


KEY, LAMP = _chat("Key?", "Mat."), _chat("Lamp?", "On.")
TWO = [("Key?", "Mat."), ("Lamp?", "On.")]


def opened(folder: Path, text: str, name: str = "data.json", **options: Any) -> DataFile:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return open_data(folder / name, **options)


def chats(found: DataFile) -> list[tuple[str, ...]]:
    samples = [s for _, s in found.samples]
    assert all(isinstance(s, Conversation) for s in samples)
    return [tuple(m["content"] for m in s.messages) for s in samples if isinstance(s, Conversation)]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("indented.jsonl", [1, 13]),
        ("mixed-indent.jsonl", [1, 2]),
        ("commas.jsonl", [1, 2]),
        ("wrapped.json", [5, 17]),
        ("list-of-lists.json", [2, 12]),
        ("cr-line-ends.jsonl", [1, 2]),
        ("two-lists.json", [2, 16]),
    ],
)
def test_two_chats(name: str, lines: list[int]) -> None:
    found = open_data(CASES / name)
    assert found.format == "chat" and [line for line, _ in found.samples] == lines
    asked = [("Where is the key?", "Under the mat."), ("And the lamp?", "On the shelf.")]
    assert chats(found) == asked


def test_null_columns_count_as_missing() -> None:
    found = open_data(CASES / "null-columns.jsonl")
    assert found.format == "completion"
    assert [s for _, s in found.samples] == [("Key?", "Under the mat."), ("Lamp?", "On the shelf.")]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([KEY, LAMP]),
        json.dumps([KEY, LAMP], indent=3)[:-1] + ",]",
        json.dumps([KEY]) + json.dumps([LAMP]),
        json.dumps(KEY) + json.dumps(LAMP),
        json.dumps(KEY) + ", " + json.dumps(LAMP) + ",",
        json.dumps(KEY) + ",\n" + json.dumps(LAMP, indent=1),
        json.dumps([KEY["messages"], LAMP["messages"]]),
        json.dumps(KEY["messages"]) + "\n" + json.dumps(LAMP["messages"]),
        json.dumps({"data": [KEY, LAMP]}),
        json.dumps({"train": [KEY, LAMP], "test": [KEY]}, indent=1),
        json.dumps({"version": 1, "rows": [{"row": KEY, "row_idx": 0}, {"row": LAMP}]}),
        json.dumps({"features": [{"name": "messages"}], "rows": [{"row": KEY}, {"row": LAMP}]}),
        json.dumps({"conversations": [KEY, LAMP]}, indent=2),
        json.dumps({"conversations": [KEY["messages"], LAMP["messages"]]}),
        json.dumps({"messages": [KEY["messages"], LAMP["messages"]]}),
        json.dumps({"dataset": {"name": "x", "examples": [KEY, LAMP]}}),
        json.dumps({"a": KEY, "b": LAMP}, indent=1),
        json.dumps({"columns": ["messages"], "data": [[KEY["messages"]], [LAMP["messages"]]]}),
        "\ufeff" + json.dumps(KEY) + "\r\n\r\n\ufeff" + json.dumps(LAMP) + "\r\n",
        json.dumps([KEY, LAMP], indent=1).replace("}", ",}").replace("]", ",]"),
    ],
)
@pytest.mark.parametrize("name", ["data.json", "data.txt"])
def test_other_ways_to_write_two_chats(tmp_path: Path, text: str, name: str) -> None:
    assert chats(opened(tmp_path, text, name)) == TWO


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    text = json.dumps({"version": 1, "data": [KEY | {"id": 3}], "licence": "MIT"}, indent=1)
    path = tmp_path / "data.json"
    assert opened(tmp_path, text).notes == (
        f'{path}: read 1 record from "data"; not read: "version", "licence"',
        "keys not used for training: id (1)",
    )


def test_one_chat_as_a_bare_list(tmp_path: Path) -> None:
    assert chats(opened(tmp_path, json.dumps(KEY["messages"], indent=1))) == TWO[:1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ((CASES / "no-opening-bracket.json").read_text(), "line 3: ']' closes a list that"),
        ('[{"text": "a"},\n{"text": "b"},\n', r"line 1: this '\[' is not closed"),
        ('[\n{"text": "a"},\n{"text": "b"}\n', r"line 1: this '\[' is not closed"),
        ('{"text": "a"},\n{"text": "b"}]\n', "line 2: ']' closes a list that was not"),
        ('[\n{"text": "a"},\n{"text": "b"\n]', "line 4: invalid JSON"),
        ('{\n"text": "a"\n}\n{\n"text": \n}\n', "line 6: invalid JSON"),
        (
            '{"text": "a"}\n{"text": "b", "text": "c"}',
            'line 2: .*"text" appears twice in an object',
        ),
        ('{"text": "a", "text": "b"}', 'line 1: .*"text" appears twice in an object'),
        (
            '{"data": [{"text": "a"}], "more": [{"text": "b"}]}',
            "line 1: several keys contain a list of",
        ),
        ('["a", "b"]', "line 1: a record must be an object with named values, not text"),
        ("a, b\nc, d\n", "line 1: invalid JSON"),
        ("{'text': 'a'}\n", "line 1: invalid JSON"),
        ("[]", "with named values, not a list"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_what_is_not_whole_is_refused(
    tmp_path: Path, text: str, reason: str, skip_bad: bool
) -> None:
    if skip_bad and '"c"}' in text:
        found = opened(tmp_path, text, skip_bad=True)
        assert len(found.samples) == 1 and found.bad[0].line == 2
        return
    with pytest.raises(DataError, match=reason):
        opened(tmp_path, text, skip_bad=skip_bad)


def test_a_broken_line_among_good_ones_is_one_bad_record(tmp_path: Path) -> None:
    text = "\n".join(['{"text": "a"}', "oops", '{"text": "b"', '{"text": "c"},', '{"text":"d"} {'])
    found = opened(tmp_path, text, "data.jsonl", skip_bad=True)
    assert [line for line, _ in found.samples] == [1, 4]
    assert [bad.line for bad in found.bad] == [2, 3, 5]
    with pytest.raises(DataError, match=r"data\.jsonl, line 2: invalid JSON at column 1"):
        opened(tmp_path, text, "data.jsonl")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.NDJSON", "a.csv", "a.tsv", "a.parquet"])
def test_a_name_that_says_records_is_never_plain_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        opened(tmp_path, "Enter HAMLET, reading.\nLORD: How now?\n", name)
    raw = opened(tmp_path, "Enter HAMLET.\n", name, data_format="raw")
    assert (raw.kind, raw.text) == ("raw", "Enter HAMLET.\n")


def test_records_of_merged_tables(tmp_path: Path) -> None:
    rows = [KEY | {"prompt": None, "completion": None}] * 2
    rows += [{"messages": None, "prompt": "p", "completion": "c"}]
    found = opened(tmp_path, "\n".join(map(json.dumps, rows)), "data.jsonl")
    assert found.format == "chat" and found.samples[2] == (3, ("p", "c"))
    assert "records in several formats: 2 chat, 1 completion" in found.notes
    text = json.dumps(KEY)[:-1] + ', "prompt": NaN, "completion": NaN}'
    assert chats(opened(tmp_path, text)) == TWO[:1]
