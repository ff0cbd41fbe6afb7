"""Ask a model the held-out questions of the demo and count the right answers.

    python examples/demo/ask.py MODEL.gguf [--adapter ADAPTER.gguf] [--json RESULT.json]

Every question is formatted with the model's chat template; answers are greedy, with at most 32
tokens. An answer is right if it contains the exact fact.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbllama
from nbllama.data import prompt_ids
from nbllama.errors import NbllamaError
from nbllama.system.files import atomic_write

HERE = Path(__file__).resolve().parent
QUESTIONS = HERE / "questions.jsonl"
TRAIN = HERE / "train.jsonl"
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Question:
    question: str
    fact: str


@dataclass(frozen=True)
class Answer:
    question: str
    fact: str
    answer: str
    right: bool


@dataclass(frozen=True)
class Result:
    answers: tuple[Answer, ...]

    @property
    def n_right(self) -> int:
        return sum(a.right for a in self.answers)

    @property
    def percent(self) -> float:
        """Share of right answers, 0 to 100."""
        return 100.0 * self.n_right / len(self.answers) if self.answers else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "n_questions": len(self.answers),
            "n_right": self.n_right,
            "percent": self.percent,
            "answers": [asdict(a) for a in self.answers],
        }


def load_questions(path: Path = QUESTIONS) -> list[Question]:
    """Return the questions of a JSON-lines file of {"question": ..., "fact": ...}."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Question(**json.loads(line)) for line in lines if line.strip()]


def evaluate(
    model: Any,
    adapter: Any,
    questions: Iterable[Question],
    tell: Callable[[Answer], None] | None = None,
) -> Result:
    """Answer all `questions` with `model` (and `adapter`, or None); call `tell` for each answer."""
    answers = []
    for q in questions:
        prompt = prompt_ids(
            model.tokenizer, model.chat_template, [{"role": "user", "content": q.question}]
        )
        ids = nbllama.generate(model, prompt, max_new_tokens=MAX_NEW_TOKENS, adapter=adapter)
        text = model.tokenizer.decode(ids).strip()
        answers.append(Answer(q.question, q.fact, text, q.fact in text))
        if tell:
            tell(answers[-1])
    return Result(tuple(answers))


def show(answer: Answer) -> None:
    mark = "right" if answer.right else "wrong"
    print(f"{mark}  {answer.question}\n       {answer.answer!r}  (expected: {answer.fact})")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ask a model the demo's held-out questions.")
    parser.add_argument("model", help="base model (.gguf)")
    parser.add_argument("--adapter", help="LoRA adapter to use on it")
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all answers to this file")
    args = parser.parse_args(argv)
    try:
        model = nbllama.load_model(args.model)
        adapter = nbllama.load_adapter(args.adapter, model) if args.adapter else None
        result = evaluate(model, adapter, load_questions(args.questions), show)
        print(f"{result.n_right} of {len(result.answers)} right: {result.percent:.1f} %")
        if args.json:
            with atomic_write(args.json) as file:
                file.write(json.dumps(result.to_json(), indent=1).encode() + b"\n")
    except NbllamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
