"""Series of runs of the text-to-SQL example: the sweep, the bases, and continuing a series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.text2sql import generate, quantised, results, sweep
from nbllama.data.encoding import encode_chat
from nbllama.errors import NbllamaError
from tests.train.toy_runs import toy_model


def test_the_sweep_changes_one_factor_at_a_time() -> None:
    base, *others = sweep.runs(200, 2)
    assert len(others) == 6
    for run_ in others:
        changed = [
            run_.n_train != base.n_train,
            run_.training.rank != base.training.rank,
            run_.training.rate != base.training.rate,
        ]
        assert changed == [run_.factor == f for f in ("data", "rank", "rate")]


def test_the_sweep_goes_on_where_it_ended() -> None:
    base = sweep.runs(200, 2)[0]
    row = {
        "factor": "base", "n_train": 200, "rank": 16, "rate": 1e-3, "tokens": 9000,
        "last_loss": 0.5, "n": 10, "n_right": 4, "accuracy": 0.4, "low": 0.1, "high": 0.7,
    }  # fmt: skip
    assert not sweep.done(base, [])
    assert sweep.done(base, [row])
    assert not sweep.done(base, [row | {"rank": 4}])
    assert "| base | 200 | 16 | 0.001 | 9000 | 0.500 | 4 of 10, 40.0 % |" in sweep.table([row])


def test_a_series_measures_what_has_no_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    measured = []

    def done(case: str, rows: results.Rows) -> bool:
        return any(row["case"] == case for row in rows)

    def measure(case: str) -> Iterator[dict[str, str]]:
        measured.append(case)
        yield {"case": case, "part": "first"}
        if case == "c":
            raise NbllamaError("no more")
        yield {"case": case, "part": "second"}

    def table(rows: results.Rows) -> str:
        return "".join(row["case"] for row in rows)

    assert results.read_rows(path) == []
    assert results.series(path, "ab", done, measure, table) == 0
    assert capsys.readouterr() == ("aabb\n", "")
    # a failed run leaves no row; existing rows are not measured again
    assert results.series(path, "abc", done, measure, table) == NbllamaError("").exit_code
    assert capsys.readouterr() == ("", "error: no more\n")
    assert measured == ["a", "b", "c"] and len(results.read_rows(path)) == 4


def test_validation_loss_is_that_of_the_answers(tmp_path: Path) -> None:
    model = toy_model(tmp_path, tokenizer="bpe", n_vocab=400)
    pairs = [("how many?", "select 1"), ("which ones?", "select * from t")]
    rows = [{"messages": generate.chat(q, sql)} for q, sql in pairs]
    generate.write_lines(tmp_path / "v.jsonl", rows)
    total, count = 0.0, 0
    for row in rows:
        ids, trained = encode_chat(model.tokenizer, model.chat_template, row["messages"])
        z = nbllama.logits(model, ids).astype(np.float64)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        for i in range(1, len(ids)):
            if trained[i]:
                total, count = total - np.log(p[i - 1, ids[i]]), count + 1
    got = quantised.validation_loss(model, None, tmp_path / "v.jsonl")
    assert count > 10 and got == pytest.approx(total / count, rel=1e-5)


def test_the_table_of_bases_leaves_out_what_is_not_whole() -> None:
    rows = [
        {"base": base, "mb": 9.4, "way": way, "loss": 0.5, "n_right": 3, "n": 4}
        for base in ("f16", "q2_k")
        for way in quantised.WAYS
        if (base, way) != ("f16", "F16, quantised again")
    ]
    assert quantised.table(rows[:-1]).splitlines()[2:] == [
        "| F16 | 9 | 0.5000, 3 of 4 | 0.5000, 3 of 4 | 0.5000, 3 of 4 |  | 0.5000, 3 of 4 |"
    ]
