"""The example of preferences: its files depend on the seed, and the rule separates the sides."""

from __future__ import annotations

import json
from pathlib import Path

from examples.preferences.generate import HELD_OUT, HERE, TRAINED, follows, questions, write
from nbllama.data.formats import Conversation, Pair
from nbllama.data.records import open_data


def test_the_files_are_what_the_script_writes(tmp_path: Path) -> None:
    write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert (HERE / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_rule_tells_the_sides_apart() -> None:
    found = questions()
    assert len({q.question for q in found}) == len(found) >= TRAINED + HELD_OUT
    assert all(follows(q.by_rule) and not follows(q.usual) for q in found)
    for text in ("9 metres are left.", "Metres: 9. That is all.", "Metres: 9 are left"):
        assert not follows(text)


def test_nothing_held_out_is_trained() -> None:
    lines = (HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = {json.loads(line)["question"] for line in lines}
    pairs = [sample for _, sample in open_data(HERE / "pairs.jsonl").samples]
    assert len(held_out) == HELD_OUT and len(pairs) == TRAINED
    for pair in pairs:
        assert isinstance(pair, Pair) and isinstance(pair.chosen, Conversation)
        assert pair.chosen.messages[0]["content"] not in held_out
