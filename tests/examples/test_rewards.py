"""The example of rewards: its questions, and its reward within the limits of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.rewards.run import HERE, questions
from examples.text2sql.generate import generate
from nbllama.train.reward.scorer import Failed, Scorer, find_reward
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rewards")
    generate(out, "en", train=120, validation=1, test=20)
    return out


def test_questions_are_new_and_in_trained_words(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    trained = [json.loads(line)["messages"][1]["content"] for line in lines]
    found = list(questions(folder, 60))
    asked = [record["prompt"][-1]["content"] for record in found]
    assert 30 < len(asked) == len(set(asked)) <= 60
    assert not set(asked) & set(trained[:60]) and set(asked) <= set(trained[60:])
    assert all(record["prompt"][0]["content"] == "SQL" and record["sql"] for record in found)


def test_the_reward_runs_the_query(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    scorer = Scorer(find_reward(f"{HERE / 'execution.py'}:right"))
    for record in list(questions(folder, 60))[:5]:
        prompt, sql = record["prompt"], record["sql"]
        assert scorer.score(prompt, sql, record) == 1.0
        assert scorer.score(prompt, f"```sql\n{sql};\n```", record) == 1.0
        assert scorer.score(prompt, "select 1 + 1", record) == 0.0
        assert scorer.score(prompt, "drop table orders", record) == 0.0
        assert scorer.score(prompt, "no query", record) == 0.0
        assert isinstance(scorer.score(prompt, sql, record | {"sql": "select nothing"}), Failed)
    scorer.close()
