"""A message in an error has the number that it has in the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import load_dataset, open_data
from nbllama.errors import DataError
from nbllama.text import ChatTemplate, Tokenizer

# No role for system messages, and the second answer of a chat is left out.
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% elif not (m.role == 'assistant' and loop.index0 == 3) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Changes the messages.
SHOUTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
QUESTION = {"from": "human", "value": "q"}


def reason(
    path: Path, record: dict[str, Any], tokenizer: Tokenizer, source: str, **options: Any
) -> str:
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    with ChatTemplate(source) as template, pytest.raises(DataError) as e:
        load_dataset(open_data(path), tokenizer, 256, template=template, **options)
    return str(e.value)


def test_a_folded_system_message_counts(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    plain = reason(path, {"messages": [Q, A, Q, A]}, bpe, FORGETFUL)
    assert "line 1: message 4: the prompt for this answer ends with" in plain
    folded = {"messages": [SYSTEM, Q, A, Q, A]}
    line = reason(path, folded, bpe, FORGETFUL, system_as_user=True)
    assert line == plain.replace("message 4:", "message 5:")


def test_a_system_text_outside_of_the_list_does_not_count(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    turns = [QUESTION, {"from": "gpt", "value": "<|im_end|>x"}]
    for more in ({}, {"system": "s"}):
        line = reason(path, {"conversations": turns, **more}, bpe, SHOUTING)
        assert "message 2 contains the text of a special token" in line, more
        empty = {"conversations": [QUESTION, {"from": "gpt", "value": " "}], **more}
        assert "message 2: the answer is empty" in reason(path, empty, bpe, SHOUTING)


def test_an_answer_of_the_prompt_that_is_to_be_trained_is_refused(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    record = {"prompt": [Q, A | {"weight": 1}, Q], "completion": [A]}
    line = reason(path, record, bpe, SHOUTING)
    assert line.endswith(
        'message 2 of "prompt": "weight" marks it for training, but '
        'only answers in "completion" are trained on'
    )
    masked = {"prompt": [Q, A | {"weight": 0}, Q], "completion": [A]}
    path.write_text(json.dumps(masked) + "\n", encoding="utf-8")
    assert len(open_data(path).samples) == 1
