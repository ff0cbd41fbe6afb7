"""The other formats of records, their files, and the detection of a file's kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Continuation, Conversation, DataFile, Style, find_splits, open_data
from nbllama.data.columns import parse_columns
from nbllama.data.records import NAMES
from nbllama.data.samples import ON_LONG
from nbllama.data.splits import input_files
from nbllama.errors import DataError, UsageError
from nbllama.options import data as data_options
from nbllama.text import LAYOUTS


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


Q, A, S = message("user", "q"), message("assistant", "a"), message("system", "s")


def opened(folder: Path, text: str, name: str = "data", **options: Any) -> DataFile:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return open_data(path, **options)


def one(folder: Path, record: Any, **options: Any) -> tuple[str, Any]:
    """The format that is detected from a record, and the result."""
    found = opened(folder, json.dumps(record), **options)
    ((line, sample),) = found.samples
    assert line == 1 and found.kind == "chat"
    return found.format, sample


@pytest.mark.parametrize(
    ("record", "format", "sample"),
    [
        ({"text": " t\n"}, "text", Continuation("", " t\n")),
        ({"prompt": "p ", "completion": " c"}, "completion", Continuation("p ", " c")),
        ({"prompt": "", "completion": "c"}, "completion", Continuation("", "c")),
        ({"prompt": [Q], "completion": [A]}, "completion", Conversation([Q, A])),
        (
            {"prompt": [Q, A, Q], "completion": [A]},
            "completion",
            Conversation([Q, A, Q, A], frozenset([1])),
        ),
        ({"instruction": "q", "output": "a"}, "alpaca", Conversation([Q, A])),
        ({"instruction": "q", "input": " ", "output": "a"}, "alpaca", Conversation([Q, A])),
        (
            {"instruction": "q", "input": "i", "output": "a"},
            "alpaca",
            Conversation([message("user", "q\n\ni"), A]),
        ),
        (
            {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]},
            "alpaca",
            Conversation([S, Q, A, Q, A]),
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "sharegpt",
            Conversation([Q, A]),
        ),
        (
            {
                "system": "s",
                "conversations": [
                    {"from": "user", "value": "q"},
                    {"from": "function_call", "value": "f()"},
                    {"from": "observation", "value": "7"},
                    {"from": "gpt", "value": "a"},
                ],
            },
            "sharegpt",
            Conversation([S, Q, message("assistant", "f()"), message("tool", "7"), A], n_first=1),
        ),
        ({"conversations": [Q, A], "system": "s"}, "sharegpt", Conversation([S, Q, A], n_first=1)),
        (
            {"conversations": [Q, A | {"weight": 0}, A], "system": "s"},
            "sharegpt",
            Conversation([S, Q, A, A], frozenset([2]), n_first=1),
        ),
        ({"messages": [Q, A], "text": "t"}, "chat", Conversation([Q, A])),
    ],
)
def test_records(tmp_path: Path, record: Any, format: str, sample: Any) -> None:
    assert one(tmp_path, record) == (format, sample)
    assert one(tmp_path, record, data_format=format) == (format, sample)


def test_alpaca_in_its_own_layout(tmp_path: Path) -> None:
    style = Style(LAYOUTS["alpaca"].joint, LAYOUTS["alpaca"].with_input)
    record = {"instruction": "q", "input": "i", "output": "a"}
    _, sample = one(tmp_path, record, style=style)
    system, question, answer = sample.messages
    assert system["content"].startswith("Below is an instruction that describes a task, paired")
    assert question == message("user", "q\n\n### Input:\ni") and answer == A
    own = one(tmp_path, record | {"system": "s"}, style=style)[1]
    assert own.messages == [S, question, A]
    assert one(tmp_path, record | {"input": ""}, style=style)[1] == Conversation([Q, A])


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        ("text", {}, 'the key "text" is missing'),
        ("text", {"text": 5}, '"text" must be text, not a number'),
        ("text", {"text": " \n"}, "the text is empty"),
        ("text", {"text": "\ud800"}, '"text" must not contain an unpaired surrogate (character 0)'),
        ("completion", {"prompt": "p"}, 'the key "completion" is missing'),
        ("completion", {"completion": "p"}, 'the key "prompt" is missing'),
        ("completion", {"prompt": "p", "completion": ""}, "the answer (completion) is empty"),
        ("completion", {"prompt": None, "completion": "c"}, '"prompt" must be text, not null'),
        ("completion", {"prompt": [Q], "completion": {}}, '"completion" must be a list of mess'),
        ("completion", {"prompt": [Q, A], "completion": [Q]}, "every answer is excluded from"),
        ("alpaca", {"instruction": "", "output": "a"}, "the instruction is empty"),
        ("alpaca", {"instruction": "q", "output": "\t"}, "the answer (output) is empty"),
        ("alpaca", {"instruction": "q"}, 'the key "output" is missing'),
        ("alpaca", {"instruction": "q", "output": "a", "input": []}, '"input" must be text'),
        ("alpaca", {"instruction": "q", "output": "a", "history": 1}, '"history" must be a list'),
        (
            "alpaca",
            {"instruction": "q", "output": "a", "history": [["q"]]},
            '"history" must contain [question',
        ),
        (
            "alpaca",
            {"instruction": "q", "output": "a", "history": [["q", ""]]},
            "message 2: the answer is empty",
        ),
        ("sharegpt", {"conversations": []}, '"conversations" must be a list of messages, not em'),
        ("sharegpt", {}, 'the key "conversations" is missing'),
        ("sharegpt", {"conversations": [7]}, "message 1: must be an object, not a number"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, 'message 1: the key "value" is'),
        (
            "sharegpt",
            {"conversations": [{"from": "alien", "value": "x"}]},
            "message 1: \"from\" is 'alien', not one of system, human, ",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "x"}]},
            'there is no message with the role "assistant"',
        ),
    ],
)
def test_bad_records(tmp_path: Path, format: str, record: Any, reason: str) -> None:
    good = {
        "text": {"text": "t"},
        "completion": {"prompt": "p", "completion": "c"},
        "alpaca": {"instruction": "q", "output": "a"},
        "sharegpt": {"conversations": [{"from": "gpt", "value": "a"}]},
    }[format]
    text = "\n".join(json.dumps(r) for r in (good, record, good, good))
    with pytest.raises(DataError) as caught:
        opened(tmp_path, text)
    assert f"data, line 2: {reason}" in str(caught.value)
    found = opened(tmp_path, text, skip_bad=True)
    assert found.format == format and len(found.samples) == 3
    assert found.bad[0].line == 2 and found.bad[0].reason.startswith(reason)


class TestTables:
    def test_columns_by_name(self, tmp_path: Path) -> None:
        text = 'id,completion,prompt\r\n1,"c, ""1""\nmore",p\r\n\r\n2,d,\r\n'
        for name in ("x.csv", "X.CSV", "noname"):
            found = opened(tmp_path, text, name)
            assert found.format == "completion"
            assert found.samples == [
                (2, Continuation("p", 'c, "1"\nmore')),
                (5, Continuation("", "d")),
            ]
        tabs = opened(tmp_path, "instruction\tinput\toutput\nq\ti\ta, b\n", "x.tsv")
        assert tabs.samples == [
            (2, Conversation([message("user", "q\n\ni"), message("assistant", "a, b")]))
        ]
        assert opened(tmp_path, "text\none\ntwo\n", "x.csv").format == "text"
        blank = opened(tmp_path, "q,a\nb,c\n,\n , \n,,\nd,e\n", "z.csv")
        assert [line for line, _ in blank.samples] == [2, 6]
        assert blank.notes[0].endswith("3 rows were skipped because all cells are empty")
        spaced = opened(tmp_path, "q,a\nb, c\nd, e\n", "y.csv")
        assert "2 cells begin with a space" in spaced.notes[0]
        missing = opened(tmp_path, "q,a\nb,NaN\nd,null\nNone,NaN\n", "y.csv")
        assert missing.notes[0].endswith(
            "y.csv: 4 cells contain only a missing-value marker, which is read as text: NaN in "
            "a (2), null in a (1), None in q (1); leave the cells empty if their values are missing"
        )
        # A single column of this name can be any text, if nothing else shows that it is a table.
        assert opened(tmp_path, "text\none\ntwo\n", "x").kind == "raw"
        assert opened(tmp_path, "text\none\n", "x", data_format="csv").samples == [
            (2, Continuation("", "one"))
        ]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("prompt,completion\na,b\nc\n", "line 3: the row has 1 cell, but the header has 2"),
            ("prompt,completion\na,b，c\nc，d\n", "has 2; is '，' meant as a delimiter?"),
            (
                "prompt\tcompletion\na\tb\tc\n",
                "3 cells, but the header has 2; put text that contains a tab in quotes",
            ),
            ("prompt,completion\na,b\nc,\n", "line 3: the answer (completion) is empty"),
            (
                'prompt,completion\na,b\nc,"d\n',
                "line 3: broken table: unexpected end of data; is a quotation mark missing?",
            ),
            ("prompt,prompt\na,b\n", "line 1: two columns have the same name"),
            ("theme,words\na,b\n", "line 1: the columns (theme, words) match no form"),
            ("prompt,completion,,\na,b,,\n", "line 1: two columns have no name"),
            (
                "prompt\uff0ccompletion\na,b\n",
                "line 1: the columns (prompt\uff0ccompletion) are sep",
            ),
            ("\u95ee|\u7b54\na|b\n", "are separated by '|'; use commas, tabs or"),
            ("prompt,completion\n", "it has no records"),
        ],
    )
    def test_bad_tables(self, tmp_path: Path, text: str, reason: str) -> None:
        with pytest.raises(DataError) as caught:
            opened(tmp_path, text, "x.csv")
        assert reason in str(caught.value)

    def test_bad_rows_are_skipped(self, tmp_path: Path) -> None:
        path = tmp_path / "x.csv"
        path.write_bytes(b"prompt,completion\na,b\nc\n\xff,d\ne,f\n")
        found = open_data(path, skip_bad=True)
        assert [n for n, _ in found.samples] == [2, 5]
        assert [b.line for b in found.bad] == [3, 4]
        assert "not UTF-8: byte 0xff" in found.bad[1].reason


class TestDocuments:
    def test_items_and_their_lines(self, tmp_path: Path) -> None:
        text = '\ufeff\n [ {"text": "a"},\n\n{"text":\n"b"}\n, {"text": "c"}]\n'
        found = opened(tmp_path, text)
        assert [line for line, _ in found.samples] == [2, 4, 6]
        assert [s for _, s in found.samples] == [Continuation("", c) for c in "abc"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('[{"text": "a"},\n {"text": "b"', "line 2: invalid JSON: "),
            ('[{"text": "a"}\n {"text": "b"}]', "line 2: invalid JSON: expected ',' or ']'"),
            (
                '[{"text": "a"},\n 5]',
                "line 2: a record must be an object with named values, not a num",
            ),
            ('[{"text": "a"},\n {"txt": "b"}]', 'line 2: the key "text" is missing'),
        ],
    )
    def test_bad_items(self, tmp_path: Path, text: str, reason: str) -> None:
        with pytest.raises(DataError) as caught:
            opened(tmp_path, text)
        assert reason in str(caught.value)

    @pytest.mark.parametrize("text", ["[1] see there\n", "[", "[Enter HAMLET]\n", "[1, 2]", "[]"])
    def test_text_with_brackets_is_text(self, tmp_path: Path, text: str) -> None:
        assert opened(tmp_path, text).kind == "raw"


def test_keys_of_no_format(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, '{"theme": "q", "n": 1, "words": "a"}\n')
    error = str(caught.value)
    assert "line 1: the keys (theme, n, words) match no format (question/answer, " in error
    assert "--data-columns prompt=theme,completion=words (concatenated as is)" in error
    assert error.endswith("or --data-format raw for plain text")
    assert opened(tmp_path, '{"question": "q"}\n', data_format="raw").kind == "raw"


def test_names_of_ones_own(tmp_path: Path) -> None:
    columns = parse_columns(" prompt=question, completion=answer,")
    assert columns == {"prompt": "question", "completion": "answer"}
    text = '{"question": "q", "answer": "a", "prompt": "x"}\n{"question": "q"}\n'
    with pytest.raises(DataError, match=r'line 2: the key "answer" is missing'):
        opened(tmp_path, text, columns=columns)
    found = opened(tmp_path, text, columns=columns, skip_bad=True)
    assert found.samples == [(1, Continuation("q", "a"))]
    table = opened(tmp_path, "question,answer\nq,a\n", "x.csv", columns=columns)
    assert table.samples == [(2, Continuation("q", "a"))]
    assert opened(tmp_path, "question,answer\nq,a\n", columns=columns).format == "completion"
    with pytest.raises(DataError, match=r'line 1: the key "answer" is missing'):
        opened(tmp_path, '{"question": "q"}\n', columns=columns)
    for bad in ("prompt", "prompt=", "x=y", "prompt=a,b"):
        with pytest.raises(
            UsageError, match="is not KEY=NAME; KEY must be one of chosen, completion"
        ):
            parse_columns(bad)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("instruction=q,output=q", 'the column "q" cannot be both instruction and output'),
        ("instruction=q,input=i,output=q", 'the column "q" cannot be both instruction and output'),
        ("instruction=a,instruction=b", "instruction is given twice; keep one"),
    ],
)
def test_one_column_for_one_key(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^--data-columns: {reason}"):
        parse_columns(text)


def test_two_spellings_of_one_column(tmp_path: Path) -> None:
    columns = {"instruction": "q", "output": "Q"}
    with pytest.raises(DataError, match=r'line 1: the column "q" cannot be both'):
        opened(tmp_path, '{"q": "x", "a": "y"}\n', columns=columns)
    found = opened(tmp_path, '{"q": "x", "Q": "y"}\n', columns=columns)
    assert found.samples == [(1, Conversation([message("user", "x"), message("assistant", "y")]))]


@pytest.mark.parametrize("cell", ["", " ", "[]", '"[[""a"", ""b""]]"'])
def test_the_history_in_a_table(tmp_path: Path, cell: str) -> None:
    found = opened(tmp_path, f"instruction,output,history\nq,c,{cell}\n", "x.csv")
    earlier = [message("user", "a"), message("assistant", "b")] if "a" in cell else []
    asked = [*earlier, message("user", "q"), message("assistant", "c")]
    assert found.samples == [(2, Conversation(asked))]
    with pytest.raises(DataError, match='"history" must be a list of'):
        opened(tmp_path, "instruction,output,history\nq,c,['a']\n", "x.csv")


def test_splits(tmp_path: Path) -> None:
    assert find_splits(tmp_path / "x.jsonl") == (str(tmp_path / "x.jsonl"), None, None, "")
    with pytest.raises(DataError, match=r"contains no data: no train\.jsonl"):
        open_data(tmp_path)
    for name in ("train.jsonl", "valid.csv"):
        (tmp_path / name).touch()
    parts = (str(tmp_path / "train.jsonl"), str(tmp_path / "valid.csv"), None)
    assert find_splits(tmp_path) == (*parts, "")
    for name in ("other.jsonl", ".other.jsonl", "model.gguf", "b.csv"):
        (tmp_path / name).touch()
    found = find_splits(tmp_path)
    assert found[:3] == parts
    assert found.note == f"the folder {tmp_path}: ignoring 2 files: b.csv, other.jsonl"
    assert input_files(tmp_path) == [str(tmp_path / n) for n in ("train.jsonl", "valid.csv")]
    (tmp_path / "train.jsonl").rename(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"contains valid\.csv, but no train\.jsonl"):
        find_splits(tmp_path)
    (tmp_path / "a.jsonl").rename(tmp_path / "train.jsonl")
    (tmp_path / "train.txt").touch()
    with pytest.raises(
        DataError, match=r"contains train\.jsonl and train\.txt; pass the name of the data file"
    ):
        find_splits(tmp_path)


def test_the_words_of_options_are_those_of_the_library() -> None:
    assert set(data_options.FORMATS) == set(NAMES)
    assert data_options.ON_LONG == ON_LONG
    assert tuple(sorted(LAYOUTS)) == data_options.LAYOUTS
