"""A run's report, its answers to prompts, and its event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbllama.adapter.file import load_adapter
from nbllama.model.passes import load_model
from tests.report.test_report import data_of
from tests.train.runs import Run, copy_of, logged
from tests.train.toy_runs import events, file_bits, log_rows, words


def test_a_report_with_samples_and_event_files(folder: Path, run: Run) -> None:
    (folder / "prompts.txt").write_text("the hen\n\n你好 <b>\n", encoding="utf-8")
    more = ["--report", "out.html", "--tensorboard", "board", "--sample-prompts", "prompts.txt"]
    more += ["--sample-tokens", "5", "--val-split", "0.3", "--eval-every", "2"]
    done = run(words(folder, "--adam-iter", "4", *more))
    assert done.code == 0, done
    rows = events(folder / "out.jsonl")  # without --log it is next to the page
    assert [row.get("event", "step") for row in rows] == [
        "run", "evaluation", "step", "step", "evaluation", "step", "step", "evaluation", "end",
    ]  # fmt: skip
    assert rows[0]["options"]["val-split"] == 0.3 and rows[0]["data"]["samples"] > 10
    assert [s["prompt"] for s in rows[1]["samples"]] == ["the hen", "你好 <b>"]
    page = (folder / "out.html").read_text(encoding="utf-8")
    (shown,) = data_of(page)["runs"]
    assert (shown["iter"], shown["n_iter"], shown["state"]) == (4, 4, "finished")
    assert shown["evaluations"][-1]["samples"][1]["prompt"] == "你好 <b>"
    assert shown["evaluations"][-1]["val_loss"] == rows[-2]["val_loss"]

    from nbllama.report.__main__ import main as report

    assert report(["out.jsonl", "again.html"]) == 0
    assert (folder / "again.html").read_text(encoding="utf-8") == page
    assert board_values(folder / "board", "loss/train") == [
        (row["iter"], pytest.approx(row["loss"])) for row in rows if "event" not in row
    ]
    assert board_values(folder / "board", "loss/validation") == [
        (row["iter"], pytest.approx(row["val_loss"])) for row in rows if row.get("val_loss")
    ]


def board_values(folder: Path, tag: str) -> list[Any]:
    """The scalars of a tag, by the format: records of length, checksum, message, checksum."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in folder.glob("events.out.tfevents.*"):
        raw = file.read_bytes()
        at = 0
        while at < len(raw):
            (size,) = struct.unpack_from("<Q", raw, at)
            event = Event.FromString(raw[at + 12 : at + 12 + size])
            at += size + 16
            values = [v.simple_value for v in event.summary.value if v.tag == tag]
            found += [(event.step, value) for value in values]
    return found


def test_samples_and_report_change_no_bit(folder: Path, run: Run) -> None:
    (folder / "prompts.txt").write_text("the\n", encoding="utf-8")
    found = []
    for name in ("plain", "with"):
        there = copy_of(folder, name)
        more = ["--report", str(there / "r.html"), "--sample-prompts", "prompts.txt"]
        more += ["--eval-every", "1"]
        assert run(logged(there, 3, *(more if name == "with" else []))).code == 0
        found.append(file_bits(there / "chk-3.gguf"))
    assert found[0] == found[1]


def test_answers_are_those_of_the_adapter_as_it_is(folder: Path, run: Run) -> None:
    """The last answers in the log equal those of the saved adapter."""
    import nbllama

    (folder / "prompts.txt").write_text("the hen and\n", encoding="utf-8")
    more = ["--sample-prompts", "prompts.txt", "--sample-tokens", "8", "--lr", "0.05"]
    assert run(logged(folder, 4, *more, "--eval-every", "4", "--warmup", "0")).code == 0
    model = load_model(folder / "toy.gguf")
    ids = model.tokenizer.encode("the hen and", add_special=True)
    adapters = (None, load_adapter(folder / "lora-4.gguf", model.hp, model.shapes))
    said = [model.tokenizer.decode(nbllama.generate(model, ids, 8, a)) + "…" for a in adapters]
    told = [row["samples"][0]["answer"] for row in events(folder / "log.jsonl", "evaluation")]
    assert told == said and said[0] != said[1]


def test_the_training_loss_counts_from_the_last_evaluation(folder: Path, run: Run) -> None:
    (folder / "prompts.txt").write_text("the hen and\n", encoding="utf-8")
    more = ["--sample-prompts", "prompts.txt", "--sample-tokens", "1", "--eval-every", "2"]
    assert run(logged(folder, 4, *more)).code == 0
    steps = [(row["loss"], row["tokens"]) for row in log_rows(folder / "log.jsonl")]
    means = [
        sum(loss * n for loss, n in part) / sum(n for _, n in part)
        for part in (steps[:2], steps[2:])
    ]
    told = [row["train_loss"] for row in events(folder / "log.jsonl", "evaluation")]
    assert told[0] is None and told[1:] == pytest.approx(means, rel=1e-6)


def test_a_stopped_run_says_so_in_its_report(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbllama.train.trainer import StopRequested, Trainer

    step = Trainer.step

    def stops(self: Trainer, *how: object) -> object:
        if self.iteration == 2:
            raise StopRequested
        return step(self, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", stops)
    done = run(logged(folder, 4, "--report", "r.html"))
    assert done.code == 128, done
    (shown,) = data_of((folder / "r.html").read_text(encoding="utf-8"))["runs"]
    assert (shown["iter"], shown["n_iter"]) == (2, 4)
    assert shown["state"].startswith("ended: stopped by signal")


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--report", "none/r.html"], 3, "none"),
        (["--report", "r.html", "--log", "r.html"], 2, "the same file"),
        (["--report", "text.txt"], 2, "the same file"),
        (
            ["--dump", "1:*", "--dump-out", "text.txt"],
            2,
            "--dump-out and --train-data are the same",
        ),
        (["--sample-prompts", "none.txt"], 2, "none.txt"),
        (["--sample-prompts", "empty.txt"], 2, "0 prompts"),
        (["--tensorboard", "text.txt"], 3, "--tensorboard text.txt"),
    ],
)
def test_outputs_and_prompts_that_cannot_be(
    folder: Path, run: Run, more: list[str], code: int, told: str
) -> None:
    (folder / "empty.txt").write_text("\n \n")
    before = (folder / "text.txt").read_bytes()
    done = run(words(folder, *more))
    assert done.code == code and told in done.err, done
    assert (folder / "text.txt").read_bytes() == before


def test_without_the_package_for_event_files(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    done = run(logged(folder, 1, "--tensorboard", "board"))
    assert done.code == 2 and "pip install 'nbllama[tensorboard]'" in done.err
