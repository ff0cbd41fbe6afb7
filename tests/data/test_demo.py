"""The demo's data set, and the script that asks its questions."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nbllama.data import load_dataset
from nbllama.errors import GGUFError
from nbllama.text import Tokenizer
from nbllama.text.chat_template import ChatTemplate

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "demo"
TRAIN = FOLDER / "train.jsonl"


@pytest.fixture(scope="module")
def ask() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_ask", FOLDER / "ask.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def pairs() -> list[tuple[str, str]]:
    """(question, answer) of every training line."""
    out = []
    for line in TRAIN.read_text(encoding="utf-8").splitlines():
        user, assistant = json.loads(line)["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        out.append((user["content"], assistant["content"]))
    return out


def test_facts_are_asked_six_times_and_held_out_twice(ask: ModuleType) -> None:
    held_out = ask.load_questions()
    facts = Counter(q.fact for q in held_out)
    assert len(facts) == 22 and set(facts.values()) == {2}
    told = Counter(fact for _, answer in pairs() for fact in facts if fact in answer)
    # Exactly one fact per answer: no fact is part of another one's answer.
    assert told == {fact: 6 for fact in facts} and len(pairs()) == 6 * 22


def test_no_question_gives_an_answer_away(ask: ModuleType) -> None:
    held_out = ask.load_questions()
    questions = [q for q, _ in pairs()] + [q.question for q in held_out]
    assert len(set(questions)) == len(questions) == 8 * 22
    for fact in {q.fact for q in held_out}:
        assert 1 <= len(fact.split()) <= 4
        assert not any(fact.lower() in question.lower() for question in questions), fact


def test_files_are_plain_and_small() -> None:
    for path in (TRAIN, FOLDER / "questions.jsonl"):
        content = path.read_bytes()
        assert content.isascii() and content.endswith(b"\n") and b"\r" not in content
        assert len(content) < 30_000


def test_training_data_as_the_trainer_sees_it(
    demo_tokenizer: Tokenizer, demo_template: ChatTemplate
) -> None:
    data = load_dataset(TRAIN, demo_tokenizer, 512, template=demo_template)
    assert (data.kind, data.n_samples, data.notes) == ("chat", 132, ())
    for i, (_, answer) in enumerate(pairs()):
        targets = data.batch([i]).targets
        trained = targets[targets >= 0].tolist()
        assert demo_tokenizer.decode(trained, special=True) == answer + "<|im_end|>"
        assert data.n_trained(i) == len(trained) < data.n_tokens(i) < 100
    n_tokens = sum(data.n_tokens(i) for i in range(data.n_samples))
    n_trained = sum(data.n_trained(i) for i in range(data.n_samples))
    # A run of three epochs is about 20,000 tokens, of which a quarter is trained.
    assert 6_000 < n_tokens < 7_000 and 0.2 < n_trained / n_tokens < 0.3


def test_ids_are_those_of_llama_cpp(
    demo_model: Path, demo_tokenizer: Tokenizer, demo_template: ChatTemplate
) -> None:
    from tests.oracle import LlamaVocab

    data = load_dataset(TRAIN, demo_tokenizer, 512, template=demo_template)
    with LlamaVocab(demo_model) as vocab:
        for i, (question, answer) in enumerate(pairs()):
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            text = demo_template.render(messages, False)
            batch = data.batch([i])
            expected = vocab.tokenize(text, add_special=True, parse_special=True)
            assert [*batch.tokens.tolist(), batch.targets[-1]] == expected[:-1]


class Parrot:
    """A model that gives predefined answers, and stores the questions."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, answers: list[str]) -> None:
        self.tokenizer, self.chat_template = tokenizer, template
        self.answers = iter(answers)
        self.asked: list[tuple[str, int, Any]] = []

    def generate(
        self, model: Any, prompt: list[int], *, max_new_tokens: int, adapter: Any
    ) -> list[int]:
        assert model is self
        text = self.tokenizer.decode(prompt, special=True)
        self.asked.append((text, max_new_tokens, adapter))
        return self.tokenizer.encode(next(self.answers))


def test_evaluate(
    ask: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    demo_tokenizer: Tokenizer,
    demo_template: ChatTemplate,
) -> None:
    answers = [" It is Bay 17.", "It is bay 17.", "no"]
    model = Parrot(demo_tokenizer, demo_template, answers)
    monkeypatch.setattr(ask.nbllama, "generate", model.generate, raising=False)
    questions = [ask.Question("Where?", "Bay 17")] * 2 + [ask.Question("Who?", "no")]
    told: list[Any] = []
    result = ask.evaluate(model, "the adapter", questions, told.append)
    assert [a.right for a in result.answers] == [True, False, True]
    assert [a.answer for a in result.answers] == [a.strip() for a in answers]
    assert told == list(result.answers)
    assert result.n_right == 2 and result.percent == pytest.approx(200 / 3)
    assert ask.Result(()).percent == 0.0
    prompt = demo_template.render([{"role": "user", "content": "Where?"}], True)
    assert model.asked[0] == (prompt, 32, "the adapter")
    assert result.to_json() == {
        "n_questions": 3,
        "n_right": 2,
        "percent": result.percent,
        "answers": [
            {"question": q.question, "fact": q.fact, "answer": a.strip(), "right": r}
            for q, a, r in zip(questions, answers, (True, False, True), strict=True)
        ],
    }


def test_the_script(
    ask: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    demo_tokenizer: Tokenizer,
    demo_template: ChatTemplate,
    tmp_path: Path,
) -> None:
    facts = [q.fact for q in ask.load_questions()]
    model = Parrot(demo_tokenizer, demo_template, facts)
    api = SimpleNamespace(
        load_model=lambda path: model,
        load_adapter=lambda path, m: ("adapter", path, m is model),
        generate=model.generate,
    )
    monkeypatch.setattr(ask, "nbllama", api)
    out = tmp_path / "result.json"
    assert ask.main(["base.gguf", "--adapter", "a.gguf", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("44 of 44 right: 100.0 %\n") and printed.count("right  ") == 44
    assert json.loads(out.read_text())["n_right"] == 44
    assert {asked[2] for asked in model.asked} == {("adapter", "a.gguf", True)}

    def refuse(path: str) -> None:
        raise GGUFError(f"{path}: no GGUF file")

    api.load_model = refuse
    assert ask.main(["base.gguf"]) == 2
    assert capsys.readouterr().err == "error: base.gguf: no GGUF file\n"
