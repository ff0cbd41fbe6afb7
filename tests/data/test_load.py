from __future__ import annotations

import json
from pathlib import Path

import pytest

from nbllama.data import RawText, Samples, data_kind, load_dataset
from nbllama.errors import DataError
from nbllama.text import Tokenizer
from nbllama.text.chat_template import ChatTemplate

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
LINE = json.dumps(CHAT)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LINE, "chat"),
        (f"\ufeff\n{LINE}\n\n{LINE}\r\n", "chat"),
        (f"{LINE}\n{LINE}\nbroken\n", "chat"),
        (f"broken\n{LINE}\n", "chat"),
        ('{"text": "a"}', "chat"),
        ("Enter HAMLET.\n", "raw"),
        ("   \n", "raw"),
        (f"a\nb\n{LINE}\n", "raw"),
        ("{broken\n", "raw"),
        ("[1, 2]\n", "raw"),
    ],
)
def test_the_content_decides(tmp_path: Path, content: str, kind: str) -> None:
    """But a file with the name of a record file is never raw text."""
    for name in ("data.txt", "data.jsonl"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        if kind == "raw" and name == "data.jsonl" and LINE not in content:
            with pytest.raises(DataError, match=r"data\.jsonl"):
                data_kind(path)
        else:
            assert data_kind(path) == (kind if name == "data.txt" else "chat")


@pytest.mark.parametrize(("document", "lines"), [(CHAT, [1]), ([CHAT, CHAT], [2, 14])])
def test_a_json_document_holds_records_too(
    tmp_path: Path, bpe: Tokenizer, chatml: ChatTemplate, document: object, lines: list[int]
) -> None:
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    data = load_dataset(path, bpe, 64, template=chatml)
    assert isinstance(data, Samples) and data.lines.tolist() == lines


def test_load(tmp_path: Path, bpe: Tokenizer, chatml: ChatTemplate) -> None:
    path = tmp_path / "data"
    path.write_text(LINE, encoding="utf-8")
    chat = load_dataset(path, bpe, 64, template=chatml)
    assert isinstance(chat, Samples) and chat.n_samples == 1
    assert (
        chat.fingerprint
        == load_dataset(path, bpe, 64, template=chatml, data_format="chat").fingerprint
    )
    raw = load_dataset(path, bpe, 64, template=chatml, data_format="raw")
    assert isinstance(raw, RawText) and bpe.decode(raw.tokens.tolist()) == LINE
    path.write_text("the hand", encoding="utf-8")
    assert load_dataset(path, bpe, 64, template=None).kind == "raw"
    with pytest.raises(DataError, match="line 1: invalid JSON"):
        load_dataset(path, bpe, 64, template=chatml, data_format="chat")
    with pytest.raises(ValueError, match="'json' is not one of raw, chat, "):
        load_dataset(path, bpe, 64, template=None, data_format="json")


def test_chats_need_a_template(tmp_path: Path, bpe: Tokenizer) -> None:
    path = tmp_path / "data"
    path.write_text(LINE, encoding="utf-8")
    with pytest.raises(DataError, match="the model has no chat template"):
        load_dataset(path, bpe, 64, template=None)


def test_a_broken_line_is_told(tmp_path: Path, bpe: Tokenizer, chatml: ChatTemplate) -> None:
    path = tmp_path / "data"
    path.write_text(f"{LINE}\n{LINE[:-9]}\n", encoding="utf-8")
    with pytest.raises(DataError, match="data, line 2: invalid JSON at column"):
        load_dataset(path, bpe, 64, template=chatml)


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"a\xff", "offset 1")])
def test_bad_files(tmp_path: Path, bpe: Tokenizer, content: bytes, message: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(path, bpe, 64, template=None)
    with pytest.raises(DataError, match="No such file"):
        load_dataset(tmp_path / "none", bpe, 64, template=None)
