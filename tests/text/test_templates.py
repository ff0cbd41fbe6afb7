"""The layouts by name: their texts, to the character, and the places of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.errors import DataError, UsageError
from nbllama.text import LAYOUTS, ChatTemplate, find_layout
from nbllama.text.answers import split_answer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2 天"},
]
TASK = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)

# name -> (text of CHAT, its two answers, the prompt for the answer to CHAT[1:2])
TEXTS = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n2 天<|im_end|>\n",
        ["1<|im_end|>", "2 天<|im_end|>"],
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama-2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne? [/INST] 1 </s>"
        "<s>[INST] Two? [/INST] 2 天 </s>",
        [" 1 </s>", " 2 天 </s>"],
        "<s>[INST] One? [/INST]",
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nTwo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n2 天<|eot_id|>",
        ["1<|eot_id|>", "2 天<|eot_id|>"],
        "<s><|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "alpaca": (
        "Be brief.\n\n### Instruction:\nOne?\n\n### Response:\n1</s>\n\n"
        "### Instruction:\nTwo?\n\n### Response:\n2 天</s>\n\n",
        ["1</s>", "2 天</s>"],
        TASK + "### Instruction:\nOne?\n\n### Response:\n",
    ),
    "baichuan": (
        "Be brief.<reserved_106>One?<reserved_107>1</s><reserved_106>Two?<reserved_107>2 天</s>",
        ["1</s>", "2 天</s>"],
        "<reserved_106>One?<reserved_107>",
    ),
}


def test_every_layout_is_tested() -> None:
    assert TEXTS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    text, answers, prompt = TEXTS[name]
    with ChatTemplate(find_layout(name).source, "<s>", "</s>") as t:
        assert t.render(CHAT, False) == text
        numbers = [i for i, m in enumerate(CHAT) if m["role"] == "assistant"]
        for i, answer in zip(numbers, answers, strict=True):
            before, through = t.render(CHAT[:i], True), t.render(CHAT[: i + 1], False)
            part = split_answer(before, through, CHAT, i)
            assert part.text(through).rstrip() == answer
            assert text.startswith(before + answer)
        assert t.render(CHAT[1:2], True) == prompt


@pytest.mark.parametrize("name", ["llama-2", "alpaca", "baichuan"])
def test_roles_that_a_layout_has_not(name: str) -> None:
    refused = pytest.raises(DataError, match=f"{name} has no role tool")
    with ChatTemplate(find_layout(name).source) as t, refused:
        t.render([*CHAT, {"role": "tool", "content": "x"}], False)


def test_names_and_files(tmp_path: Path) -> None:
    assert find_layout("Llama2") is find_layout("llama-2") is LAYOUTS["llama-2"]
    path = tmp_path / "own.jinja"
    path.write_text("\ufeff天{{ messages }}", encoding="utf-8")
    assert find_layout(str(path)).source == "天{{ messages }}"
    with pytest.raises(UsageError, match=r"--chat-template nix: neither a file nor one of alpa"):
        find_layout("nix")
    with pytest.raises(UsageError, match="a folder, not a regular file"):
        find_layout(str(tmp_path))
    path.write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match="not UTF-8 at offset 2"):
        find_layout(str(path))


@pytest.mark.parametrize(
    "template",
    [
        "天{{ messages }}",
        [{"name": "rag", "template": ""}, {"name": "default", "template": "天{{ messages }}"}],
    ],
)
def test_the_template_in_a_tokenizer_config(tmp_path: Path, template: Any) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"eos_token": "</s>", "chat_template": template}, indent=1))
    assert find_layout(str(path)).source == "天{{ messages }}"


@pytest.mark.parametrize(
    "config", [{}, {"chat_template": None}, {"chat_template": [{"name": "a"}]}]
)
def test_json_without_a_template(tmp_path: Path, config: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r'JSON without a template under "chat_template"; pass'):
        find_layout(str(path))
