"""The forecast of a session's memory: compared with its arrays and the system, and printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama import main
from nbllama.generation.memory import session_memory
from nbllama.generation.session import Session
from nbllama.ops.attention import tiles as attention_tiles
from tests.conftest import ROOT
from tests.export.merge_models import refusal
from tests.train.toy_runs import toy_adapter, toy_model

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def child(*words: object) -> str:
    """Standard output of a Python process in the repository."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize("options", [{}, dict(n_head_kv=4), dict(qk_norm=True, post_norms=True)])
def test_a_session_s_arrays_are_those_of_the_forecast(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.get("qk_norm"):
        options = options | dict(arch="gemma3")
    model = toy_model(tmp_path, **options)
    adapter = toy_adapter(model) if options else None
    scratch = attention_tiles.Scratch()
    monkeypatch.setattr("nbllama.ops.attention.attention.SCRATCH", scratch)
    session = Session(model, adapter, 100, step=40)
    for _ in range(2):
        session.feed(np.arange(3, 43))
    session.feed(np.arange(3, 23))  # the context is full
    told = session_memory(model, adapter, 100, step=40, threads=numba.get_num_threads())
    assert told.cache == session.cache.k.nbytes + session.cache.v.nbytes
    assert told.activations == session._acts.nbytes
    assert told.scratch >= scratch.own.nbytes + scratch.common.nbytes > 0
    assert told.private == told.cache + told.arena
    # a step longer than the context
    assert session_memory(model, adapter, 40, step=512, threads=1).activations == told.activations


def test_the_forecast_is_printed_and_nothing_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_llama(tmp_path / "toy.gguf", n_layer=2, n_ctx_train=5000)
    words = ["-m", str(tmp_path / "toy.gguf"), "-t", "1", "-c", "5000"]
    monkeypatch.setattr("nbllama.cli.chat.run.Predictor", None)  # as nothing is to be predicted
    for more in (["-p", "the"], ["-cnv"], []):
        assert main.main([*words, *more, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "KV cache       3 MB for 5000 tokens" in lines  # 2 layers, 2 heads of 16, two arrays
        assert any(line.startswith("private memory ") for line in lines)
    monkeypatch.setattr("nbllama.cli.chat.run.available_memory", lambda: 1_000_000)
    needs = "error: a context of 5000 tokens needs"
    for more in (["--dry-run"], []):
        code, line = refusal(main.main, [*words, "-p", "the", *more], capsys)
        assert code == 4 and line.startswith(needs) and "--ctx-size" in line, line
    code, line = refusal(main.main, [*words, "--dry-run", "--dump", "*"], capsys)
    assert code == 2 and "--dump" in line


@LINUX
def test_a_file_larger_than_memory_has_a_forecast(tmp_path: Path) -> None:
    """70e9 weights: names and sizes, with a hole instead of the data."""
    path = tmp_path / "70b.gguf"
    maker = ROOT / "scripts" / "tools" / "make_random_model.py"
    child(maker, path, "--shape", "70b", "--type", "Q3_K", "--sparse")
    assert path.stat().st_size > 29e9 and path.stat().st_blocks * 512 < 50e6
    code = (
        "import sys; from nbllama import main; from nbllama.system.memory import peak_resident\n"
        "assert main.main(sys.argv[1:]) == 0; print(peak_resident())"
    )
    *lines, peak = child("-c", code, "-m", path, "--dry-run", "-t", "2").splitlines()
    assert lines[0].startswith("model file     29.64 GB, mapped")
    # 80 layers, 8 KV heads of 128, float32, keys and values
    assert lines[1] == "KV cache       2.68 GB for 4096 tokens"
    assert int(peak) < 400e6, peak  # no weight was read


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("n_ctx", [512, 2048])
def test_private_memory_is_what_was_forecast(demo_model: Path, tmp_path: Path, n_ctx: int) -> None:
    """Within a tenth, with a full context; the weights' pages are the file's."""
    toy = tmp_path / "toy.gguf"
    make_llama(toy, types={"*": "Q4_1", "token_embd": "Q8_0"}, tied=True)
    seen = json.loads(child("-m", "tests.generation.memory_child", toy, demo_model, n_ctx))
    took = seen["after"] - seen["before"]
    print(f"{n_ctx}: {took / 1e6:.1f} MB, forecast {seen['private'] / 1e6:.1f} MB: {seen}")
    assert 0.9 < took / seen["private"] < 1.1, seen
    assert seen["private"] < 0.5 * demo_model.stat().st_size or n_ctx > 512
    assert seen["mapped"] > 0.95 * demo_model.stat().st_size  # read, and not copied
