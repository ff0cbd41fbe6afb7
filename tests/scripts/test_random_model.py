"""scripts/tools/make_random_model: files of any size that llama.cpp and the package can read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbllama.gguf_io import TENSOR_TYPES, open_gguf
from nbllama.model.passes import load_model
from tests.conftest import ROOT
from tests.oracle.model import LlamaModel

SMALL = "--n-embd 256 --n-layer 2 --n-head 4 --n-head-kv 2 --n-ff 512 --n-vocab 300".split()


def make(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """From another folder and without PYTHONPATH, as other scripts and people start it."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "tools" / "make_random_model.py"),
        str(path),
        *words,
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=path.parent)


@pytest.mark.parametrize(
    "words",
    [["--type", "Q3_K"], ["--type", "F16", "--tied"], ["--type", "Q2_K", "--mix", "--n-ff", "320"]],
)
def test_llama_cpp_and_the_package_agree_on_the_file(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "a.gguf"
    done = make(path, *SMALL, *words)
    assert done.returncode == 0, done.stderr
    assert f"{path.stat().st_size / 1e6:.0f} MB" in done.stdout
    with LlamaModel(path) as theirs:
        logits = theirs.logits([1, 7, 9])
    from nbllama.generation.session import Session

    ours = Session(load_model(path), None, 8).feed([1, 7, 9])
    assert 0.2 < np.std(ours) < 5  # as large as in a trained model, neither flat nor overflowing
    assert np.abs(ours - logits[-1]).max() < 0.05 * np.abs(ours).max()


def test_a_shape_names_its_architecture(tmp_path: Path) -> None:
    for words, arch in ((["--shape", "lfm2-1.2b"], "lfm2"), (["--arch", "qwen3"], "qwen3")):
        done = make(tmp_path / "a.gguf", *words, "--sparse", "--n-layer", "2")
        assert done.returncode == 0, done.stderr
        with open_gguf(tmp_path / "a.gguf") as f:
            assert f.metadata["general.architecture"] == arch


def test_a_mix_has_the_types_of_the_quantiser(tmp_path: Path) -> None:
    """Rows of 320 are not whole blocks of 256."""
    words = ["--type", "Q2_K", "--n-ff", "320"]
    for more, down, out in (([], "Q4_0", "Q2_K"), (["--mix"], "Q4_0", "Q6_K")):
        assert make(tmp_path / "a.gguf", *SMALL, *words, *more).returncode == 0
        with open_gguf(tmp_path / "a.gguf") as f:
            types = {name: TENSOR_TYPES[t.type_id].name for name, t in f.tensors.items()}
        assert types["blk.0.ffn_down.weight"] == down and types["output.weight"] == out
        assert types["blk.1.attn_q.weight"] == "Q2_K"


@pytest.mark.parametrize(
    "arch",
    [
        "qwen2",
        "phi2",
        "cohere2",
        *(pytest.param(a, marks=pytest.mark.slow) for a in ("phi3", "glm4", "olmo2", "apertus")),
    ],
)
def test_another_architecture_has_its_tensors_and_keys(tmp_path: Path, arch: str) -> None:
    assert make(tmp_path / "a.gguf", *SMALL, "--type", "F16", "--arch", arch).returncode == 0
    load_model(tmp_path / "a.gguf")
    with LlamaModel(tmp_path / "a.gguf") as theirs:
        assert 0.1 < np.std(theirs.logits([1, 7, 9])) < 5


def test_the_seed_decides_the_bytes_and_a_sparse_file_has_none(tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / f"{x}.gguf" for x in "abcd")
    for path, words in ((a, []), (b, []), (c, ["--seed", "1"]), (d, ["--sparse"])):
        assert make(path, *SMALL, "--type", "Q4_0", *words).returncode == 0
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()
    assert d.stat().st_size == a.stat().st_size
    matrix = load_model(d).matrices["output.weight"]
    assert matrix.shape == (300, 256) and not matrix.raw.any()


def test_sizes_that_make_no_model_leave_no_file(tmp_path: Path) -> None:
    for words in (["--n-embd", "250", "--type", "Q4_0"], ["--n-head-kv", "3"], ["--n-ff", "0"]):
        done = make(tmp_path / "a.gguf", *SMALL, *words)
        assert done.returncode != 0 and "error: " in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []
