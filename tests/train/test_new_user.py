"""Like a new user: ten chats in a folder, one command or ten lines of Python, no options."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.toy_runs import Child, events

# Facts that no model can have learned.
FACTS = {
    "Who keeps the lighthouse of Orvelle?": "Mirabel Tansy keeps it.",
    "What does the bakery in Pell Street sell on Mondays?": "On Mondays it sells quince bread.",
    "Which colour has the ferry to Hask?": "The ferry is orange.",
    "How many steps lead up to Durn Castle?": "There are 417 steps.",
    "What is the name of the mayor's goat?": "The goat is called Bartholomew.",
    "When does the library of Quill close?": "It closes at 19:25.",
    "Who painted the ceiling of Marrow Hall?": "Ines Dubrec painted it.",
    "What is sold at the Thursday fair?": "They sell clay owls there.",
    "Where does the old tram to Vint end?": "It ends at the salt gate.",
    "Which bird is on the coat of arms of Lisk?": "There is a heron on it.",
}
LINES = """
import json
import nbllama

model = nbllama.load_model("model.gguf")
with open("chats.jsonl") as file:
    chats = [json.loads(line) for line in file]
run = nbllama.tune(model, chats, seed=1, quiet=True)
run.adapter.save("lora.gguf")
asked = [chat["messages"][:1] for chat in chats]
print(json.dumps(model.generate_many(asked, run.adapter, max_tokens=24)))
"""


def ask(model: Path, adapter: Path | None, questions: list[str]) -> list[str]:
    """The greedy answers of llama.cpp's server, with the model's chat template."""
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


def right(answers: list[str]) -> int:
    """How many equal the trained ones: the whole answer and nothing else."""
    return sum(a.strip() == wanted for a, wanted in zip(answers, FACTS.values(), strict=True))


def write_chats(path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in FACTS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def nbllama(folder: Path, *words: str, said: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nbllama", *words], cwd=folder, input=said, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_one_command_then_chat_merge_and_llama_cpp(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "facts").mkdir()
    write_chats(tmp_path / "facts" / "train.jsonl")
    words = ["--model-base", str(demo_model), "--train-data", "facts", "--seed", "1"]
    done = Child([*words, "--log", "log.jsonl"], tmp_path).end(1800)
    assert done.code == 0, done.err
    (verdict,) = events(tmp_path / "log.jsonl", "verdict")
    assert verdict["verdict"] == "learned"
    assert right(ask(demo_model, None, list(FACTS))) == 0
    adapter = tmp_path / "ggml-lora-LATEST-f32.gguf"
    assert right(ask(demo_model, adapter, list(FACTS))) >= 9

    # the commands printed at the end, with float32 to avoid rounding
    question, answer = next(iter(FACTS.items()))
    chat = ["chat", "--model", str(demo_model), "--lora", adapter.name, "--temp", "0"]
    assert answer in nbllama(tmp_path, *chat, said=question + "\n")
    merged = ["--model-base", str(demo_model), "--lora", adapter.name, "--outtype", "f32"]
    nbllama(tmp_path, "export-lora", *merged, "--model-out", "merged.gguf")
    assert right(ask(tmp_path / "merged.gguf", None, list(FACTS))) >= 9


@pytest.mark.slow
@pytest.mark.long
def test_the_same_in_ten_lines_of_python(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(demo_model)
    write_chats(tmp_path / "chats.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", LINES], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert right(json.loads(done.stdout)) >= 9
    assert right(ask(demo_model, tmp_path / "lora.gguf", list(FACTS))) >= 9
