"""`python -m nbllama.finetune`: what it says, what it writes, and how it ends.

Where a test needs a process of its own (limits, locale, signals) it starts one; the others call
`main` here, which is the same program without its start-up.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.checkpoint import load_checkpoint
from nbllama.cli.options import PROG
from nbllama.files import RunLock
from nbllama.finetune import main
from nbllama.gguf_io import open_gguf
from nbllama.model import Model
from nbllama.train import Trainer
from tests.toy_models import make_llama
from tests.toy_runs import (
    Child,
    Done,
    file_bits,
    log_rows,
    run_child,
    toy_chat,
    toy_text,
    words,
)

Run = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a toy model and a text, which is also the current one."""
    make_llama(tmp_path / "toy.gguf")
    toy_text(tmp_path / "text.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the program here; how it ended."""

    def call(args: list[str]) -> Done:
        capfd.readouterr()
        code = main(args)
        return Done(code, *capfd.readouterr())

    yield call


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def refused(done: Done, code: int, *parts: str) -> str:
    """Assert one line on standard error with all `parts`, the exit code, and no more; the line."""
    assert done.code == code, done
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and "Traceback" not in done.out
    for part in parts:
        assert part in line, line
    return line


# What it writes


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
    # the adapter beside a checkpoint is that of the checkpoint
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
    assert len(list(folder.glob("lora-*.gguf"))) == 5  # adapters are results: they stay


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


def test_chat_through_the_template(folder: Path, run: Run) -> None:
    make_llama(folder / "toy.gguf", tokenizer="bpe")
    toy_chat(folder / "chat.jsonl")
    more = ["--train-data", str(folder / "chat.jsonl"), "--epochs", "2", "--adam-iter", "99"]
    done = run(words(folder, *more, "--batch", "4", "--log", "log.jsonl", ctx=200))
    assert done.code == 0, done
    assert re.search(r"(?m)^data +chat$", done.out) and re.search(r"(?m)^samples +6$", done.out)
    rows = log_rows(folder / "log.jsonl")
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1]  # 4 and then 2 samples, twice
    assert load_checkpoint(folder / "chk-LATEST.gguf").sample_count == 12


def test_a_folder_of_prompts_packed_and_continued(folder: Path, run: Run) -> None:
    """With --packing a batch is 2 x 24 tokens; a run in two parts has the bits of one in one."""
    data = folder / "data"
    data.mkdir()
    rows = [{"question": f"say {i}:", "answer": "the hen " * (1 + i % 5)} for i in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "train.jsonl").write_text(text + "{broken\n", encoding="utf-8")
    more = ["--train-data", str(data), "--data-columns", "prompt=question,completion=answer"]
    more += ["--packing", "--skip-bad", "--epochs", "2", "--adam-iter", "9999", "--save-every", "3"]
    done = run(words(folder, *more, "--log", "log.jsonl", ctx=24))
    assert done.code == 0, done
    assert "1 of 21 records are bad and were skipped; the first: line 21: broken JSON" in done.out
    whole = log_rows(folder / "log.jsonl")
    assert all(row["tokens"] <= 48 for row in whole) and {row["epoch"] for row in whole} == {0, 1}
    n = len(whole)
    assert 4 < n < 40  # samples do share batches
    last = load_checkpoint(folder / f"chk-{n}.gguf")
    assert last.sample_count == 40 and last.identity.settings["packing"] is True

    more += ["--checkpoint-in", str(folder / "chk-3.gguf"), "--cos-decay-steps", "1000"]
    before = (folder / f"lora-{n}.gguf").read_bytes()
    (folder / f"lora-{n}.gguf").unlink()
    more[more.index("--adam-iter") + 1] = str(n - 3)
    done = run(words(folder, *more, "--log", "more.jsonl", ctx=24))
    refused(done, 5, "cos_decay_steps was")
    done = run(words(folder, *more[:-2], "--log", "more.jsonl", ctx=24))
    assert done.code == 0, done
    assert (folder / f"lora-{n}.gguf").read_bytes() == before
    refused(
        run(words(folder, *more[:-2], "--no-packing", ctx=24)), 5, "packing was True, now False"
    )


def test_the_day_of_a_template_is_kept(folder: Path, run: Run) -> None:
    """A template that writes the date: a run that goes on another day has the same tokens."""
    make_llama(folder / "toy.gguf", tokenizer="bpe")
    toy_chat(folder / "chat.jsonl")
    (folder / "dated.jinja").write_text(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m['content'] }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    more = ["--train-data", str(folder / "chat.jsonl"), "--chat-template", "dated.jinja"]
    day = ["--template-date", "2024-02-29"]
    assert run(words(folder, *more, *day, ctx=99)).code == 0
    first = load_checkpoint(folder / "chk-LATEST.gguf")
    assert first.identity.settings["template_date"] == "2024-02-29"
    more += ["--checkpoint-in", str(folder / "chk-LATEST.gguf")]
    done = run(words(folder, *more, ctx=99))
    assert done.code == 0, done
    assert load_checkpoint(folder / "chk-8.gguf").identity.data == first.identity.data
    other = run(words(folder, *more, "--template-date", "2024-03-01", ctx=99))
    refused(other, 5, "the training data are others", "template_date was 2024-02-29, now 2024-03")


@pytest.mark.parametrize(
    ("content", "more", "part"),
    [
        ("plain text", ["--packing"], "--packing is for records, and "),
        ("plain text", ["--skip-bad"], "--skip-bad is for records, and "),
        ("plain text", ["--train-on-prompt"], "--train-on-prompt is for records, and "),
        ('{"text": "the"}', ["--sample-start", "x"], "--sample-start is for plain text, and "),
        ('{"text": "the"}', ["--data-format", "nix"], "--data-format: 'nix' is not allowed"),
        ('{"text": "the"}', ["--template-date", "2024-02-30"], "give a day as YYYY-MM-DD"),
        ('{"text": "the"}', ["--on-long", "refuse", "--ctx", "1"], "line 1: 2 tokens, longer than"),
    ],
)
def test_options_that_do_not_go_with_the_data(
    folder: Path, run: Run, content: str, more: list[str], part: str
) -> None:
    (folder / "data").write_text(content, encoding="utf-8")
    refused(run(words(folder, "--train-data", str(folder / "data"), *more)), 2, part)


def test_half_written_files_of_killed_runs_are_swept(folder: Path, run: Run) -> None:
    dead = [f".chk-{s}.gguf.0123456789ab.nbllama-tmp" for s in ("2", "17", "LATEST")]
    dead.append(".lora-4.gguf.0123456789ab.nbllama-tmp")
    kept = [".other-2.gguf.0123456789ab.nbllama-tmp", ".chk-x.gguf.0123456789ab.nbllama-tmp"]
    for name in dead + kept:
        (folder / name).write_bytes(b"half")
    assert run(words(folder)).code == 0
    assert {p.name for p in folder.glob(".*")} == set(kept)


def test_threads_change_no_bit(folder: Path, run: Run) -> None:
    found = []
    for threads in ("1", "2"):
        done = run(words(folder, "--threads", threads, "--log", f"log{threads}"))
        assert done.code == 0 and re.search(rf"(?m)^threads +{threads}$", done.out)
        losses = [row["loss"] for row in log_rows(folder / f"log{threads}")]
        found.append((losses, file_bits(folder / "chk-4.gguf")))
    assert found[0] == found[1]


# What it refuses before training


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--adam-itr", "3"], ["--adam-itr", "--adam-iter"]),
        (["--warmup-steps", "3"], ["--warmup-steps", "--warmup"]),
        (["--ctx", "many"], ["--ctx", "many"]),
        (["--ctx", "0"], ["--ctx", "0"]),
        (["--ctx"], ["--ctx"]),
        (["--adam-alpha", "nan"], ["--adam-alpha", "nan"]),
        (["toy.gguf"], ["toy.gguf"]),
        (["--adam-min-alpha", "1"], ["--adam-min-alpha 1", "--adam-alpha 0.001"]),
        (["--rank-wq", "3", "--lora-r", "0"], ["--lora-r"]),
    ],
    ids=lambda x: " ".join(x),
)
def test_bad_options(folder: Path, run: Run, more: list[str], parts: list[str]) -> None:
    before = listing(folder)
    refused(run(words(folder, *more)), 2, *parts)
    assert listing(folder) == before


def test_nothing_to_train(folder: Path, run: Run) -> None:
    ranks = [f"--rank-{t}=0" for t in ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "out", "tok-embd")]
    refused(run(words(folder, *ranks)), 2, "nothing to train")


def test_a_missing_model(folder: Path, run: Run) -> None:
    refused(run(words(folder, "--model-base", "no.gguf")), 2, "no.gguf")
    refused(run([]), 2, "--model-base")
    assert {p.name for p in folder.iterdir()} == {"toy.gguf", "text.txt"}


def test_a_damaged_model(folder: Path, run: Run) -> None:
    content = (folder / "toy.gguf").read_bytes()
    (folder / "toy.gguf").write_bytes(content[:-1000])
    refused(run(words(folder)), 2, "toy.gguf")


@pytest.mark.parametrize(
    ("content", "parts"),
    [(None, ["No such file"]), (b"", ["empty"]), (b"caf\xe9 au lait", ["not UTF-8", "offset 3"])],
)
def test_bad_data(folder: Path, run: Run, content: bytes | None, parts: list[str]) -> None:
    data = folder / "data.txt"
    if content is not None:
        data.write_bytes(content)
    refused(run(words(folder, "--train-data", str(data))), 2, "data.txt", *parts)


@pytest.mark.parametrize(
    "tensor", ["blk.1.ffn_up.weight", "token_embd.weight", "output_norm.weight"]
)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_weight_that_is_not_finite(folder: Path, run: Run, tensor: str, value: float) -> None:
    with open_gguf(folder / "toy.gguf") as f:
        offset = f.tensors[tensor].offset
    with open(folder / "toy.gguf", "r+b") as file:
        file.seek(offset + 40)
        file.write(np.float32(value).tobytes())
    refused(run(words(folder)), 2, tensor)
    assert not list(folder.glob("chk-*"))


def _no_model(path: Any) -> Model:
    raise AssertionError("the model is opened before the outputs are checked")


@pytest.mark.parametrize("option", ["--checkpoint-out", "--lora-out", "--log"])
@pytest.mark.parametrize("name", ["missing/x-ITERATION.gguf", "text.txt/x.gguf", "dir/"])
def test_an_output_that_cannot_be_written(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    monkeypatch.setattr("nbllama.cli.session.load_model", _no_model)
    if name == "dir/":
        (folder / "dir").mkdir()
        (folder / "dir" / "adapter_config.json").mkdir()  # else --lora-out may be a folder
    refused(run(words(folder, option, name)), 3, name.split("/")[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbllama.cli.session.load_model", _no_model)
    out = folder / "out"
    out.mkdir(mode=0o555)
    refused(run(words(folder, "--lora-out", str(out / "x.gguf"))), 3, "Permission denied")


def test_a_folder_that_may_not_be_written(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What root cannot see by modes: the system's refusal itself."""
    monkeypatch.setattr("nbllama.cli.session.load_model", _no_model)
    opened = os.open

    def fail(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", fail)
    refused(run(words(folder)), 3, "Read-only file system", "chk-LATEST.gguf")


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (
            ["--checkpoint-out", "x-ITERATION.gguf", "--lora-out", "x-ITERATION.gguf"],
            ["--lora-out"],
        ),
        (["--checkpoint-out", "toy.gguf"], ["--model-base"]),
        (["--lora-out", "./toy.gguf"], ["--model-base"]),
        (["--lora-out", "link.gguf"], ["--model-base"]),
        (["--log", "text.txt"], ["--log", "--train-data"]),
        (["--checkpoint-out", "toyITERATION.gguf", "--model-base", "toy7.gguf"], ["toy7.gguf"]),
        (["--checkpoint-out", "a-ITERATION/x.gguf"], ["ITERATION must stand in the file's name"]),
        (["--lora-out", "x.safetensors"], ["x.safetensors", "folder"]),
    ],
    ids=lambda x: " ".join(x),
)
def test_outputs_that_would_destroy_something(
    folder: Path, run: Run, more: list[str], parts: list[str]
) -> None:
    (folder / "link.gguf").symlink_to("toy.gguf")
    before = listing(folder)
    refused(run(words(folder, *more)), 2, *parts)
    assert listing(folder) == before


def test_a_second_run_on_the_same_output(folder: Path, run: Run) -> None:
    first = Child(words(folder, "--adam-iter", "100000", "--save-every", "50"), folder)
    first.wait_for((folder / "chk-LATEST.gguf").exists)
    try:
        for option in ("--checkpoint-out", "--lora-out"):
            args = words(folder, option, "other-ITERATION.gguf")
            refused(run(args), 3, "another run is writing it", f"process {first.process.pid} on ")
        assert first.process.poll() is None
    finally:
        first.kill()
    assert run(words(folder)).code == 0  # the kernel gave the dead one's lock back


def test_not_enough_memory(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbllama.forecast.available_memory", lambda: 100_000)
    done = run(words(folder))
    line = refused(done, 4, "and 0 MB are available")
    assert "smaller --batch" in line and "compil" not in done.out
    assert not list(folder.glob("chk-*"))


def test_an_address_limit(folder: Path) -> None:
    """`ulimit -v`: no forecast sees it, the allocation itself fails."""
    toy_text(folder / "text.txt", 300_000)
    args = words(folder, "--batch", "64", ctx=100_000)
    code = (
        "import resource, sys; from nbllama.finetune import main; import nbllama.cli.session\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({6 << 30}, {6 << 30}))\n"
        f"sys.exit(main({args!r}))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(nbllama.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env
    )
    refused(Done(done.returncode, done.stdout, done.stderr), 4, "not enough memory")


# What happens while it trains


def test_steps_that_are_not_finite(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations 3 and 5 are skipped and said, and the run goes on."""
    loss = Model.loss
    calls = 0

    def spoiled(self: Model, *args: Any, **more: Any) -> float:
        nonlocal calls
        calls += 1
        return math.nan if calls - warm in (3, 5) else loss(self, *args, **more)

    monkeypatch.setattr(Trainer, "forecast_seconds", lambda self: 1.0)
    warm = 1  # of `compile`
    monkeypatch.setattr(Model, "loss", spoiled)
    done = run(words(folder, "--adam-iter", "6", "--save-every", "1", "--log", "log"))
    assert done.code == 0, done
    rows = log_rows(folder / "log")
    assert [row["iter"] for row in rows if row["skipped"]] == [3, 5]
    assert rows[2]["loss"] is None and rows[2]["grad_norm"] is None and rows[3]["loss"] > 0
    assert done.out.count("skipped: loss or gradient not finite") == 2
    states = [load_checkpoint(folder / f"chk-{i}.gguf") for i in (2, 3, 4)]
    for name, p in states[0].adapter.parameters().items():
        assert (states[1].adapter.parameters()[name] == p).all()
        assert (states[1].m[name] == states[0].m[name]).all()
        assert (states[1].v[name] == states[0].v[name]).all()
    assert not (states[2].m["output.weight.lora_b"] == states[1].m["output.weight.lora_b"]).all()


def test_a_run_that_diverges_ends(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step, bits = Trainer.step, {}

    def spoiled(self: Trainer, *args: Any) -> Any:
        if self.iteration == 5:
            bits.update(file_bits(folder / "chk-LATEST.gguf"))
            self.adapter.pairs["output.weight"].b[7, 0] = np.nan
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", spoiled)
    done = run(words(folder, "--adam-iter", "50", "--save-every", "4"))
    refused(done, 7, "not finite in 3 iterations in a row (last: 8)", "--adam-alpha")
    assert done.out.count("skipped: loss") == 3
    state = load_checkpoint(folder / "chk-LATEST.gguf")
    assert state.iteration == 4 and file_bits(folder / "chk-LATEST.gguf") == bits
    assert not (folder / "chk-8.gguf").exists()
    assert nbllama.load_adapter(
        folder / "lora-LATEST.gguf", nbllama.load_model(folder / "toy.gguf")
    ).pairs


def test_a_broken_state_is_never_saved(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def spoiled(self: Trainer, *args: Any) -> Any:
        result = step(self, *args)
        if self.iteration == 4:
            self.adapter.pairs["output.weight"].b[7, 0] = np.inf
        return result

    monkeypatch.setattr(Trainer, "step", spoiled)
    for checkpoint in ("chk-ITERATION.gguf", ""):
        done = run(words(folder, "--save-every", "2", "--checkpoint-out", checkpoint))
        refused(done, 7, "output.weight.lora_b", "not")
        assert {p.name for p in folder.glob("lora-*.gguf")} == {"lora-2.gguf", "lora-LATEST.gguf"}


def _count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of each iteration when it begins."""
    steps: list[int] = []
    step = Trainer.step

    def counted(self: Trainer, *args: Any) -> Any:
        steps.append(self.iteration + 1)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", counted)
    return steps


def _full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    fsync = os.fsync

    def full(fd: int) -> None:
        if is_full():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_does_not_stop_training(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = _count_steps(monkeypatch)
    _full_disk(monkeypatch, lambda: 3 < len(steps) < 7)
    done = run(words(folder, "--adam-iter", "9", "--save-every", "2"))
    assert done.code == 0 and not done.err
    # tried at 4 and 6, not at every iteration between
    assert done.out.count("not saved: ") == 2
    assert done.out.count("No space left on device; training goes on") == 2
    found = {p.name for p in folder.glob("chk-*")}
    assert found == {f"chk-{s}.gguf" for s in ("2", "8", "9", "LATEST")}
    assert not list(folder.glob(".*tmp"))


def test_a_full_disk_at_the_end(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _count_steps(monkeypatch)
    _full_disk(monkeypatch, lambda: len(steps) == 4)
    done = run(words(folder, "--save-every", "3"))
    refused(done, 6, "the last save failed", "lora-4.gguf", "No space left on device")
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 3


def test_a_file_size_limit(folder: Path) -> None:
    """The system's own refusal in the middle of a write."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    args = words(folder, "--save-every", "2")
    done = subprocess.run(
        [sys.executable, "-m", "nbllama.finetune", *args],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(nbllama.__file__).parents[1])},
        preexec_fn=limit,
    )
    refused(Done(done.returncode, done.stdout, done.stderr), 6, "chk-4.gguf", "File too large")
    assert "chk-2.gguf: cannot be written: File too large; training goes on" in done.stdout
    assert not list(folder.glob("chk-*")) and not list(folder.glob(".*tmp"))


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


def test_a_reader_that_goes_away(folder: Path) -> None:
    """`| head -1`: the run is worth more than its lines."""
    child = Child(words(folder, "--adam-iter", "6", "--log", "log"), folder)
    assert child.process.stdout is not None
    first = child.process.stdout.readline()
    child.process.stdout.close()
    assert first and child.process.wait(300) == 0
    assert child.process.stderr is not None and child.process.stderr.read() == b""
    child.process.stderr.close()
    assert len(log_rows(folder / "log")) == 6
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 6


def test_a_log_that_fails_does_not_stop_training(folder: Path, run: Run) -> None:
    done = run(words(folder, "--log", "/dev/full"))
    assert done.code == 0 and "--log /dev/full: No space left on device" in done.out
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 4


def test_a_model_that_changes_meanwhile(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained on is not known any more: nothing is saved."""
    step = Trainer.step

    def touched(self: Trainer, *args: Any) -> Any:
        if self.iteration == 1:
            os.utime(folder / "toy.gguf", ns=(1, 1))
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", touched)
    refused(run(words(folder, "--save-every", "2")), 2, "toy.gguf", "changed")
    assert not list(folder.glob("chk-*"))


def test_help_is_quick_and_names_every_option() -> None:
    done = run_child(["--help"], Path.cwd())
    assert done.code == 0 and PROG in done.out
    for option in ("--model-base", "--rank-w3", "--use-checkpointing", "--keep-last", "--force"):
        assert option in done.out
