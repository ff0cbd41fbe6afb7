"""Choices of a run, through the program: optimisers, dropout, validation, early end, config."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbllama.adapter import load_adapter
from nbllama.checkpoint import load_checkpoint
from nbllama.finetune import main
from nbllama.model import load_model
from tests.toy_models import make_llama
from tests.toy_runs import Child, Done, events, file_bits, log_rows, toy_text, words

Run = Callable[..., Done]
VALIDATED = ["--val-split", "0.3", "--eval-every", "4", "--save-every", "5"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_llama(tmp_path / "toy.gguf")
    toy_text(tmp_path / "text.txt", 300)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def call(args: list[str]) -> Done:
        capfd.readouterr()
        code = main(args)
        return Done(code, *capfd.readouterr())

    yield call


def args(folder: Path, n: int, *more: str) -> list[str]:
    return words(folder, "--log", str(folder / "log.jsonl"), "--adam-iter", str(n), *more)


def copy_of(folder: Path, name: str) -> Path:
    other = folder / name
    other.mkdir()
    for file in ("toy.gguf", "text.txt"):
        shutil.copy(folder / file, other)
    return other


CHOICES = {
    "sgd": ["--optimizer", "sgd", "--lr", "0.05"],
    "lion": ["--optimizer", "lion", "--lr-schedule", "wsd"],
    "lion, dropout": ["--optimizer", "lion", "--lora-dropout", "0.3", "--grad-acc", "2"],
    "adamw": ["--lora-dropout", "0.2", "--loraplus-lr-ratio", "8", "--rslora", "--lr-schedule",
              "linear", "--lora-layers", "last:1", "--rank-tok-embd", "0"],
}  # fmt: skip


@pytest.mark.parametrize("how", CHOICES)
def test_a_continued_run_has_the_bits_of_a_whole_one(folder: Path, run: Run, how: str) -> None:
    more = [*CHOICES[how], "--save-every", "3", "--lr-decay-steps", "6"]
    found = []
    for name, parts in (("whole", (6,)), ("parts", (3, 3))):
        there = copy_of(folder, name)
        for part in parts:
            again = ["--checkpoint-in", str(there / "chk-LATEST.gguf"), *more]
            done = run(args(there, part, *again))
            assert done.code == 0, done
        found.append((there / "chk-6.gguf").read_bytes())
        rows = log_rows(there / "log.jsonl")
        assert len({row["loss"] for row in rows}) == 6
    assert found[0] == found[1]
    state = load_checkpoint(folder / "whole" / "chk-6.gguf")
    assert bool(state.v) == (how == "adamw")
    assert all(m.any() for m in state.m.values())


def test_another_choice_does_not_continue_a_checkpoint(folder: Path, run: Run) -> None:
    assert run(args(folder, 2)).code == 0
    saved = ["--checkpoint-in", str(folder / "chk-2.gguf")]
    for more, told in [
        (["--optimizer", "lion"], "optimizer was adamw, now lion"),
        (["--lora-dropout", "0.5"], "lora_dropout was 0.0, now 0.5"),
        (["--lora-layers", "0"], "lora_layers was all, now 0"),
        (["--rslora"], "rslora was False, now True"),
    ]:
        done = run(args(folder, 2, *saved, *more))
        assert done.code == 5 and told in done.err, done


def test_only_the_chosen_layers_carry_pairs(folder: Path, run: Run) -> None:
    done = run(args(folder, 2, "--lora-layers", "1", "--rank-out", "0", "--rank-tok-embd", "0"))
    assert done.code == 0 and "blocks 1" in done.out
    model = load_model(folder / "toy.gguf")
    adapter = load_adapter(folder / "lora-2.gguf", model.hp, model.shapes)
    assert {name.split(".")[1] for name in adapter.pairs} == {"1"} and len(adapter.pairs) == 7
    start = ["--lora-in", str(folder / "lora-2.gguf")]
    done = run(args(folder, 1, *start))
    assert done.code == 0 and "blocks 1" in done.out, done
    done = run(args(folder, 1, *start, "--lora-layers", "last:2"))
    assert done.code == 2 and "--lora-layers last:2: the adapter" in done.err


def test_rslora_writes_the_scale_that_was_trained(folder: Path, run: Run) -> None:
    assert run(args(folder, 1, "--rslora", "--lora-r", "4", "--lora-alpha", "6")).code == 0
    model = load_model(folder / "toy.gguf")
    adapter = load_adapter(folder / "lora-1.gguf", model.hp, model.shapes)
    assert adapter.scale == pytest.approx(6 / 4**0.5)


# Validation


def results(there: Path) -> tuple[bytes, bytes, list[tuple[object, ...]]]:
    rows = events(there / "log.jsonl", "evaluation")
    keys = ("iter", "val_loss", "train_loss", "best")
    latest = {row["iter"]: tuple(row[k] for k in keys) for row in rows}
    best, chk = (there / "lora-BEST.gguf").read_bytes(), (there / "chk-20.gguf").read_bytes()
    return best, chk, [latest[i] for i in sorted(latest)]


def test_kill_and_resume_gives_the_same_evaluations_and_best(folder: Path, run: Run) -> None:
    there = copy_of(folder, "whole")
    done = run(args(there, 20, *VALIDATED))
    assert done.code == 0, done
    whole = results(there)
    assert [row[0] for row in whole[2]] == [0, 4, 8, 12, 16, 20]
    assert [row[3] for row in whole[2]][:2] == [True, True]
    assert "best validation" in done.out and "val_loss=" in done.out
    state = load_checkpoint(there / "chk-20.gguf")
    assert state.watch["last"] == 20 and state.watch["best_at"] >= 4

    there = copy_of(folder, "killed")
    child = Child(args(there, 20, *VALIDATED), there)
    child.wait_for((there / "chk-10.gguf").exists)
    child.kill()
    more = ["--checkpoint-in", str(there / "chk-10.gguf"), *VALIDATED]
    done = run(args(there, 10, *more))
    assert done.code == 0, done
    assert results(there) == whole


def test_evaluations_change_no_bit_of_training(folder: Path, run: Run) -> None:
    val = folder / "val.txt"
    toy_text(val, 200)
    found = []
    for name, more in (("without", []), ("with", ["--val-data", str(val), "--eval-every", "2"])):
        there = copy_of(folder, name)
        assert run(args(there, 6, "--lora-dropout", "0.1", *more)).code == 0
        found.append((file_bits(there / "chk-6.gguf"), log_rows(there / "log.jsonl")))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])


def test_early_stop_and_the_best_adapter(folder: Path, run: Run) -> None:
    """A rate that is much too high: the validation loss only rises after a while."""
    more = ["--val-split", "0.3", "--eval-every", "2", "--early-stop", "2", "--lr", "0.5"]
    more += ["--warmup", "0", "--lr-schedule", "constant"]
    done = run(args(folder, 60, *more))
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
    done = run(args(folder, 10, *again))
    assert done.code == 0 and "(--early-stop)" in done.out
    assert len(log_rows(folder / "log.jsonl")) == n_rows


def test_refused(folder: Path, run: Run) -> None:
    for more, told in [
        (["--early-stop", "2"], "--early-stop needs validation data"),
        (["--val-split", "0.1", "--val-data", "x"], "come from one of them"),
        (["--val-data", "missing.txt"], "missing.txt"),
        (["--val-split", "0.999"], "leaves nothing"),
        (["--compat", "--val-split", "0.2"], "--val-split"),
        (["--fn-latest", "BEST"], "--fn-latest BEST"),
        (["--val-data", str(folder / "lora-7.gguf")], "--lora-out and --val-data are the same"),
    ]:
        done = run(args(folder, 2, *more))
        assert done.code == 2 and told in done.err, (more, done)


# Config


def test_a_config_file_is_a_command_line_that_comes_first(folder: Path, run: Run) -> None:
    config = folder / "run.yaml"
    config.write_text(
        f"""# a comment
model-base: {folder / "toy.gguf"}
train_data: {folder / "text.txt"}
checkpoint-in: ""
lora-out: {folder / "a-ITERATION.gguf"}
checkpoint-out: ""
lr: 1e-4          # YAML 1.1 takes this for a text
ctx: 16
batch: 2
adam-iter: 7
warmup: 0
use-checkpointing: no
lora-layers: [0, 1]
seed: 11
threads: 1
""",
        encoding="utf-8",
    )
    done = run(["--config", str(config), "--adam-iter", "3"])
    assert done.code == 0, done
    for part in ("3 iterations of 2 x 1", "0.0001, warm-up 0", "checkpointing  off"):
        assert part in done.out, part
    # the effective options are beside the adapter, and make the same run again
    saved = folder / "a-LATEST.config.yaml"
    text = saved.read_text(encoding="utf-8")
    for line in ("adam-iter: 3", "seed: 11", "lora-r: 4", "adam-alpha: 0.0001", "lora-layers: all"):
        assert f"\n{line}\n" in text, line
    first = file_bits(folder / "a-3.gguf")
    (folder / "a-3.gguf").unlink()
    again = folder / "again.yaml"
    shutil.copy(saved, again)
    assert run(["--config", str(again)]).code == 0
    assert file_bits(folder / "a-3.gguf") == first
    assert saved.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "learning-rat: 1",
            "line 1: unknown option '--learning-rat'; did you mean --learning-rate?",
        ),
        ("ctx: 16\nctx: 17", "line 2: ctx was given before, as ctx"),
        ("lr: 1\nadam_alpha: 2", "line 2: adam_alpha was given before, as lr"),
        ("ctx: many", "line 1: --ctx: 'many' is not allowed"),
        ("ctx:", "line 1: --ctx has no value"),
        ("ctx: [1, 2]", "--ctx takes one value, not a list"),
        ("ctx: {a: 1}", "--ctx takes one value"),
        ("dry-run: maybe", "--dry-run is a switch; give true or false"),
        ("config: other.yaml", "cannot name another"),
        ("- a\n- b", "must be lines of `name: value`"),
        ("a: [", "not YAML"),
        ("? [a]\n: b", "a key is an option's name"),
    ],
)
def test_bad_config_files(folder: Path, run: Run, text: str, told: str) -> None:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    done = run(args(folder, 1, "--config", "c.yaml"))
    assert done.code == 2 and told in done.err and "c.yaml" in done.err, done
    assert done.err.count("\n") == 1


def test_config_files_that_are_none(folder: Path, run: Run) -> None:
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00ctx")
    for name, told in (("none.yaml", "No such file"), ("bytes.yaml", "not")):
        done = run(args(folder, 1, "--config", name))
        assert done.code == 2 and told in done.err, done


def test_the_example_is_a_run_that_can_be_made(folder: Path, run: Run) -> None:
    """All keys are options, and a short run with it does what it says."""
    from nbllama.cli.options import parse
    from tests.conftest import ROOT

    example = str(ROOT / "examples" / "config.yaml")
    options = parse(["--config", example])
    assert (options.adam_alpha, options.val_split, options.early_stop) == (2e-4, 0.1, 5)
    make_llama(folder / "chat.gguf", tokenizer="bpe")
    data = str(ROOT / "examples" / "demo" / "train.jsonl")
    more = ["--model-base", "chat.gguf", "--train-data", data, "--ctx", "400", "--adam-iter", "2"]
    more += ["--batch", "2"]
    done = run(["--config", example, *more, "--threads", "1"])
    assert done.code == 0, done
    for name in ("adapter-LATEST.gguf", "adapter-BEST.gguf", "checkpoint-LATEST.gguf"):
        assert (folder / name).exists(), name
    assert (folder / "adapter-LATEST.config.yaml").exists()


# Report, samples, TensorBoard


def test_a_report_with_samples_and_event_files(folder: Path, run: Run) -> None:
    (folder / "prompts.txt").write_text("the hen\n\n你好 <b>\n", encoding="utf-8")
    more = ["--report", "out.html", "--tensorboard", "board", "--sample-prompts", "prompts.txt"]
    more += ["--sample-tokens", "5", "--val-split", "0.3", "--eval-every", "2"]
    done = run(words(folder, "--adam-iter", "4", *more))
    assert done.code == 0, done
    rows = events(folder / "out.jsonl")  # without --log it lies beside the page
    assert [row.get("event", "step") for row in rows] == [
        "run", "evaluation", "step", "step", "evaluation", "step", "step", "evaluation", "end",
    ]  # fmt: skip
    assert rows[0]["options"]["val-split"] == 0.3 and rows[0]["data"]["samples"] > 10
    assert [s["prompt"] for s in rows[1]["samples"]] == ["the hen", "你好 <b>"]
    page = (folder / "out.html").read_text(encoding="utf-8")
    assert "你好 &lt;b&gt;" in page and "iteration 4 of 4" in page and "finished" in page
    assert f"{rows[-2]['val_loss']:.4f}" in page

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
    """The scalars of a tag, as the format says: records of length, checksum, message, checksum."""
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
            for value in event.summary.value:
                if value.tag == tag:
                    found.append((event.step, value.simple_value))
    return found


def test_samples_and_report_change_no_bit(folder: Path, run: Run) -> None:
    (folder / "prompts.txt").write_text("the\n", encoding="utf-8")
    found = []
    for name in ("plain", "with"):
        there = copy_of(folder, name)
        more = ["--report", str(there / "r.html"), "--sample-prompts", "prompts.txt"]
        more += ["--eval-every", "1"]
        assert run(args(there, 3, *(more if name == "with" else []))).code == 0
        found.append(file_bits(there / "chk-3.gguf"))
    assert found[0] == found[1]


def test_answers_are_those_of_the_adapter_as_it_is(folder: Path, run: Run) -> None:
    """What the log says at the end is what the saved adapter says."""
    import nbllama

    (folder / "prompts.txt").write_text("the hen and\n", encoding="utf-8")
    more = ["--sample-prompts", "prompts.txt", "--sample-tokens", "8", "--lr", "0.05"]
    assert run(args(folder, 4, *more, "--eval-every", "4", "--warmup", "0")).code == 0
    model = load_model(folder / "toy.gguf")
    ids = model.tokenizer.encode("the hen and", add_special=True)
    said = []
    for adapter in (None, load_adapter(folder / "lora-4.gguf", model.hp, model.shapes)):
        said.append(model.tokenizer.decode(nbllama.generate(model, ids, 8, adapter)))
    told = [row["samples"][0]["answer"] for row in events(folder / "log.jsonl", "evaluation")]
    assert told == said and said[0] != said[1]


def test_a_stopped_run_says_so_in_its_report(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbllama.train import StopRequested, Trainer

    step = Trainer.step

    def stops(self: Trainer, *how: object) -> object:
        if self.iteration == 2:
            raise StopRequested
        return step(self, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", stops)
    done = run(args(folder, 4, "--report", "r.html"))
    assert done.code == 128, done
    page = (folder / "r.html").read_text(encoding="utf-8")
    assert "iteration 2 of 4" in page and "ended: stopped by signal" in page


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
    done = run(args(folder, 1, "--tensorboard", "board"))
    assert done.code == 2 and "pip install 'nbllama[tensorboard]'" in done.err
