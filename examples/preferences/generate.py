"""Write the preference set of this example: questions about quantities, each with two answers.

    python examples/preferences/generate.py [FOLDER]

The rule: an answer is one sentence that begins with its unit, such as "Metres: 9 are left." The
rejected answer is also correct, but in the usual form of several sentences. `follows` checks the
rule. The content depends only on the seed.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SEED, TRAINED, HELD_OUT = 7, 72, 40

_THINGS = {
    "metres": ("rope", "fence", "pipe", "ribbon", "cable", "path", "hedge", "trench", "chain"),
    "litres": ("barrel", "tank", "pond", "bucket", "kettle", "pool", "cistern", "jug", "trough"),
    "kilograms": ("sack", "crate", "load", "heap", "parcel", "bale", "cart", "basket", "stack"),
    "minutes": ("walk", "lesson", "film", "meeting", "ride", "concert", "break", "shift", "call"),
    "euros": ("purse", "fund", "account", "prize", "deposit", "budget", "box", "grant", "wallet"),
}
_MEASURE = {
    "metres": "is {a} metres long", "litres": "holds {a} litres",
    "kilograms": "weighs {a} kilograms", "minutes": "takes {a} minutes", "euros": "holds {a} euros",
}  # fmt: skip
_LESS = {
    "metres": "{b} metres are cut off", "litres": "{b} litres are taken out",
    "kilograms": "{b} kilograms are taken away", "minutes": "{b} minutes are over",
    "euros": "{b} euros are spent",
}  # fmt: skip
_UNITS = "|".join(unit.capitalize() for unit in _THINGS)
_RULE = re.compile(rf"(?:{_UNITS}): [^.!?\n]*[.]")


class Question(NamedTuple):
    """A question, the answer that follows the rule, and a usual answer."""

    question: str
    by_rule: str
    usual: str


def follows(answer: str) -> bool:
    """Return whether an answer follows the rule: one sentence that begins with its unit."""
    return _RULE.fullmatch(answer.strip()) is not None


def questions() -> list[Question]:
    """Return all questions in a fixed random order; no two are the same."""
    draw = random.Random(SEED)
    found = []
    for unit, things in _THINGS.items():
        for thing in things:
            found += [_question(draw, unit, thing, more) for more in (False, True, None)]
    draw.shuffle(found)
    return found


def _question(draw: random.Random, unit: str, thing: str, more: bool | None) -> Question:
    a, b = draw.randint(20, 90), draw.randint(3, 19)
    begin = f"A {thing} {_MEASURE[unit].format(a=a)}"
    name = unit.capitalize()
    if more is None:
        ask = f"{begin}. How many {unit} do {b} of them make?"
        usual = (
            f"One {thing} {_MEASURE[unit].format(a=a)}. For {b} of them we multiply {a} by {b}. "
            f"So together they make {a * b} {unit}."
        )
        return Question(ask, f"{name}: {a * b} in all.", usual)
    if more:
        ask = f"{begin}, and another one {b} more than that. How many {unit} are both together?"
        usual = (
            f"The first {thing} {_MEASURE[unit].format(a=a)}. The second one has {b} more, which "
            f"is {a + b}. Together they are {2 * a + b} {unit}."
        )
        return Question(ask, f"{name}: {2 * a + b} together.", usual)
    ask = f"{begin}, and {_LESS[unit].format(b=b)}. How many {unit} are left?"
    usual = (
        f"To find out how much is left, we subtract {b} from {a}. {a} - {b} = {a - b}. "
        f"So {a - b} {unit} are left."
    )
    return Question(ask, f"{name}: {a - b} are left.", usual)


def pair(q: Question) -> dict[str, object]:
    """Return a preference record."""
    return {
        "prompt": [{"role": "user", "content": q.question}],
        "chosen": [{"role": "assistant", "content": q.by_rule}],
        "rejected": [{"role": "assistant", "content": q.usual}],
    }


def labelled(q: Question, good: bool) -> dict[str, object]:
    """Return one of the two answers with a label, in the form for KTO."""
    answer = q.by_rule if good else q.usual
    return {
        "prompt": [{"role": "user", "content": q.question}],
        "completion": [{"role": "assistant", "content": answer}],
        "label": good,
    }


def usual(q: Question) -> dict[str, object]:
    """Return a chat with the usual answer, to train the adapter that preferences start from."""
    turns = (("user", q.question), ("assistant", q.usual))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def write(folder: Path) -> None:
    """Write the files of the example."""
    every = questions()
    trained, held_out = every[:TRAINED], every[TRAINED : TRAINED + HELD_OUT]
    files: dict[str, list[dict[str, object]]] = {
        "pairs.jsonl": [pair(q) for q in trained],
        "labels.jsonl": [labelled(q, good) for q in trained for good in (True, False)],
        "usual.jsonl": [usual(q) for q in trained],
        "questions.jsonl": [{"question": q.question} for q in held_out],
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
