"""The output of the program: files, their names, the log, its lines."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.checkpoint.file import load_checkpoint
from nbllama.options.finetune.table import PROG
from nbllama.system.run_lock import RunLock
from tests.train.runs import Run, listing
from tests.train.toy_runs import file_bits, log_rows, run_child, words


def test_numbered_files_and_latest(folder: Path, run: Run) -> None:
    done = run(words(folder, "--adam-iter", "7", "--save-every", "3"))
    assert done.code == 0, done
    found = {p.name for p in folder.iterdir()}
    stamps = ("3", "6", "7", "LATEST")
    files = {f"{kind}-{s}.gguf" for kind in ("chk", "lora") for s in stamps}
    assert (
        found == {"toy.gguf", "text.txt", "lora-LATEST.config.yaml"} | files
    )  # no lock, nothing temporary
    for stamp in ("3", "6", "7"):
        assert load_checkpoint(folder / f"chk-{stamp}.gguf").iteration == int(stamp)
    for kind in ("chk", "lora"):
        newest = (folder / f"{kind}-7.gguf").read_bytes()
        assert (folder / f"{kind}-LATEST.gguf").read_bytes() == newest
    # the adapter next to a checkpoint is that of the checkpoint
    model = nbllama.load_model(folder / "toy.gguf")
    state = load_checkpoint(folder / "chk-6.gguf")
    adapter = nbllama.load_adapter(folder / "lora-6.gguf", model)
    for name, p in state.adapter.parameters().items():
        np.testing.assert_array_equal(adapter.parameters()[name], p)
    assert (state.sample_count, state.token_count) == (12, 12 * 16)


@pytest.mark.parametrize(
    ("checkpoint", "adapter", "files"),
    [
        ("one.gguf", "two.gguf", {"one.gguf", "two.gguf", "two.config.yaml"}),
        ("", "a-ITERATION.gguf", {"a-4.gguf", "a-2.gguf", "a-LATEST.gguf", "a-LATEST.config.yaml"}),
        ("c-ITERATION", "", {"c-4", "c-2", "c-LATEST"}),
        ("", "", set()),
    ],
)
def test_other_names(
    folder: Path, run: Run, checkpoint: str, adapter: str, files: set[str]
) -> None:
    args = words(folder, "--checkpoint-out", checkpoint, "--lora-out", adapter, "--save-every", "2")
    done = run(args)
    assert done.code == 0, done
    assert {p.name for p in folder.iterdir()} == {"toy.gguf", "text.txt"} | files
    for name in files:
        told = re.search(rf"(?m)^(checkpoint|adapter) +{name}$", done.out)
        assert told or "LATEST" not in name or name.endswith(".yaml")


def test_save_every_0_saves_at_the_end_only(folder: Path, run: Run) -> None:
    assert run(words(folder, "--save-every", "0")).code == 0
    assert {p.name for p in folder.glob("chk*")} == {"chk-4.gguf", "chk-LATEST.gguf"}


def test_keep_last_prunes(folder: Path, run: Run) -> None:
    others = [folder / "chk-1.gguf", folder / "chk-99.gguf", folder / "chk-x.gguf"]
    for other in others:
        other.write_bytes(b"not a checkpoint")
    done = run(words(folder, "--adam-iter", "7", "--save-every", "2", "--keep-last", "2"))
    assert done.code == 0, done
    left = {p.name for p in folder.glob("chk-*")}
    assert left == {"chk-6.gguf", "chk-7.gguf", "chk-LATEST.gguf"} | {p.name for p in others}
    left = {p.name for p in folder.glob("lora-*.gguf")}
    assert left == {"lora-6.gguf", "lora-7.gguf", "lora-LATEST.gguf"}


def test_pruning_that_fails_stops_nothing(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def fail(path: Any, *rest: Any, **more: Any) -> None:
        if str(path).endswith("chk-1.gguf"):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, *rest, **more)

    monkeypatch.setattr(os, "unlink", fail)
    done = run(words(folder, "--save-every", "1", "--keep-last", "1"))
    assert done.code == 0 and not done.err
    assert "chk-1.gguf: cannot be removed: Operation not permitted" in done.out
    assert "not saved" not in done.out
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 4


def test_half_written_files_of_killed_runs_are_swept(folder: Path, run: Run) -> None:
    dead = [f".chk-{s}.gguf.0123456789ab.nbllama-tmp" for s in ("2", "17", "LATEST")]
    dead.append(".lora-4.gguf.0123456789ab.nbllama-tmp")
    kept = [".other-2.gguf.0123456789ab.nbllama-tmp", ".chk-x.gguf.0123456789ab.nbllama-tmp"]
    for name in dead + kept:
        (folder / name).write_bytes(b"half")
    assert run(words(folder)).code == 0
    assert {p.name for p in folder.glob(".*")} == set(kept)


def test_the_log_and_the_lines(folder: Path, run: Run) -> None:
    done = run(words(folder, "--log", str(folder / "log.jsonl"), "--adam-iter", "5"))
    rows = log_rows(folder / "log.jsonl")
    assert [row["iter"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert {"iter", "loss", "lr", "grad_norm", "tokens_per_s", "seconds"} <= row.keys()
        assert all(isinstance(row[k], float) and row[k] > 0 for k in ("loss", "lr", "grad_norm"))
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["tokens"] == 2 * 16 and not row["skipped"] and row["n_iter"] == 5
    assert [row["lr"] for row in rows[:2]] == [5e-4, pytest.approx(1e-3, rel=1e-4)]
    lines = [line for line in done.out.splitlines() if line.startswith("iter=")]
    assert len(lines) == 5
    for line, row in zip(lines, rows, strict=True):
        assert f"loss={row['loss']:f}" in line and f"lr={row['lr']:.3e}" in line
    order = [
        done.out.index(s) for s in ("seed ", "compiled kernels in", "forecast ", "iter=", "peak")
    ]
    assert order == sorted(order)
    assert re.search(
        r"(?m)^activations +\d+ MB \(\d+ MB with checkpointing, \d+ MB without\)$", done.out
    )


def test_dry_run_writes_nothing(folder: Path, run: Run) -> None:
    before = listing(folder)
    done = run(words(folder, "--dry-run", "--log", str(folder / "log.jsonl")))
    assert done.code == 0 and not done.err
    assert listing(folder) == before
    for start in ("forecast", "memory", "activations", "compiled kernels"):
        assert re.search(rf"(?m)^{start} ", done.out), start
    assert "iter=" not in done.out and "loss" not in done.out


def test_a_dry_run_does_not_mind_a_running_one(folder: Path, run: Run) -> None:
    with RunLock(folder / "chk-LATEST.gguf"):
        assert run(words(folder, "--dry-run")).code == 0


def test_threads_change_no_bit(folder: Path, run: Run) -> None:
    found = []
    for threads in ("1", "2"):
        done = run(words(folder, "--threads", threads, "--log", f"log{threads}"))
        assert done.code == 0 and re.search(rf"(?m)^threads +{threads}$", done.out)
        losses = [row["loss"] for row in log_rows(folder / f"log{threads}")]
        found.append((losses, file_bits(folder / "chk-4.gguf")))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp936"},
    ],
    ids=["C as Python takes it", "C in earnest", "a Chinese Windows console"],
)
def test_chinese_names_text_and_options_in_any_locale(folder: Path, env: dict[str, str]) -> None:
    there = folder / "数据 目录"
    there.mkdir()
    (folder / "toy.gguf").rename(there / "模型.gguf")
    (there / "红楼梦.txt").write_text(
        "满纸荒唐言,一把辛酸泪。都云作者痴,谁解其中味?" * 20, encoding="utf-8"
    )
    args = words(
        there, "--model-base", str(there / "模型.gguf"), "--train-data", str(there / "红楼梦.txt"),
        "--checkpoint-out", str(there / "存档-ITERATION.gguf"), "--lora-out",
        str(there / "适配器-ITERATION.gguf"), "--log", str(there / "日志.jsonl"),
        "--sample-start", "都云", "--include-sample-start",
    )  # fmt: skip
    done = run_child(args, folder, **env)
    assert done.code == 0, done
    assert "都云" not in done.err
    if "PYTHONUTF8" not in env:
        assert "模型.gguf" in done.out and "适配器-LATEST.gguf" in done.out
    assert {p.name for p in there.iterdir()} == {
        "模型.gguf", "红楼梦.txt", "存档-4.gguf", "存档-LATEST.gguf", "适配器-4.gguf",
        "适配器-LATEST.gguf", "适配器-LATEST.config.yaml", "日志.jsonl",
    }  # fmt: skip
    assert len(log_rows(there / "日志.jsonl")) == 4


def test_help_is_quick_and_names_every_option() -> None:
    done = run_child(["--help"], Path.cwd())
    assert done.code == 0 and PROG in done.out
    for option in ("--model-base", "--rank-w3", "--use-checkpointing", "--keep-last", "--force"):
        assert option in done.out
