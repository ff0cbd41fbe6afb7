"""`nbllama.tune`: the program as a function, bit for bit, and what a call does not change."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.errors import DataError, GGUFError, NbllamaError, OutputError, UsageError
from nbllama.options.finetune.table import OPTIONS
from nbllama.report.log import EvaluationRecord, StepRecord
from nbllama.train.run.result import Run
from tests.train.runs import Run as Program
from tests.train.runs import listing
from tests.train.toy_runs import log_rows, same_bits, toy_chat, words

# Like `tests.train.toy_runs.words`.
SHORT: dict[str, Any] = dict(ctx=16, batch=2, adam_iter=4, warmup=2, seed=11, threads=1, quiet=True)
CHAT: dict[str, Any] = dict(
    SHORT, ctx=64, chat_template="chatml", template_date="2026-01-02", lr=1e-2
)
CHAT_WORDS = [
    "--train-data", "chat.jsonl", "--ctx", "64", "--chat-template", "chatml",
    "--template-date", "2026-01-02", "--lr", "1e-2",
]  # fmt: skip


def bits(run: Run) -> dict[str, Any]:
    return {name: x.copy() for name, x in run.adapter.parameters().items()}


def chats(folder: Path) -> list[dict[str, Any]]:
    lines = toy_chat(folder / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_every_byte_is_the_programs(folder: Path, run: Program, kind: str) -> None:
    records = chats(folder)
    more = CHAT_WORDS if kind == "chat" else []
    assert run(words(folder, "--log", "log", *more)).code == 0
    data, options = ("chat.jsonl", CHAT) if kind == "chat" else ("text.txt", SHORT)
    mine = nbllama.tune("toy.gguf", data, **options)
    mine.adapter.save("mine.gguf")
    assert (folder / "mine.gguf").read_bytes() == (folder / "lora-4.gguf").read_bytes()
    assert mine.losses == [row["loss"] for row in log_rows(folder / "log")]
    files: dict[str, Any] = dict(
        lora_out="py-lora-ITERATION.gguf", checkpoint_out="py-chk-ITERATION.gguf"
    )
    # from a model that is loaded, and records in memory
    model = nbllama.load_model("toy.gguf")
    again = nbllama.tune(model, records if kind == "chat" else data, **options, **files)
    for name in ("lora-4.gguf", "lora-LATEST.gguf", "chk-4.gguf"):
        assert (folder / f"py-{name}").read_bytes() == (folder / name).read_bytes(), name
    assert again.paths == {
        "adapter": "py-lora-LATEST.gguf", "checkpoint": "py-chk-LATEST.gguf",
        "config": "py-lora-LATEST.config.yaml",
    }  # fmt: skip


def test_a_call_writes_nothing_and_starts_afresh(folder: Path) -> None:
    before, handler = listing(folder), signal.getsignal(signal.SIGINT)
    first, second = (nbllama.tune("toy.gguf", "text.txt", **SHORT) for _ in range(2))
    assert listing(folder) == before and signal.getsignal(signal.SIGINT) is handler
    assert same_bits(bits(first), bits(second)) and first.losses == second.losses
    assert (first.iteration, first.last, first.reason, first.interrupted) == (4, 4, "", False)
    assert (first.best, first.val_losses, first.paths) == (None, [], {})
    assert first.options["adam_alpha"] == 1e-3 and first.options["lora_r"] == 4
    assert first.forecast is not None and first.forecast.peak > 0
    assert "<Run: 4 iterations, loss" in repr(first)
    # a call without a seed takes a new one, as the program does
    seeds = {nbllama.tune("toy.gguf", "text.txt", **SHORT | {"seed": -1}).options["seed"]}
    seeds |= {nbllama.tune("toy.gguf", "text.txt", **SHORT | {"seed": -1}).options["seed"]}
    assert len(seeds) == 2


def test_a_checkpoint_is_continued(folder: Path) -> None:
    whole = nbllama.tune("toy.gguf", "text.txt", **SHORT, cos_decay_steps=9)
    half = SHORT | {"adam_iter": 2, "cos_decay_steps": 9}
    nbllama.tune("toy.gguf", "text.txt", **half, checkpoint_out="c-ITERATION.gguf")
    rest = nbllama.tune("toy.gguf", "text.txt", **half, checkpoint_in="c-LATEST.gguf")
    assert same_bits(bits(whole), bits(rest)) and rest.losses == whole.losses[2:]
    assert (rest.iteration, rest.last) == (4, 4)
    with pytest.raises(nbllama.NbllamaError, match="from a different run: batch was 2, now 3"):
        nbllama.tune("toy.gguf", "text.txt", **half | {"batch": 3}, checkpoint_in="c-LATEST.gguf")
    written = nbllama.tune(
        "toy.gguf", None, only_write_lora=True, checkpoint_in="c-LATEST.gguf", lora_out="l.gguf",
        quiet=True,
    )  # fmt: skip
    assert written.iteration == 2 and written.paths == {"adapter": "l.gguf"}


def test_validation_and_what_the_callbacks_see(folder: Path) -> None:
    steps: list[StepRecord] = []
    evaluations: list[EvaluationRecord] = []
    options = CHAT | {"adam_iter": 6, "lr": 1.0, "lr_schedule": "constant", "warmup": 0}
    run = nbllama.tune(
        "toy.gguf", chats(folder), **options, val_data=chats(folder)[:2], eval_every=1,
        sample_prompts=["say 1"], sample_tokens=3, on_step=steps.append, on_eval=evaluations.append,
    )  # fmt: skip
    assert [s.iter for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s.loss for s in steps] == run.losses
    assert [(e.iter, e.val_loss) for e in evaluations] == run.val_losses
    assert all(e.samples[0]["prompt"] == "say 1" for e in evaluations)
    low = min(run.val_losses, key=lambda row: row[1])
    assert run.best is not None and run.best[:2] == low
    assert low[0] < 6, "the learning rate is so high that the loss rises again"
    assert run.best.adapter is not None
    assert not same_bits(run.best.adapter.parameters(), bits(run))
    # the best adapter is that of a run that ends there
    there = nbllama.tune("toy.gguf", chats(folder), **options | {"adam_iter": max(1, low[0])})
    if low[0]:
        assert same_bits(run.best.adapter.parameters(), bits(there))


def test_a_callback_can_end_the_run(folder: Path) -> None:
    ended = nbllama.tune("toy.gguf", "text.txt", **SHORT, on_step=lambda r: r.iter == 2)
    assert (ended.iteration, ended.reason) == (2, "on_step returned True")
    assert same_bits(bits(ended), bits(_of_length(2)))
    more: dict[str, Any] = dict(val_split=0.2, eval_every=3)
    ended = nbllama.tune("toy.gguf", "text.txt", **SHORT, **more, on_eval=lambda r: r.iter == 3)
    assert (ended.iteration, ended.reason) == (3, "on_eval returned True")
    # numpy's True is what comparing arrays gives
    ended = nbllama.tune("toy.gguf", "text.txt", **SHORT, on_step=lambda r: np.bool_(r.iter == 2))
    assert (ended.iteration, ended.reason) == (2, "on_step returned True")
    more["on_eval"] = lambda r: np.mean([r.val_loss]) < 1e9
    ended = nbllama.tune("toy.gguf", "text.txt", **SHORT, **more)
    assert ended.reason == "on_eval returned True"
    # only True counts, so that any function can be a callback, but a warning says so, once
    with pytest.warns(UserWarning, match="on_step returned '1', which does not end the run") as w:
        run = nbllama.tune("toy.gguf", "text.txt", **SHORT, on_step=lambda r: r.iter)
    assert run.iteration == 4 and len(w) == 1

    def fail(record: StepRecord) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        nbllama.tune("toy.gguf", "text.txt", **SHORT, on_step=fail)


def _of_length(n: int) -> Run:
    schedule = dict(cos_decay_steps=1000, warmup=2)
    return nbllama.tune("toy.gguf", "text.txt", **SHORT | {"adam_iter": n} | schedule)


def test_early_stop_as_in_the_program(folder: Path, run: Program) -> None:
    options = CHAT | {"adam_iter": 30, "lr": 1.0, "lr_schedule": "constant", "warmup": 0}
    mine = nbllama.tune("toy.gguf", chats(folder), **options, val_split=0.4, eval_every=1,
                        early_stop=2)  # fmt: skip
    more = ["--adam-iter", "30", "--lr", "1.0", "--lr-schedule", "constant", "--warmup", "0",
            "--val-split", "0.4", "--eval-every", "1", "--early-stop", "2"]  # fmt: skip
    done = run(words(folder, *CHAT_WORDS, *more))
    assert mine.iteration < 30
    assert f"ended after iteration {mine.iteration}: {mine.reason}" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 8}, "unknown option 'lora_rank'; did you mean lora_r"),
        ({"batch_size": 8}, "did you mean batch"),
        ({"no_checkpointing": True}, "pass use_checkpointing=False"),
        ({"xyzzy": 1}, "unknown option 'xyzzy'"),
        ({"lr": 1.0, "adam_alpha": 1.0}, "adam_alpha and lr are the same option"),
        ({"ctx": "many"}, "--ctx: 'many' is not allowed; use a whole number from 1"),
        ({"epochs": 1.5}, "--epochs: '1.5' is not allowed"),
        ({"epochs": True}, "--epochs: 'True' is not allowed"),
        ({"lr": float("nan")}, "'nan' is not allowed; use a number above 0"),
        ({"packing": 1}, "packing: '1' is not allowed; use True or False"),
        ({"optimizer": "adam"}, "--optimizer: 'adam' is not allowed; use adamw, sgd or lion"),
        ({"lora_out": object()}, "lora_out: a value of type object is not allowed"),
        ({"template_vars": {"a": {1}}}, "template_vars: the values must be JSON"),
        ({"on_step": 5}, "on_step: '5' is not allowed; pass a function"),
        ({"on_eval": "stop"}, "on_eval: the text 'stop' is not allowed; pass a function"),
        ({"log": True}, "log: 'True' is not allowed; use a file name, or \"\" for no file"),
        ({"lora_out": False}, "lora_out: 'False' is not allowed; use a file name"),
        ({"checkpoint_in": 0}, "checkpoint_in: '0' is not allowed; use a file name"),
        ({"log": "None"}, "--log: 'None' is not allowed; use \"\" for no file, or ./None"),
        ({"report": "C:\\temp\n.html"}, "report: 'C:\\temp\\n.html' contains a control"),
        ({"sample_start": True}, "sample_start: 'True' is not allowed; use a string"),
        ({"train_data": "x"}, "train_data is the second argument"),
        ({"list_archs": True}, "list_archs is only available on the command line"),
        ({"val_split": 0.1, "val_data": "text.txt"}, "--val-data and --val-split"),
        ({"lora_out": "toy.gguf"}, "--lora-out and --model-base are the same file toy.gguf"),
        ({"train_on_prompt": True}, "--train-on-prompt is for records"),
        ({"adam_min_alpha": 1.0}, "--adam-min-alpha 1 is above --adam-alpha 0.001"),
    ],
)
def test_bad_options_are_refused_as_by_the_program(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    before = listing(folder)
    with pytest.raises(UsageError) as e:
        nbllama.tune("toy.gguf", "text.txt", **options, quiet=True)
    assert message in str(e.value)
    assert listing(folder) == before


def test_every_option_of_the_program_is_a_keyword() -> None:
    """Each default given as a keyword reads back as itself."""
    from nbllama.options.finetune.table import FAMILIAR, parse
    from nbllama.options.keywords import keyword_words
    from nbllama.options.values import parse_variables

    for o in OPTIONS:
        if o.dest == "model_base":
            continue
        given = {o.dest: list(o.default) if o.many else o.default}
        options = parse(["--model-base=m", *keyword_words(OPTIONS, given, FAMILIAR)])
        assert getattr(options, o.dest) == o.default, o.dest
    given = {"data_columns": {"prompt": "question"}, "dump": ["1:loss", "2:loss"], "lr": 1e-5 / 3}
    options = parse(["--model-base=m", *keyword_words(OPTIONS, given, FAMILIAR)])
    assert options.data_columns == "prompt=question" and options.adam_alpha == 1e-5 / 3
    assert options.dump == ("1:loss", "2:loss")
    values: dict[str, Any] = {"enable_thinking": False, "effort": "a=b, c", "n": [1, "x"]}
    words = keyword_words(OPTIONS, {"template_vars": values}, FAMILIAR)
    assert parse_variables(parse(["--model-base=m", *words]).template_vars) == values


class Table:
    columns = ("messages",)

    def to_dict(self, how: str) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, UsageError, "the training data are missing"),
        (Table(), UsageError, "pass the rows of the table, data.to_dict('records')"),
        ({"text": "x"}, UsageError, "a list of records"),
        (io.StringIO("x"), UsageError, "data: pass the name of the file instead of an open file"),
        (["toy.gguf"], DataError, "toy.gguf is the name of a file"),
        (['{"text": "x"}'], DataError, "a string that contains JSON"),
        (7, UsageError, "a list of records"),
        ([], DataError, "a list of 0 records contains nothing to train on: it has no records"),
        ([{"text": "x"}, 5], DataError, "a list of 2 records, line 2: a record must be an object"),
        ([{"text": "x"}, {"txt": "x"}], DataError, "a list of 2 records, line 2"),
        ([{"question": "x"}], DataError, "match no format"),
        ("missing.jsonl", DataError, "No such file"),
    ],
)
def test_bad_data(folder: Path, data: Any, error: type[NbllamaError], message: str) -> None:
    with pytest.raises(error) as e:
        nbllama.tune("toy.gguf", data, **SHORT)
    assert message in str(e.value)


def test_bad_models(folder: Path) -> None:
    from nbllama.model import passes

    with pytest.raises(GGUFError, match="missing"):
        nbllama.tune("missing.gguf", "text.txt", **SHORT)
    with pytest.raises(UsageError, match=r"load the model with nbllama\.load_model"):
        nbllama.tune(passes.load_model("toy.gguf"), "text.txt", **SHORT)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pass rms_eps to load_model"):
        nbllama.tune(nbllama.load_model("toy.gguf"), "text.txt", **SHORT, norm_rms_eps=1e-5)
    with pytest.raises(OutputError, match="nowhere"):
        nbllama.tune("toy.gguf", "text.txt", **SHORT, lora_out="nowhere/x.gguf")


def test_a_screen_has_the_methods_of_a_screen(folder: Path) -> None:
    with open(folder / "screen.txt", "w", encoding="utf-8") as file:
        with pytest.raises(UsageError, match=r"screen: .* pass an object with the methods .*note"):
            nbllama.tune("toy.gguf", "text.txt", **SHORT, screen=file)  # type: ignore[arg-type]
        assert not file.closed
    options: dict[str, Any] = SHORT | {"quiet": "no"}
    with pytest.raises(UsageError, match="quiet: the text 'no' is not allowed; use True, False"):
        nbllama.tune("toy.gguf", "text.txt", **options)


def test_texts_in_memory_are_records(folder: Path) -> None:
    texts = ["the hen and her rat", "eat on thin reed", "you hate it"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "t.jsonl").write_text(rows, encoding="utf-8")
    found = [nbllama.tune("toy.gguf", data, **SHORT) for data in (texts, "t.jsonl", iter(texts))]
    assert same_bits(bits(found[0]), bits(found[1])) and same_bits(bits(found[0]), bits(found[2]))


def test_a_file_of_options_and_keywords_that_win(folder: Path) -> None:
    (folder / "run.yaml").write_text("lora-r: 3\nrslora: true\nlora-out: l.gguf\n")
    run = nbllama.tune("toy.gguf", "text.txt", **SHORT, config="run.yaml", lora_r=5)
    assert run.options["lora_r"] == 5 and run.options["rslora"] is True
    assert (folder / "l.gguf").exists()
    with pytest.raises(UsageError, match=r"rslora=False: the file run\.yaml enables this option"):
        nbllama.tune("toy.gguf", "text.txt", **SHORT, config="run.yaml", rslora=False)


def test_a_thread_that_is_not_the_main_one(folder: Path) -> None:
    found: list[Run] = []
    thread = threading.Thread(
        target=lambda: found.append(nbllama.tune("toy.gguf", "text.txt", **SHORT))
    )
    thread.start()
    thread.join()
    assert same_bits(bits(found[0]), bits(nbllama.tune("toy.gguf", "text.txt", **SHORT)))


def test_the_number_of_threads_is_as_before(folder: Path) -> None:
    import numba

    before = numba.get_num_threads()
    for threads in (1, 2):
        nbllama.tune("toy.gguf", "text.txt", **SHORT | {"threads": threads, "dry_run": True})
        assert numba.get_num_threads() == before


def test_a_dry_run_trains_nothing(folder: Path) -> None:
    run = nbllama.tune("toy.gguf", "text.txt", **SHORT, dry_run=True, lora_out="l.gguf")
    assert run.forecast is not None and not run.losses and not (folder / "l.gguf").exists()
    assert not any(b.any() for name, b in bits(run).items() if name.endswith("lora_b"))


def test_ctrl_c_gives_back_the_run_so_far(folder: Path) -> None:
    def press(record: StepRecord) -> None:
        if record.iter == 2:
            os.kill(os.getpid(), signal.SIGINT)

    files: dict[str, Any] = dict(checkpoint_out="c-ITERATION.gguf", lora_out="l-ITERATION.gguf")
    with pytest.warns(
        UserWarning, match="after iteration 2 of 4; pass checkpoint_in='c-LATEST.gguf'"
    ):
        half = nbllama.tune("toy.gguf", "text.txt", **SHORT, **files, on_step=press)
    assert half.interrupted and half.iteration == 2 and "signal" in half.reason
    assert (folder / "l-2.gguf").exists() and half.paths["adapter"] == "l-LATEST.gguf"
    rest = nbllama.tune(
        "toy.gguf", "text.txt", **SHORT | {"adam_iter": 2}, checkpoint_in="c-LATEST.gguf"
    )
    assert same_bits(bits(rest), bits(nbllama.tune("toy.gguf", "text.txt", **SHORT)))


def test_ctrl_c_before_the_first_iteration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **more: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("nbllama.train.run.session.load_data", load)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        nbllama.tune("toy.gguf", "text.txt", **SHORT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_is_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loud = {name: value for name, value in SHORT.items() if name != "quiet"}
    for quiet in (None, True):  # neither a terminal nor a notebook
        run = nbllama.tune("toy.gguf", "text.txt", **loud, quiet=quiet)
        assert capfd.readouterr() == ("", "")
    nbllama.tune("toy.gguf", "text.txt", **loud, quiet=False)
    out, err = capfd.readouterr()
    assert out == "" and sum(line.startswith("iter=") for line in err.splitlines()) == 4
    assert "adapter " in err and "seed" in err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = nbllama.tune("toy.gguf", "text.txt", **loud, checkpoint_in="none.gguf")
    assert run.notes == ["there is no checkpoint none.gguf; starting from the beginning"]
