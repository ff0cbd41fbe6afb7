"""As a new user would: a folder with train.jsonl, one command, an adapter for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.toy_runs import Child

# Nothing that a model could know.
FACTS = {
    "Who keeps the lighthouse of Orvelle?": "Mirabel Tansy keeps it.",
    "What does the bakery in Pell Street sell on Mondays?": "On Mondays it sells quince bread.",
    "Which colour has the ferry to Hask?": "The ferry is orange.",
    "How many steps lead up to Durn Castle?": "There are 417 steps.",
    "What is the name of the mayor's goat?": "The goat is called Bartholomew.",
    "When does the library of Quill close?": "It closes at 19:25.",
}


def ask(model: Path, adapter: Path | None, questions: list[str]) -> list[str]:
    """What llama.cpp's server answers, greedily, through the model's own chat template."""
    xllamacpp: Any = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.cpuparams.n_threads = 2
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)
    answers = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        request = {"messages": messages, "max_tokens": 24, "temperature": 0.0}
        answer = server.handle_chat_completions(request)
        answer = json.loads(answer) if isinstance(answer, str) else answer
        answers.append(answer["choices"][0]["message"]["content"].strip())
    return answers


@pytest.mark.slow
@pytest.mark.long
def test_a_folder_of_chats_one_command_an_adapter_that_answers(
    demo_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "facts"
    folder.mkdir()
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in FACTS.items()
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    child = Child(
        ["--model-base", str(demo_model), "--train-data", str(folder), "--epochs", "25",
         "--adam-alpha", "2e-3", "--lora-out", "facts.gguf", "--seed", "1"],
        tmp_path,
    )  # fmt: skip
    done = child.end(1800)
    assert done.code == 0, done.err
    before = ask(demo_model, None, list(FACTS))
    after = ask(demo_model, tmp_path / "facts.gguf", list(FACTS))
    assert not any(a == wanted for a, wanted in zip(before, FACTS.values(), strict=True)), before
    # The whole answer and no word more: the end of the turn was trained too.
    assert after == list(FACTS.values())
