"""Errors about names of columns and keys: the line, the reason, and an option to type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import open_data, open_records
from nbllama.errors import DataError


def error(folder: Path, text: str, name: str, **options: Any) -> str:
    """The error without the name of the file."""
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(DataError) as caught:
        open_data(path, **options)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("table", "typed"),
    [
        ("theme,words\na,b", "prompt=theme,completion=words"),
        ("n,theme,words,m\n1,a,b,2\n2,c,d,3", "prompt=theme,completion=words"),
        ("n,客户提问,备注,回复内容\n1,a,x,b", "prompt=客户提问,completion=回复内容"),
        ("the answers,his questions\na,b", "'prompt=his questions,completion=the answers'"),
        ("words\na", "text=words"),
        ("c,d\n1,2", "prompt=c,completion=d"),
        (f"{'x' * 90},c,d\na,b,c", "prompt=NAME,completion=d"),
        ('"a,b",c\na,b', "prompt=NAME,completion=c"),
    ],
)
@pytest.mark.parametrize(("before", "line"), [("", 1), ("\n\n", 3), ("sep=,\n", 2)])
@pytest.mark.parametrize("skip", [False, True])
def test_a_table(
    tmp_path: Path, table: str, typed: str, before: str, line: int, skip: bool
) -> None:
    found = error(tmp_path, f"{before}{table}\n", "x.csv", skip_bad=skip)
    head, _, option = found.partition("; pass ")
    assert head.startswith(f", line {line}: the columns (") and len(head) < 200
    assert f"--data-columns {typed}" in option and "raw" not in found


@pytest.mark.parametrize(
    ("record", "typed"),
    [
        ({"input": "q", "content": "a", "repo_name": "x"}, "prompt=input,completion=content"),
        (
            {"lang": "en", "story": "long text", "style": "b", "book": "c" * 9},
            "story,completion=book",
        ),
        ({"title": "t", "body": "b", "category": "c"}, "prompt=title,completion=body"),
        ({"id": "1", "essay": "e", "url": "u"}, "text=essay"),
        ({"answer_id": "x", "essay": "e", "reply_text": "r"}, "prompt=essay,completion=reply_text"),
    ],
)
def test_an_option_names_long_texts(tmp_path: Path, record: dict[str, str], typed: str) -> None:
    assert f"{typed} " in error(tmp_path, json.dumps(record), "x.jsonl") + " "


@pytest.mark.parametrize(
    "record",
    [
        {"title": "t", "mapping": {"x": {"message": None}}, "model_slug": 1},  # ChatGPT's export
        {"question_id": 81, "category": "writing", "turns": ["q1", "q2"]},  # MT-bench
        {"id": "0", "data": ["q", "a"]},  # UltraChat
        {"dialog": ["Hi", "Hello"]},
        {"dialog": ["Hi", "Hello"], "act": [1, 2], "emotion": [0, 0]},  # DailyDialog
        {"repo_name": "x", "created_at": "y", "UUID": "z"},
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_no_option_trains_on_a_description(tmp_path: Path, record: Any, times: int) -> None:
    found = error(tmp_path, f"{json.dumps(record)}\n" * times, "x.jsonl")
    assert "--data-columns" not in found
    assert ("contains a list of texts; write a chat as" in found) == (
        any(key in record for key in ("turns", "data", "dialog"))
    )


def test_a_file_of_records(tmp_path: Path) -> None:
    found = error(tmp_path, '\n{"theme": "q", "poem": "a"}\n', "x.jsonl")
    assert found.startswith(", line 2: the keys (theme, poem) match no format (question/answer, ")
    assert "raw" not in found


def test_a_column_without_a_name(tmp_path: Path) -> None:
    """As pandas writes the index of a table."""
    assert 'the columns ("", theme, poem) match' in error(tmp_path, ",theme,poem\n0,a,b", "x.csv")
    path = tmp_path / "y.csv"
    path.write_text(",question,answer\n0,q,a\n1,q,a\n", encoding="utf-8")
    assert 'keys not used for training: "" (2)' in open_data(path).notes


def test_rows_that_are_messages(tmp_path: Path) -> None:
    for header in ("角色,内容", "role,content", "说话人,消息"):
        found = error(tmp_path, f"{header}\nuser,q\nassistant,a\n", "x.csv")
        assert found.startswith(f", line 1: each row is a single message ({header[:2]}")
        assert "--data-columns" not in found


def test_records_in_memory() -> None:
    with pytest.raises(DataError, match=r"^it, line 1: the keys \(theme, poem\)") as caught:
        open_records([{"theme": "q", "poem": "a"}], "it")
    assert "raw" not in str(caught.value)


def test_a_parquet_file_has_no_lines(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"theme": ["q"], "poem": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "x.parquet")
    assert "x.parquet: the columns (theme, poem) match no format" in str(caught.value)


def test_errors_about_columns_name_the_header(tmp_path: Path) -> None:
    text = "问题,提问,回答\na,b,c\n"
    assert error(tmp_path, text, "x.csv").startswith(", line 1: it is unclear which keys")
    found = error(tmp_path, text, "x.csv", columns={"prompt": "q"})
    assert found == ', line 1: the key "q" is missing'
    found = error(tmp_path, text, "x.csv", data_format="text")
    assert found == ', line 1: the key "text" is missing'
    assert error(tmp_path, "问题,回答\na,b\nc,\n", "x.csv").startswith(", line 3: the answer ")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("q,", 'the answer (output) is empty (in the file, "output" is called "回答")'),
        (" ,a", 'the instruction is empty (in the file, "instruction" is called "问题")'),
    ],
)
def test_errors_use_the_names_in_the_file(tmp_path: Path, row: str, reason: str) -> None:
    assert error(tmp_path, f"问题,回答\n{row}\n", "x.csv") == f", line 2: {reason}"
    found = error(tmp_path, '{"问题": "q", "回答": true}\n', "x.jsonl")
    assert found.startswith(', line 1: "output" must be text, not true or false (in the file, ')


def test_a_missing_key_that_other_records_have(tmp_path: Path) -> None:
    text = '{"问题": "q", "答案": "a"}\n{"答案": "a"}\n'
    assert error(tmp_path, text, "x.jsonl") == (
        ', line 2: the key "instruction" is missing (in other records, it is called "问题")'
    )


@pytest.mark.parametrize("name", ["x.jsonl", "x"])
def test_json_with_full_width_punctuation(tmp_path: Path, name: str) -> None:
    good = '{"question": "q", "answer": "a"}'
    for character, wide in ((":", "\uff1a"), (",", "\uff0c"), ('"', "\u201c")):
        found = error(tmp_path, good.replace(character, wide, 1) + "\n", name)
        assert "line 1: invalid JSON" in found and f"(write {character}, not {wide})" in found


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('{"question": "q", "answer": null}', '"answer" is null or NaN'),
        ('{"q": "q", "a": NaN}', '"a" is null or NaN'),
        ('{"问题": null, "答案": null, "id": "x"}', '"问题" and "答案" are null or NaN'),
        ('{"id": "x", "messages": null}', '"messages" is null or NaN'),
        (
            '{"messages": null, "prompt": "p", "completion": null}',
            '"completion" is null or NaN',
        ),
    ],
)
def test_values_that_every_record_lacks(tmp_path: Path, line: str, names: str) -> None:
    found = error(tmp_path, f"{line}\n{line}\n", "x.jsonl")
    assert found.startswith(f", line 1: {names}, and no other record can be read; give each")
    assert "--data-columns" not in found


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"data": {"question": "q", "answer": "a"}}', 'the record is under "data"'),
        ('{"data": {"theme": "q", "poem": "a"}}', 'the record is under "data"'),
        ('{"id": "1", "d": {"q": "q", "a": "a"}}', 'the record is under "d"'),
        ('{"data": [{"q": "q", "a": "a"}]}', 'the records are in a list under "data"'),
    ],
)
def test_records_under_a_key_of_each_line(tmp_path: Path, line: str, place: str) -> None:
    found = error(tmp_path, f"{line}\n{line}\n", "x.jsonl")
    assert found.startswith(f", line 1: {place}; write each record separately, with its own keys")


@pytest.mark.parametrize("column", ['["a", "b"]', '{"0": "a", "1": "b"}'])
@pytest.mark.parametrize(
    "names",
    [("question", "answer"), ("prompt", "completion"), ("instruction", "output"), ("x", "y")],
)
def test_a_table_by_columns(tmp_path: Path, names: tuple[str, str], column: str) -> None:
    text = "{" + ", ".join(f'"{name}": {column}' for name in names) + "}"
    found = error(tmp_path, text, "x.json")
    assert f'"{names[0]}"' in found
    assert "contains a whole column of a table; write each row as one record" in found


def test_options_use_the_names_in_the_file(tmp_path: Path) -> None:
    text = '{"question": "q", "answer": "a"}'
    found = error(tmp_path, text, "x.jsonl", columns={"instruction": "question"})
    assert ": the keys (answer, question) match no format" in found
    assert found.endswith(
        "pass --data-columns instruction=question,output=answer (with the chat template) or "
        "--data-columns prompt=question,completion=answer (concatenated as is)"
    )


def test_a_record_without_keys(tmp_path: Path) -> None:
    assert "the keys (none) match no format" in error(tmp_path, "{}\n", "x.jsonl")


def test_the_key_that_is_missing_is_named(tmp_path: Path) -> None:
    good = '{"question": "q", "answer": "a"}\n'
    for bad in ('{"question": "q"}', '{"question": "q", "answer": null}'):
        found = error(tmp_path, good + bad, "x.jsonl")
        assert found == ', line 2: the key "answer" is missing or null'
    for bad in ('{"answer": "a"}', '{"question": null, "answer": "a"}'):
        found = error(tmp_path, good + bad, "x.jsonl")
        assert found.endswith('is missing (in other records, it is called "question")')
