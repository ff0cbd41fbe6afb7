"""`scripts/finetune.sh`: variables in, one command out, a log in UTF-8, the program's exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.toy_models import make_llama
from tests.conftest import ROOT
from tests.train.toy_runs import toy_text

SH = shutil.which("dash") or shutil.which("sh")
pytestmark = pytest.mark.skipif(SH is None, reason="the script needs a POSIX shell")
SCRIPT = ROOT / "scripts" / "finetune.sh"
NAMES = ("dataset", "data_dir", "model_dir", "model_name", "cmd", "adamiter", "inter")


def environment(folder: Path, body: str, **variables: str) -> dict[str, str]:
    """Without the variables of the user; `python` is a script that records its call."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    left = {name: value for name, value in os.environ.items() if name not in NAMES}
    return left | {"PYTHON": str(python), "LC_ALL": "C"} | variables


def run(
    folder: Path, *args: str, body: str = 'for w; do echo "[$w]"; done', **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SH), str(SCRIPT), *args],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env=environment(folder, body, **variables),
        timeout=60,
    )


def words(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line[1:-1] for line in done.stdout.splitlines()]


def test_the_command(tmp_path: Path) -> None:
    name = "chinese llama-2 中文.Q2_K"
    done = run(tmp_path, dataset="slqm", data_dir="../", model_dir="../x", model_name=name)
    assert (done.returncode, done.stderr) == (0, "")
    assert words(done) == [
        "-m", "nbllama.finetune", "--model-base", f"../x/{name}.gguf",
        "--train-data", "../slqm.txt", "--checkpoint-in", f"chk-{name}-LATEST.gguf",
        "--checkpoint-out", f"chk-{name}-ITERATION.gguf",
        "--lora-out", f"lora-{name}-ITERATION.gguf", "--adam-iter", "30",
    ]  # fmt: skip
    assert (tmp_path / f"{name}.log").read_text(encoding="utf-8") == done.stdout


def test_more_arguments_other_data_and_the_other_program(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").touch()
    done = run(
        tmp_path, "--ctx", "64", "a b", model_name="m", dataset="d", cmd="finetune-bc", adamiter="7"
    )
    assert words(done)[-5:] == ["--adam-iter", "7", "--ctx", "64", "a b"]
    assert words(done)[5] == "./d.jsonl"


def test_exit_code_and_both_streams_are_the_program_s(tmp_path: Path) -> None:
    done = run(tmp_path, body="echo out; echo 中文 >&2; exit 5", model_name="m", inter="1")
    assert (done.returncode, done.stdout) == (5, "out\n中文\n")
    again = run(tmp_path, body="echo more", model_name="m")
    assert again.returncode == 0
    assert (tmp_path / "m.log").read_text(encoding="utf-8") == "out\n中文\nmore\n"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "which model?"),
        ({"model_name": "m", "cmd": "train"}, "cmd is 'train'"),
        ({"model_name": "m", "inter": "yes"}, "inter is 'yes'"),
    ],
)
def test_variables_that_cannot_be(tmp_path: Path, variables: dict[str, str], said: str) -> None:
    done = run(tmp_path, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


def test_merge_and_chat_afterwards(tmp_path: Path) -> None:
    done = run(tmp_path, body='echo "$@"', model_name="m", inter="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "-m nbllama.export_lora --model-base ./m.gguf --lora lora-m-LATEST.gguf"
        " --model-out m-merged.gguf",
        "-m nbllama.main -m m-merged.gguf -cnv",
    ]


@pytest.mark.parametrize("fails", ["finetune", "export_lora", "main"])
def test_the_first_program_that_fails_is_the_last(tmp_path: Path, fails: str) -> None:
    body = f'echo "$2"; case "$2" in *.{fails}) exit 5;; esac'
    done = run(tmp_path, body=body, model_name="m", inter="1")
    assert done.returncode == 5
    assert done.stdout.splitlines()[-1] == f"nbllama.{fails}"


@pytest.mark.slow
def test_training_merging_and_a_chat_by_the_real_programs(tmp_path: Path) -> None:
    make_llama(tmp_path / "模型.gguf", types="Q8_0", n_vocab=300)
    toy_text(tmp_path / "text.txt")
    left = {name: value for name, value in os.environ.items() if name not in NAMES}
    variables = {"dataset": "text", "model_name": "模型", "adamiter": "1", "inter": "1"}
    done = subprocess.run(
        [str(SH), str(SCRIPT), "--ctx", "16", "--batch", "2"],
        input="say the hen\nagain\n",
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=left | {"PYTHON": sys.executable, "LC_ALL": "C"} | variables,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "模型.log").read_text(encoding="utf-8")
    assert "iter=     1" in log and "模型-merged.gguf" in log
    assert "no chat template" in done.stderr and "tokens/s" in done.stderr
    said = done.stdout[len(log) :]
    assert done.stdout.startswith(log) and said.strip()


def test_ctrl_c_reaches_the_program_and_its_last_words_the_log(tmp_path: Path) -> None:
    body = "trap 'echo saved; exit 130' INT; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [str(SH), str(SCRIPT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path, body, model_name="m"),
        start_new_session=True,
        # a shell that was started with SIGINT ignored, as in the background, cannot trap it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = tmp_path / "m.log"
    until = time.monotonic() + 30
    while time.monotonic() < until and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "ready\nsaved\n", "")
    assert log.read_text() == out


def test_the_real_program_answers_through_it(tmp_path: Path) -> None:
    left = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [str(SH), str(SCRIPT)],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=left | {"PYTHON": sys.executable, "LC_ALL": "C", "model_name": "没有"},
        timeout=120,
    )
    assert done.returncode == 2
    assert "没有.gguf" in done.stdout
    assert (tmp_path / "没有.log").read_text(encoding="utf-8") == done.stdout
    assert done.stderr == ""
