"""Runs of the program on preferences: log, resume, reference, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nbllama
from tests.train.runs import Run, copy_of, refused
from tests.train.toy_runs import log_rows, words


def pairs(folder: Path, n: int = 8) -> Path:
    rows = []
    for i in range(n):
        sides = ("the hen " * (1 + i % 3) + "eats", "a reed " * (1 + i % 2) + "hates")
        chosen, rejected = ([{"role": "assistant", "content": s}] for s in sides)
        prompt = [{"role": "user", "content": f"say {i}"}]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return written(folder / "pairs.jsonl", rows)


def labels(folder: Path) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {i}"}],
            "completion": [{"role": "assistant", "content": "the hen" if i % 2 else "a reed"}],
            "label": bool(i % 2),
        }
        for i in range(8)
    ]
    return written(folder / "labels.jsonl", rows)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def options(folder: Path, *more: str) -> list[str]:
    return words(
        folder, "--train-data", str(folder / "pairs.jsonl"), "--chat-template", "chatml",
        "--template-date", "2026-01-02", "--lr", "1e-2", "--answers", "0", *more, ctx=128,
    )  # fmt: skip


NAMES = ("dpo", "ipo", "orpo", "simpo", "kto")


@pytest.mark.parametrize("objective", NAMES)
def test_every_objective_trains(folder: Path, run: Run, objective: str) -> None:
    pairs(folder)
    log = folder / "log.jsonl"
    done = run(options(folder, "--objective", objective, "--log", str(log), "--adam-iter", "8"))
    assert done.code == 0, done
    rows = log_rows(log)
    assert len(rows) == 8 and "margin=" in done.out and "accuracy=" in done.out
    keys = {"margin", "accuracy", "logp_chosen", "logp_rejected", "tokens_chosen"}
    if objective != "kto":
        assert keys <= rows[0].keys()
        assert rows[-1]["margin"] > rows[0]["margin"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    kept = list(folder.glob("reference-*.logp"))
    assert len(kept) == (0 if objective in ("orpo", "simpo") else 1)


@pytest.mark.parametrize("objective", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_a_run_that_is_continued_has_the_same_bits(folder: Path, run: Run, objective: str) -> None:
    pairs(folder)
    other = copy_of(folder, "other")
    pairs(other)
    own = ["--objective", objective, "--sft-weight", "0.5", "--val-split", "0.3"]
    own += ["--eval-every", "2", "--warmup", "1", "--lr-decay-steps", "6"]
    assert run(options(folder, *own, "--adam-iter", "6")).code == 0
    assert run(options(other, *own, "--adam-iter", "4")).code == 0
    checkpoint = ["--checkpoint-in", str(other / "chk-LATEST.gguf")]
    done = run(options(other, *own, *checkpoint, "--adam-iter", "2"))
    assert done.code == 0, done
    assert "using reference log-probabilities stored in " in done.out
    whole, parts = (f / "lora-6.gguf" for f in (folder, other))
    assert whole.read_bytes() == parts.read_bytes()
    # another objective is another run
    wrong = ["--objective", "ipo" if objective == "dpo" else "dpo", *own[2:], *checkpoint]
    refused(run(options(other, *wrong)), 5, f"objective was {objective}")


def test_the_reference_is_the_adapter_that_a_run_starts_from(folder: Path, run: Run) -> None:
    pairs(folder)
    assert run(options(folder, "--objective", "orpo", "--adam-iter", "4")).code == 0
    start = str(folder / "lora-4.gguf")
    second = ["--objective", "dpo", "--lora-in", start, "--log", str(folder / "log")]
    second += ["--lora-out", str(folder / "b-ITERATION.gguf")]
    second += ["--checkpoint-out", str(folder / "b-chk-ITERATION.gguf")]
    assert run(options(folder, *second, "--adam-iter", "2")).code == 0
    first = log_rows(folder / "log")[0]
    assert abs(first["margin"]) < 1e-4 and first["loss"] == pytest.approx(0.693147, abs=1e-4)
    # the base as the reference: the adapter has moved away from it
    base = run(options(folder, *second, "--reference", "base", "--adam-iter", "1"))
    assert base.code == 0
    assert abs(log_rows(folder / "log")[-1]["margin"]) > 1e-3
    # continued with another reference
    more = ["--checkpoint-in", str(folder / "b-chk-1.gguf"), "--adam-iter", "1"]
    refused(run(options(folder, *second, *more)), 5, "reference was base, now adapter ")


def test_refusals(folder: Path, run: Run) -> None:
    pairs(folder)
    refused(run(options(folder)), 2, "pairs.jsonl", "pass --objective dpo")
    refused(run(options(folder, "--beta", "0.2")), 2, "--beta", "--objective sft")
    refused(run(options(folder, "--objective", "dpo", "--packing")), 2, "--packing")
    refused(run(options(folder, "--objective", "ipo", "--label-smoothing", "0.1")), 2, "ipo")
    gone = ["--objective", "dpo", "--reference", "gone.gguf"]
    refused(run(options(folder, *gone)), 2, "--reference gone.gguf: no such file")
    data = ["--train-data", str(labels(folder))]
    refused(run(options(folder, *data, "--objective", "dpo")), 2, "pass --objective kto")
    equal = {"prompt": "a", "chosen": "b", "rejected": "b"}
    written(folder / "pairs.jsonl", [equal])
    refused(run(options(folder, "--objective", "dpo")), 2, "line 1: chosen and rejected are equal")


def test_from_python_with_records_and_labels(folder: Path) -> None:
    rows = [json.loads(line) for line in labels(folder).read_text(encoding="utf-8").splitlines()]
    seen: list[dict[str, float]] = []
    done = nbllama.tune(
        "toy.gguf", rows, objective="kto", chat_template="chatml", ctx=128, batch=8, adam_iter=5,
        lr=1e-2, seed=1, threads=1, quiet=True, answers=0,
        on_step=lambda record: seen.append(dict(record.measures)),
    )  # fmt: skip
    assert done.losses[-1] < done.losses[0]
    assert seen[-1]["margin"] > seen[0]["margin"]
    assert not list(folder.glob("reference-*"))
