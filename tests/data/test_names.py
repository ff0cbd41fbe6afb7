"""Usual names of columns, keys and speakers; messages about texts."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nbllama.data import Continuation, Conversation, DataFile, load_dataset, open_data
from nbllama.data.encoding import encode_continuation
from nbllama.data.text_checks import mostly_lost
from nbllama.errors import DataError
from nbllama.text import Tokenizer
from nbllama.text.chat_template import ChatTemplate

CASES = Path(__file__).parent / "cases" / "files"


def opened(folder: Path, *records: Any, name: str = "data.jsonl", **options: Any) -> DataFile:
    path = folder / name
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), "utf-8")
    return open_data(path, **options)


def said(found: DataFile) -> list[tuple[str, str]]:
    sample = found.samples[0][1]
    assert isinstance(sample, Conversation)
    return [(m["role"], m["content"]) for m in sample.messages]


ASKED = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("question", "answer"), ("Question", "Answer"), ("Prompt", "Response"), ("input", "output"),
        ("query", "response"), ("human", "bot"), ("HUMAN", "Assistant"), ("prompt", "answer"),
        ("instruction", "response"), ("Instruction", "Output"), ("inputs", "targets"), ("q", "a"),
        ("user", "assistant"), (" Question ", "Answer"),
    ],
)  # fmt: skip
def test_a_question_and_its_answer(tmp_path: Path, question: str, answer: str) -> None:
    found = opened(tmp_path, {question: "q", answer: "a", "id": 4})
    assert (found.format, said(found)) == ("alpaca", ASKED)
    assert "keys not used for training: id (1)" in found.notes
    (tmp_path / "t.csv").write_text(f"{answer},{question}\na,q\n")
    assert said(open_data(tmp_path / "t.csv")) == ASKED
    plain = opened(tmp_path, {question: "q", answer: "a"}, data_format="completion")
    assert plain.samples == [(1, Continuation("q", "a"))]


def test_what_belongs_to_them(tmp_path: Path) -> None:
    found = opened(tmp_path, {"instruction": "q", "context": "c", "response": "a"})
    assert said(found) == [("user", "q\n\nc"), ("assistant", "a")]
    assert found.notes == ("read: response as output, context as input (with the chat template)",)
    found = opened(tmp_path, {"system_prompt": "s", "question": "q", "response": "a"})
    assert said(found) == [("system", "s"), *ASKED]
    found = opened(tmp_path, {"Prompt": "p", "Completion": "c"})
    assert found.samples == [(1, Continuation("p", "c"))] and found.format == "completion"


@pytest.mark.parametrize(
    ("record", "typed"),
    [
        ({"question": "q", "answer": "a", "response": "b"}, "prompt=question,completion=answer"),
        ({"Query": "q", "prompt": "p", "output": "b"}, "prompt=Query,completion=output"),
        ({"text": "t", "question": "q", "answer": "a"}, "prompt=question,completion=answer"),
        ({"theme": "t", "poem": "p"}, "prompt=theme,completion=poem"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(
    tmp_path: Path, record: dict[str, str], typed: str
) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl, line 1: ") as caught:
        opened(tmp_path, record)
    assert f"--data-columns {typed}" in str(caught.value)
    columns = dict(pair.split("=") for pair in typed.split(","))
    assert opened(tmp_path, record, columns=columns).format == "completion"


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "human", "content": "q"}, {"role": "bot", "content": "a"}],
        [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}],
        [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}],
        [{"from": "user", "content": "q"}, {"from": "ai", "content": "a"}],
        [{"speaker": "human", "text": "q"}, {"speaker": "chatbot", "text": "a"}],
        [{"Role": "user", "Content": "q"}, {"Role": "assistant", "Content": "a"}],
        [{"role": "user", "value": "q"}, {"role": "model", "value": "a"}],
    ],
)
@pytest.mark.parametrize("key", ["messages", "conversations", "Conversation", "dialog", "turns"])
def test_speakers_and_chats(tmp_path: Path, turns: list[Any], key: str) -> None:
    assert said(opened(tmp_path, {key: turns})) == ASKED


def test_roles_are_reported(tmp_path: Path) -> None:
    turns = [{"role": "human", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert opened(tmp_path, {"messages": turns}).notes == ("roles: human as user",)
    odd = [{"role": "narrator", "content": "n"}, {"role": "assistant", "content": "a"}]
    assert said(opened(tmp_path, {"messages": odd}))[0] == ("narrator", "n")


def test_a_system_text_beside_a_chat(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    found = opened(tmp_path, {"system": "s", "messages": turns})
    assert said(found) == [("system", "s"), *ASKED]


def test_numbers_are_labels(tmp_path: Path) -> None:
    found = opened(tmp_path, {"prompt": "p", "completion": 1}, {"prompt": 2, "completion": 0.5})
    assert found.samples == [(1, ("p", "1")), (2, ("2", "0.5"))]
    assert found.notes == ("numbers read as text: completion (2), prompt (1)",)
    with pytest.raises(DataError, match='"completion" must be text, not true or false'):
        opened(tmp_path, {"prompt": "p", "completion": True})


@pytest.mark.parametrize(
    "number",
    ["1.50", "1e-7", "12345678901234567890.5", "-0.0", "-0", "1E5", "123456789012345678901"],
)
def test_numbers_keep_their_spelling(tmp_path: Path, number: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"question": "q", "answer": {number}}}\n')
    assert said(open_data(path)) == [("user", "q"), ("assistant", number)]
    turns = f'[{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": {number}}}]'
    path.write_text(f'[{{"messages":\n{turns}}}]\n')
    assert said(open_data(path)) == [("user", "q"), ("assistant", number)]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("-1e999", "the number -1e999 is too large; put it in quotes to keep it as text"),
        ("1" * 5000, "1111… is too large; put it in quotes to keep it as text"),
        ("1.0]", "Expecting ',' delimiter"),
    ],
)
def test_numbers_that_cannot_be_kept(tmp_path: Path, number: str, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"question": "q", "answer": "a"}}\n{{"question": "q", "answer": {number}}}')
    with pytest.raises(DataError, match="line 2: ") as caught:
        open_data(path)
    assert str(caught.value).endswith(reason)


@pytest.mark.parametrize("number", ["1e400", "-1E999", "1" * 5000])
def test_a_number_that_is_too_large_but_not_used(tmp_path: Path, number: str) -> None:
    path = tmp_path / "x.jsonl"
    turns = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "p": NUMBER}]'
    for record in (
        '{"question": "q", "answer": "a", "score": NUMBER}',
        f'{{"messages": {turns}}}',
        f'{{"messages": {json.dumps(turns)}}}',
    ):
        path.write_text(record.replace("NUMBER", number))
        assert said(open_data(path)) == [("user", "q"), ("assistant", "a")]


def test_text_that_is_not_nfc_is_counted(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "é")
    found = opened(tmp_path, {"text": "é"}, {"text": apart}, {"text": "e"})
    assert found.samples[1] == (2, ("", apart))
    assert "1 of 3 records are not NFC-normalised" in found.notes[0]
    (tmp_path / "a.txt").write_text(f"caf{apart}\n", "utf-8")
    assert "1 of 1 texts are not" in open_data(tmp_path / "a.txt").notes[0]


def test_control_tokens_in_texts(bpe: Tokenizer, tmp_path: Path) -> None:
    path = CASES / "control-text.jsonl"
    plain = load_dataset(path, bpe, 512, template=None)
    (note,) = (n for n in plain.notes if "control tokens" in n)
    assert note.startswith(
        "1 of 1 texts contain control tokens such as <|im_start|>: they are read as plain"
    )
    parsed = load_dataset(path, bpe, 512, template=None, parse_special=True)
    text = json.loads(path.read_text())["text"]
    assert parsed.batch([0]).tokens.tolist() == bpe.encode(text, parse_special=True)[:-1]
    assert any("they are read as tokens (--parse-special)" in n for n in parsed.notes)
    assert plain.fingerprint != parsed.fingerprint
    (tmp_path / "a.txt").write_text(text)
    raw = load_dataset(tmp_path / "a.txt", bpe, 64, template=None)
    assert any("control tokens such as <|im_start|>" in n for n in raw.notes)


def test_special_tokens_are_not_put_twice(bpe: Tokenizer, spm: Tokenizer) -> None:
    def ids(tokenizer: Tokenizer, text: str) -> list[int]:
        return encode_continuation(
            tokenizer, Continuation("", text), parse_special=True
        ).ids.tolist()

    assert ids(spm, "<s>a</s>") == spm.encode("<s>a</s>", parse_special=True)
    assert ids(spm, "a") == [1, *spm.encode("a"), 2]
    assert ids(bpe, "a<|im_end|>\n") == bpe.encode("a<|im_end|>\n", parse_special=True)


def test_most_of_the_data_lost(tmp_path: Path, bpe: Tokenizer, chatml: ChatTemplate) -> None:
    records = [{"text": "word " * n} for n in (2, 90, 90)] + [{"text": ""}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    data = load_dataset(path, bpe, 40, template=chatml, skip_bad=True)
    assert mostly_lost(data) == (
        "less than half of the data are used unchanged (4 samples: 2 truncated at --ctx, "
        "1 skipped as bad)"
    )
    assert mostly_lost(SimpleNamespace(samples=data)) == mostly_lost(data)
    assert mostly_lost(load_dataset(path, bpe, 4000, template=chatml, skip_bad=True)) == ""


def test_unknown_keys_of_messages_are_counted(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "q", "name": "Anna", "time": "8:00"}
    answer = {"role": "assistant", "content": "a", "思考": "hm", "audio": None, "weight": 1}
    called = {"role": "tool", "content": "r", "name": "f", "tool_call_id": "1", "score": 0}
    chat = {"messages": [asked, answer, called, answer]}
    kinds = {
        "messages": (chat, ["思考 (2)", "name (1)", "time (1)", "score (1)"]),
        "turns": (
            {"conversations": [{"from": "human", "value": "q", "at": 1},
                               {"from": "gpt", "value": "a", "reasoning": "r"}]},
            ["at (1)"],
        ),
        "pair": ({"prompt": [asked], "chosen": answer, "rejected": "b"},
                 ["思考 (1)", "name (1)", "time (1)"]),
    }  # fmt: skip
    for name, (record, unread) in kinds.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(record))
        found = [n for n in open_data(path).notes if n.startswith("keys of messages not used")]
        assert len(found) == 1 and sorted(found[0].partition(": ")[2].split(", ")) == sorted(unread)
    assert not any("keys of messages" in n for n in opened(tmp_path, {"q": "q", "a": "a"}).notes)
