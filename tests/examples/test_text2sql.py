"""The text-to-SQL example: its data, its judge, and a whole run on a tiny model."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.text2sql import evaluate, execute, generate, questions, run, schema, training
from examples.text2sql.questions import KINDS, LANGUAGES, SLOTS, SPLITS
from nbllama.errors import NbllamaError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    generate.generate(out, "en", train=400)
    return out


@pytest.fixture
def db(folder: Path) -> Iterator[sqlite3.Connection]:
    opened = execute.open_read_only(folder / generate.DATABASES[0])
    yield opened
    opened.close()


# Data


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    generate.generate(tmp_path / "again", "en", train=400)
    generate.generate(tmp_path / "other", "en", train=400, seed=2)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        text = (folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == text
        assert (tmp_path / "other" / name).read_bytes() != text
    for number in (1, 2):
        assert schema.rows_of(number) == schema.rows_of(number) != schema.rows_of(3)
    dumps = []
    for out in (folder, tmp_path / "again"):
        db = sqlite3.connect(out / generate.DATABASES[0])
        dumps.append(list(db.iterdump()))
        db.close()
    assert dumps[0] == dumps[1]


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_phrasing_is_in_two_splits(language: str) -> None:
    """Neither as written nor in any variant, for any kind, case or punctuation."""
    seen: dict[str, str] = {}
    for kind, splits in questions.load_phrasings(language).items():
        for split, phrasings in splits.items():
            for phrasing in phrasings:
                for variant in questions.variants(phrasing):
                    before = seen.setdefault(plain(variant), split)
                    assert before == split, f"{kind}: {variant!r} is in {before} and {split}"


def mask_of(language: str) -> re.Pattern[str]:
    """Patterns for the names, dates and numbers in gaps."""
    rng = random.Random(0)
    values = {getattr(draw(rng), language) for draw in SLOTS.values() for _ in range(300)}
    words = sorted((v for v in values if not v.isdigit()), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, words), r"[\d,.\-]+"]), re.IGNORECASE)


@pytest.mark.parametrize("language", LANGUAGES)
def test_finished_questions_share_no_wording_either(tmp_path: Path, language: str) -> None:
    schema.create(tmp_path / "a.db", 1)
    db = execute.open_read_only(tmp_path / "a.db")
    mask = mask_of(language)
    wordings = {
        split: {
            plain(mask.sub(" x ", p.question))
            for p in generate.make_pairs(split, language, 270, db, seed=1, copies=4)
        }
        for split in SPLITS
    }
    db.close()
    assert all(len(w) >= 40 for w in wordings.values())
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not wordings[a] & wordings[b]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_query_runs_and_finds_something(
    db: sqlite3.Connection, language: str, split: str
) -> None:
    pairs = generate.make_pairs(split, language, 200, db, seed=3, copies=4)
    assert {p.kind for p in pairs} == set(KINDS) and len(KINDS) >= 30
    for pair in pairs:
        found = execute.execute(db, pair.sql)
        assert not found.error and found.rows
        assert "{" not in pair.question and "[" not in pair.question


def test_splits_are_balanced_and_the_test_has_no_question_twice(folder: Path) -> None:
    pairs = generate.read_pairs(folder / "test.jsonl")
    assert len(pairs) == 270 == len({p.question for p in pairs})
    with_gaps = [k for k in KINDS if questions.gaps(KINDS[k])]
    counts = [sum(p.kind == k for p in pairs) for k in with_gaps]
    assert max(counts) - min(counts) <= 1


def test_orders_have_one_answer_and_amounts_add_up(db: sqlite3.Connection) -> None:
    """The requirements of `order by`, and the equality of the two ways to compute sales."""
    for unique in ("select day from orders", "select price from products"):
        rows = db.execute(unique).fetchall()
        assert len(rows) == len(set(rows))
    (booked,) = db.execute("select sum(amount) from orders").fetchone()
    by_items = "select sum(quantity * price) from items join products using (product_id)"
    assert db.execute(by_items).fetchone()[0] == pytest.approx(booked)


@pytest.mark.parametrize(
    "condition, first, last",
    [("months_ago = 0", "2025-08-01", "2025-08-31"), ("months_ago = 1", "2025-07-01", "2025-07-31"),
     ("months_ago = 8", "2024-12-01", "2024-12-31"), ("years_ago = 1", "2024-01-01", "2024-12-31"),
     ("quarters_ago = 0", "2025-07-01", "2025-09-30"),
     ("quarters_ago = 1", "2025-04-01", "2025-06-30"),
     ("quarters_ago = 3", "2024-10-01", "2024-12-31")],
)  # fmt: skip
def test_last_quarter_is_counted_from_the_clock(
    db: sqlite3.Connection, condition: str, first: str, last: str
) -> None:
    found = db.execute(f"select order_id from orders where {condition}").fetchall()
    wanted = f"select order_id from booked where day between '{first}' and '{last}'"
    assert found == db.execute(wanted).fetchall() != []


@pytest.mark.parametrize(
    "n, text",
    [(2, "二"), (10, "十"), (115, "一百一十五"), (2250, "两千二百五十"), (10000, "一万"),
     (10500, "一万零五百"), (12000, "一万两千"), (210000, "二十一万")],
)  # fmt: skip
def test_chinese_numbers(n: int, text: str) -> None:
    assert questions.chinese_number(n) == text


def test_the_example_of_the_readme_is_asked_in_chinese(db: sqlite3.Connection) -> None:
    phrasing = questions.load_phrasings("zh")["orders_over_in"]["test"][0]
    values = {
        "period": questions.Value("quarters_ago = 1", "last quarter", "上个季度"),
        "amount": questions.Value("10000", "10,000", "一万元"),
    }
    assert questions.fill(phrasing, values, "zh") == "上个季度销售额超过一万元的订单"


# The judge


CASES = [
    # (wanted, answer, right)
    ("select city from customers", "SELECT city FROM customers", True),
    ("select city from customers", "select distinct city from customers", False),
    ("select city from customers", "select city from customers order by city", True),
    ("select day from orders order by day", "select day from orders order by day desc", False),
    ("select order_id from orders order by day desc limit 3",
     "select order_id from orders where order_id > 1417 order by order_id desc", True),
    ("select order_id from orders order by day desc limit 3",
     "select order_id from orders where order_id > 1417 order by order_id", False),
    ("select count(*) from orders", "select count(order_id) * 1.0 from orders", True),
    ("select count(*) from orders", "select count(*), 1 from orders", False),
    ("select count(*) from orders", "select 420", True),  # the same number in both databases
    ("select sum(amount) from orders", "select 2830392.0", False),  # right in one of them at most
    ("select city, count(*) from customers group by city",
     "select count(*), city from customers group by city", False),
    ("select sum(price) from products", "select sum(price) + 0.000000001 from products", True),
    ("select sum(price) from products", "select sum(price) + 0.1 from products", False),
    ("select customer from customers", "select name from customers", False),
    ("select customer from customers", "", False),
    ("select customer from customers", "select customer from customers; drop table items", False),
    ("select customer from customers", "delete from customers", False),
    ("select customer from customers", "select '\ud800'", False),
    ("select customer from customers", "select customer from customers where x = '\0'", False),
]  # fmt: skip


@pytest.mark.parametrize("wanted, answer, right", CASES)
def test_verdicts(folder: Path, wanted: str, answer: str, right: bool) -> None:
    dbs = [execute.open_read_only(folder / name) for name in generate.DATABASES]
    verdict = execute.judge(dbs, wanted, answer)
    assert verdict.right == right, verdict
    assert bool(verdict.reason) != right
    for db in dbs:
        assert db.execute("select count(*) from customers").fetchone() == (schema.N_CUSTOMERS,)
        db.close()


def test_a_number_that_is_right_in_one_database_only_is_wrong(folder: Path) -> None:
    dbs = [execute.open_read_only(folder / name) for name in generate.DATABASES]
    wanted = "select count(*) from orders where status = 'open'"
    (n,) = dbs[0].execute(wanted).fetchone()
    assert execute.judge(dbs[:1], wanted, f"select {n}").right
    assert not execute.judge(dbs, wanted, f"select {n}").right


def test_an_endless_query_is_stopped(db: sqlite3.Connection) -> None:
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
    start = time.monotonic()
    found = execute.execute(db, endless, seconds=0.2)
    assert found == execute.Found([], "longer than 0.2 s") and time.monotonic() - start < 2
    assert execute.execute(db, "select 1").rows == [(1,)]


def test_too_many_rows_are_refused(db: sqlite3.Connection) -> None:
    found = execute.execute(db, "select 1 from items, items, items")
    assert found.error == "more than 10000 rows" and not found.rows


@pytest.mark.parametrize(
    "sql",
    ["attach database 'other.db' as x", "pragma writable_schema = 1", "vacuum into 'copy.db'",
     "create table t (a)", "insert into items values (1, 1, 1)", "drop view orders"],
)  # fmt: skip
def test_only_reading_is_allowed(
    db: sqlite3.Connection, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute.execute(db, sql).error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql, ordered",
    [("select a from t order by a", True), ("select a from t ORDER  BY a limit 3", True),
     ("select a from (select a from t order by a)", False), ("select 'order by' from t", False),
     ("select a from t where b in (select c from u order by d) order by a", True)],
)  # fmt: skip
def test_where_an_order_is_asked_for(sql: str, ordered: bool) -> None:
    assert execute.has_order(sql) == ordered


@pytest.mark.parametrize(
    "text, sql",
    [("select 1", "select 1"), ("Sure!\n```sql\nSELECT 1;\n```\nDone.", "SELECT 1"),
     ("The query is: select a\nfrom t;\nIt finds", "select a\nfrom t"), ("I cannot.", ""),
     ("```\nselect 2", "select 2"), ("select a\n\nThis selects a.", "select a"),
     ("with x as (select 1) select * from x", "with x as (select 1) select * from x")],
)  # fmt: skip
def test_the_query_in_an_answer(text: str, sql: str) -> None:
    assert execute.extract_sql(text) == sql


@pytest.mark.parametrize(
    "n_right, n, low, high",
    [(61, 72, 0.7467, 0.9123), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0),
     (10, 20, 0.2993, 0.7007)],
)  # fmt: skip
def test_wilson_interval(n_right: int, n: int, low: float, high: float) -> None:
    assert evaluate.wilson(n_right, n) == pytest.approx((low, high), abs=2e-4)
    with pytest.raises(ValueError):
        evaluate.wilson(n + 1, n)


@pytest.mark.parametrize(
    "text, problem",
    [("train:\nHow?", "before its kind"), ("== nothing", "no such kind"),
     ("== orders_over\ntrain:\nOrders over {low}", "gaps differ"),
     ("== orders_over\ntrain:\nOrders over {amount}", "no phrasing of")],
)  # fmt: skip
def test_a_bad_list_of_phrasings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setattr(questions, "PHRASINGS", tmp_path)
    (tmp_path / "en.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        questions.load_phrasings("en")


@pytest.mark.slow
def test_a_short_run_from_data_to_accuracy(tmp_path: Path, demo_model: Path) -> None:
    words = ["--out", str(tmp_path), "--train", "96", "--test", "12", "--seed", "3"]
    assert run.main([*words, "--result", str(tmp_path / "result.jsonl")]) == 0
    text = (tmp_path / "result.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    steps = [r for r in rows if r["what"] == "iteration"]
    assert len(steps) == 12 and steps[-1]["loss"] < steps[0]["loss"] / 2
    answers = [r["answer"] for r in rows if r["what"] == "after: answer"]
    assert len(answers) == 12 and all(a.startswith("select ") for a in answers)
    results = {r["what"]: r for r in rows if "accuracy" in r}
    assert results["before"]["n"] == results["after"]["n"] == 12
    assert results["before"]["n_right"] <= 1
    assert run.main([*words, "--no-train", "--result", str(tmp_path / "again.jsonl")]) == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "result.jsonl").read_bytes()


def test_a_failing_training_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "none.gguf"
    with pytest.raises(NbllamaError, match="training ended with exit code 2"):
        training.train(model, tmp_path / "x.jsonl", tmp_path / "a.gguf", training.Training())
    assert capfd.readouterr().err.startswith("error: ")
