"""Runs with validation data: evaluations, the best adapter, the early end."""

from __future__ import annotations

from pathlib import Path

from nbllama.checkpoint.file import load_checkpoint
from tests.train.runs import Run, copy_of, logged
from tests.train.toy_runs import Child, events, file_bits, log_rows, toy_text

VALIDATED = ["--val-split", "0.3", "--eval-every", "4", "--save-every", "5"]


def results(there: Path) -> tuple[bytes, bytes, list[tuple[object, ...]]]:
    rows = events(there / "log.jsonl", "evaluation")
    keys = ("iter", "val_loss", "train_loss", "best")
    latest = {row["iter"]: tuple(row[k] for k in keys) for row in rows}
    best, chk = (there / "lora-BEST.gguf").read_bytes(), (there / "chk-20.gguf").read_bytes()
    return best, chk, [latest[i] for i in sorted(latest)]


def test_kill_and_resume_gives_the_same_evaluations_and_best(folder: Path, run: Run) -> None:
    there = copy_of(folder, "whole")
    done = run(logged(there, 20, *VALIDATED))
    assert done.code == 0, done
    whole = results(there)
    assert [row[0] for row in whole[2]] == [0, 4, 8, 12, 16, 20]
    assert [row[3] for row in whole[2]][:2] == [True, True]
    assert "best validation" in done.out and "val_loss=" in done.out
    state = load_checkpoint(there / "chk-20.gguf")
    assert state.validation["last"] == 20 and state.validation["best_at"] >= 4

    there = copy_of(folder, "killed")
    child = Child(logged(there, 20, *VALIDATED), there)
    child.wait_for((there / "chk-10.gguf").exists)
    child.kill()
    more = ["--checkpoint-in", str(there / "chk-10.gguf"), *VALIDATED]
    done = run(logged(there, 10, *more))
    assert done.code == 0, done
    assert results(there) == whole


def test_evaluations_change_no_bit_of_training(folder: Path, run: Run) -> None:
    val = folder / "val.txt"
    toy_text(val, 200)
    found = []
    for name, more in (("without", []), ("with", ["--val-data", str(val), "--eval-every", "2"])):
        there = copy_of(folder, name)
        assert run(logged(there, 6, "--lora-dropout", "0.1", *more)).code == 0
        found.append((file_bits(there / "chk-6.gguf"), log_rows(there / "log.jsonl")))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])


def test_early_stop_and_the_best_adapter(folder: Path, run: Run) -> None:
    """A learning rate that is much too high: the validation loss only rises after a while."""
    more = ["--val-split", "0.3", "--eval-every", "2", "--early-stop", "2", "--lr", "0.5"]
    more += ["--warmup", "0", "--lr-schedule", "constant"]
    done = run(logged(folder, 60, *more))
    assert done.code == 0 and "(--early-stop)" in done.out, done
    rows = events(folder / "log.jsonl", "evaluation")
    losses = [row["val_loss"] for row in rows]
    best = losses.index(min(losses))
    assert best == len(losses) - 3 and rows[-1]["iter"] < 60
    assert [row["best"] for row in rows][-3:] == [True, False, False]
    # the best adapter is that of its iteration, not the last one
    newest, kept = (file_bits(folder / f"lora-{n}.gguf") for n in ("LATEST", "BEST"))
    assert newest != kept
    # a run that has stopped stays stopped
    n_rows = len(log_rows(folder / "log.jsonl"))
    again = ["--checkpoint-in", str(folder / "chk-LATEST.gguf"), *more]
    done = run(logged(folder, 10, *again))
    assert done.code == 0 and "(--early-stop)" in done.out
    assert len(log_rows(folder / "log.jsonl")) == n_rows


def test_refused(folder: Path, run: Run) -> None:
    for more, told in [
        (["--early-stop", "2"], "--early-stop requires validation data"),
        (
            ["--val-split", "0.1", "--val-data", "x"],
            "--val-data and --val-split: pass only one of them",
        ),
        (["--val-data", "missing.txt"], "missing.txt"),
        (["--val-split", "0.999"], "leaves nothing"),
        (["--compat", "--val-split", "0.2"], "--val-split"),
        (["--fn-latest", "BEST"], "--fn-latest BEST"),
        (["--val-data", str(folder / "lora-7.gguf")], "--lora-out and --val-data are the same"),
    ]:
        done = run(logged(folder, 2, *more))
        assert done.code == 2 and told in done.err, (more, done)


def test_notes_about_the_data(folder: Path, run: Run) -> None:
    """Files in the folder that are not read, and records of validation data that are skipped."""
    data = folder / "data"
    data.mkdir()
    lines = [f'{{"prompt": "{word}", "completion": "b c"}}\n' for word in "abcd"]
    (data / "train.jsonl").write_text("".join(lines))
    (data / "valid.jsonl").write_text('{"prompt": "a", "completion": ""}\n' + lines[0])
    (data / "more.jsonl").write_text(lines[0])
    done = run(logged(folder, 1, "--train-data", str(data), "--skip-bad"))
    assert done.code == 0, done
    words = done.out.split()
    assert "ignoring 1 file: more.jsonl" in " ".join(words)
    assert "validation data: 1 of 2 records are bad" in " ".join(words)
