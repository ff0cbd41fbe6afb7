"""Reward functions in their process: values, errors, limits, and the built-in ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbllama.errors import UsageError
from nbllama.train.reward.scorer import Failed, Scorer, find_reward

FUNCTIONS = """
import os, time
import neighbour

def length(prompt, answer, record):
    print("this goes nowhere")
    return len(answer) + record["more"]

def by_name(prompt, answer, record):
    if answer == "raise":
        raise KeyError("no such table")
    if answer == "loop":
        while True:
            pass
    if answer == "sleep":
        time.sleep(60)
    if answer == "memory":
        return len(bytearray(10 << 30))
    if answer == "exit":
        raise SystemExit(3)
    if answer == "die":
        os._exit(3)
    if answer == "long message":
        raise ValueError("x\\ny" * 5000)
    return {"nan": float("nan"), "inf": float("inf"), "text": "1.0", "none": None, "list": [1],
            "bool": True, "huge": 10**400}.get(answer, 0.25)

def process(prompt, answer, record):
    return os.getpid()

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("", encoding="utf-8")
    path = tmp_path / "rewards.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    return path


@pytest.fixture
def by_name(file: Path) -> Iterator[Scorer]:
    made = Scorer(find_reward(f"{file}:by_name"), seconds=20)
    yield made
    made.close()


def test_a_function_of_prompt_answer_and_record(file: Path) -> None:
    scorer = Scorer(find_reward(f"{file}:length"))
    assert scorer.score("a", "four", {"more": 0.5}) == 4.5
    assert (
        scorer.score([{"role": "user", "content": "ß"}], "ßß", {"more": 0, "other": "\u4e0a"}) == 2
    )
    scorer.close()
    scorer.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("raise", "KeyError: 'no such table'"),
        ("nan", "the function returned nan"),
        ("inf", "the function returned inf"),
        ("text", "the function returned text, not a number"),
        ("none", "the function returned None, not a number"),
        ("list", "the function returned a list, not a number"),
        ("huge", "OverflowError"),
        ("exit", "SystemExit: 3"),
        ("die", "the process ended unexpectedly"),
        ("long message", "ValueError: x yx"),
    ],
)
def test_what_is_no_reward(by_name: Scorer, answer: str, words: str) -> None:
    found = by_name.score("", answer, {})
    assert isinstance(found, Failed) and words in found.reason
    assert len(found.reason) < 400 and "\n" not in found.reason
    assert by_name.score("", "another", {}) == 0.25  # it goes on
    assert by_name.score("", "bool", {}) == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the size of a process")
def test_ten_gigabytes(by_name: Scorer) -> None:
    found = by_name.score("", "memory", {})
    assert found == Failed("the memory limit was exceeded")
    assert by_name.score("", "another", {}) == 0.25


@pytest.mark.parametrize("answer", ["loop", "sleep"])
def test_a_function_that_does_not_return(file: Path, answer: str) -> None:
    scorer = Scorer(find_reward(f"{file}:by_name"), seconds=0.4)
    start = time.monotonic()
    assert scorer.score("", answer, {}) == Failed("the time limit of 0.4 s was exceeded")
    assert time.monotonic() - start < 20
    assert scorer._child is None  # it was ended
    scorer._seconds = 20.0
    assert scorer.score("", "another", {}) == 0.25
    scorer.close()


def test_the_run_can_be_stopped_while_a_function_works(file: Path) -> None:
    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    scorer = Scorer(find_reward(f"{file}:by_name"), seconds=60)
    start = time.monotonic()
    with pytest.raises(Stop):
        scorer.score("", "loop", {}, check)
    assert time.monotonic() - start < 20
    # the late answer of that call is not taken for the next one's
    assert scorer.score("", "another", {}) == 0.25
    scorer.close()


def test_a_file_that_changes_is_not_read_again(file: Path) -> None:
    scorer = Scorer(find_reward(f"{file}:by_name"), seconds=20)
    file.write_text("def by_name(prompt, answer, record):\n    return 7\n", encoding="utf-8")
    assert isinstance(scorer.score("", "die", {}), Failed)
    assert scorer.score("", "another", {}) == 0.25  # from the process that was started after it
    scorer.close()


def test_one_process_scores_all_answers(file: Path) -> None:
    scorer = Scorer(find_reward(f"{file}:process"))
    assert len({scorer.score("", str(i), {}) for i in range(5)}) == 1
    scorer.close()


def test_what_cannot_be_used(file: Path, tmp_path: Path) -> None:
    for text, words in (
        ("gone.py:f", "gone.py:f: No such file"),
        (str(file), "use FILE.py:FUNCTION"),
        (f"{file}:2x", "use FILE.py:FUNCTION"),
        ("exakt", "use FILE.py:FUNCTION"),
        ("regex:(", "not a regular expression"),
    ):
        with pytest.raises(UsageError) as error:
            find_reward(text)
        assert words in str(error.value)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n", encoding="utf-8")
    for text, words in (
        (f"{file}:nothing", "the file has no function nothing"),
        (f"{file}:not_a_function", "not_a_function is not a function"),
        (f"{broken}:f", "ModuleNotFoundError"),
    ):
        with pytest.raises(UsageError) as error:
            Scorer(find_reward(text))
        assert words in str(error.value)


def test_what_a_checkpoint_keeps_of_a_function(file: Path, tmp_path: Path) -> None:
    first = find_reward(f"{file}:length").identity
    copy = tmp_path / "elsewhere.py"
    copy.write_text(FUNCTIONS, encoding="utf-8")
    assert find_reward(f"{copy}:length").identity == first
    copy.write_text(FUNCTIONS + "# changed\n", encoding="utf-8")
    assert find_reward(f"{copy}:length").identity != first
    assert find_reward("json").identity == "json"
    assert find_reward("regex:a:b").identity == "regex:a:b"


TABLES = "create table t(x, y); insert into t values (1, 'a'), (2, 'b'), (3, 'b');"
QUERY: dict[str, Any] = {"database": TABLES, "answer": "select x from t where y = 'b'"}
SORTED: dict[str, Any] = {"database": TABLES, "answer": "select x from t order by x desc"}
ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"


@pytest.mark.parametrize(
    ("reward", "cases"),
    [
        (
            "exact",
            [
                (" four\n", {"answer": "four"}, 1), ("Four", {"answer": "four"}, 0),
                ("4", {"answer": 4}, 1), ("4.0", {"answer": 4}, 0), ("x", {"completion": "x"}, 1),
                ("y", {"messages": [{"role": "user", "content": "y"},
                                    {"role": "assistant", "content": "y"}]}, 1),
            ],
        ),
        (
            r"regex:^\d+$",
            [("12", {}, 1), ("12a", {}, 0), ("", {}, 0)],
        ),
        (
            "json",
            [('{"a": [1, null]}', {}, 1), ("{'a': 1}", {}, 0), ('{"a": NaN}', {}, 0),
             ("", {}, 0), ("[" * 100000, {}, 0), (' {"a": 1} ', {}, 1)],
        ),
        (
            "sql",
            [
                ("select x from t where x > 1", QUERY, 1), ("select 3 union select 2", QUERY, 1),
                ("```sql\nselect x from t where y = 'b';\n```", QUERY, 1),
                ("select x from t", QUERY, 0), ("select z from t", QUERY, 0),
                ("select x, y from t where y = 'b'", QUERY, 0), ("", QUERY, 0),
                ("drop table t", QUERY, 0), ("select x from t where y = 'b'", QUERY, 1),
                ("attach 'x.db' as x", QUERY, 0), (ENDLESS, QUERY, 0),
                ("select x from t order by x desc", SORTED, 1),
                ("select x from t order by x", SORTED, 0), ("select 3 union all", SORTED, 0),
            ],
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_built_in_rewards(reward: str, cases: list[tuple[str, dict[str, Any], float]]) -> None:
    scorer = Scorer(find_reward(reward))
    for answer, record, wanted in cases:
        assert scorer.problem(record) == ""
        assert scorer.score("", answer, record) == wanted, answer
    scorer.close()


def test_records_that_a_built_in_reward_cannot_score() -> None:
    for reward, record, words in (
        ("exact", {"prompt": "a"}, 'requires the correct answer under the key "answer"'),
        ("sql", {"answer": "select 1"}, 'requires the key "database"'),
        ("sql", {"answer": "select a", "database": ""}, "the record's SQL fails: no such column"),
        ("sql", {"answer": "select 1", "database": "create x"}, "the record's SQL fails"),
    ):
        scorer = Scorer(find_reward(reward))
        assert words in scorer.problem(record)
        scorer.close()
