"""Refusals before training, with one line and nothing written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.gguf_io import open_gguf
from nbllama.model.passes import Model
from tests.train.runs import Run, listing, refused
from tests.train.toy_runs import Child, Done, toy_text, words


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
    monkeypatch.setattr("nbllama.train.run.session.load_model", _no_model)
    if name == "dir/":
        (folder / "dir").mkdir()
        (folder / "dir" / "adapter_config.json").mkdir()  # otherwise --lora-out can be a folder
    refused(run(words(folder, option, name)), 3, name.split("/")[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbllama.train.run.session.load_model", _no_model)
    out = folder / "out"
    out.mkdir(mode=0o555)
    refused(run(words(folder, "--lora-out", str(out / "x.gguf"))), 3, "Permission denied")


def test_a_folder_that_may_not_be_written(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root ignores modes: the error of the system itself."""
    monkeypatch.setattr("nbllama.train.run.session.load_model", _no_model)
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
        (["--checkpoint-out", "a-ITERATION/x.gguf"], ["ITERATION must be in the file name"]),
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
            refused(
                run(args), 3, "another run is writing to it", f"process {first.process.pid} on "
            )
        assert first.process.poll() is None
    finally:
        first.kill()
    assert run(words(folder)).code == 0  # the kernel released the dead process's lock


def test_not_enough_memory(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbllama.train.forecast.available_memory", lambda: 100_000)
    done = run(words(folder))
    line = refused(done, 4, "but only 0 MB is available")
    assert "smaller --batch" in line and "compil" not in done.out
    assert not list(folder.glob("chk-*"))


def test_an_address_limit(folder: Path) -> None:
    """`ulimit -v`: no forecast includes it, the allocation itself fails."""
    toy_text(folder / "text.txt", 300_000)
    args = words(folder, "--batch", "64", ctx=100_000)
    code = (
        "import resource, sys; from nbllama.finetune import main\n"
        "import nbllama.train.run.session\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({6 << 30}, {6 << 30}))\n"
        f"sys.exit(main({args!r}))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(nbllama.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env
    )
    refused(Done(done.returncode, done.stdout, done.stderr), 4, "not enough memory")
