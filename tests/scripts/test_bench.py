"""scripts/bench: every part runs, and an impossible figure is an error."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from examples.toy_models import make_llama
from tests.conftest import ROOT

PARTS = (
    "step", "profile", "context", "attention", "loss", "matmul", "vectors", "models", "peer",
    "jobs", "old", "start",
)  # fmt: skip

# Prints like the old tool and other C programs: without flushing, so that a pipe would get all
# of it at the end.
OLD = """
import sys, time
for i in range(1, 5):
    print(f"opt iter={i:4d} sample=1 loss=1.0")
    time.sleep(PAUSE)
sys.exit(CODE)
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of scripts/bench_parts, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"bench_parts.{name}")


def old_program(path: Path, pause: float, code: int = 0) -> str:
    body = OLD.replace("PAUSE", str(pause)).replace("CODE", str(code))
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_old_tool_is_timed_by_when_it_prints(parts: Any, tmp_path: Path) -> None:
    make_llama(tmp_path / "m.gguf")
    program = old_program(tmp_path / "finetune", 0.2)
    begin = time.perf_counter()
    row = parts("old").bench_old(program, str(tmp_path / "m.gguf"), True, 1)
    assert 0.19 < row["seconds"] < (time.perf_counter() - begin) / 2
    assert row["tokens_per_s"] == pytest.approx(256 / row["seconds"])
    parts("bounds").check("old", row)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_an_old_tool_that_fails_is_an_error(parts: Any, tmp_path: Path) -> None:
    make_llama(tmp_path / "m.gguf")
    program = old_program(tmp_path / "finetune", 0, code=3)
    with pytest.raises(RuntimeError, match="ended with code 3"):
        parts("old").bench_old(program, str(tmp_path / "m.gguf"), True, 1)


@pytest.mark.parametrize(
    "row",
    [
        {"tokens_per_s": 0.0},
        {"seconds": -0.1},
        {"share": math.nan},
        {"peak_mb": math.inf},
        {"gflops": 1e7},
        {"of_step": 101.0},
    ],
)
def test_what_cannot_be_is_an_error(parts: Any, row: dict[str, Any]) -> None:
    bounds = parts("bounds")
    with pytest.raises(bounds.Impossible, match=next(iter(row)).replace("of_step", "% of a step")):
        bounds.check("step", row)


def test_what_can_be_is_none(parts: Any) -> None:
    row = {"gflops": 20.0, "compile_seconds": 0.0, "checkpointing": False, "share": "", "layer": 0}
    parts("bounds").check("step", row)


def test_the_report_has_rows_of_both_peers(parts: Any) -> None:
    row: dict[str, Any] = {
        "ctx": 256,
        "batch": 4,
        "checkpointing": False,
        "tokens_per_s": 200.0,
        "peak_mb": 4700.0,
    }
    losses = {"first_loss": 3.0, "our_first_loss": 3.0}
    ours = row | {"threads": 2, "share": 0.8, "sgemm_gflops": 100.0, "gflops": 80.0}
    peers = [row | losses, row | losses | {"weights": "NF4", "tokens_per_s": 400.0}]
    found = {"peer": peers, "step": [ours]}
    report = parts("report")
    assert [t.measured for t in report.targets(found) if "PEFT's tokens" in t.what] == [1.0]
    assert "| NF4 | 256 x 4 | False | 400 |" in report.table(
        [{"weights": "float32"} | r for r in peers], report.PEER
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs(part: str, tmp_path: Path, demo_model: Path) -> None:
    """From another folder, on a small model: there are rows, and `check` accepts them."""
    model = tmp_path / "m.gguf"
    if part == "jobs":  # it needs a chat template
        model = demo_model
    else:
        make_llama(model, n_embd=256, n_ff=256, types="Q8_0")
    words = [sys.executable, str(ROOT / "scripts" / "bench.py"), part, "--quick"]
    words += ["--model", str(model), "--models", str(tmp_path)]
    words += ["--out", str(tmp_path / "out")]
    if part == "old":
        if sys.platform == "win32":
            pytest.skip("needs a pseudo-terminal")
        words += ["--old-finetune", old_program(tmp_path / "finetune", 0.3)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    if "peer: skipped" in done.stdout and part == "peer":
        pytest.skip(done.stdout.strip())
    rows = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8")).get(part)
    if part == "vectors" and not rows:
        pytest.skip("vectors of one width are all there is")
    assert rows
    assert any(isinstance(x, float) and x > 0 for row in rows for x in row.values())
    assert (tmp_path / "out" / "bench.md").read_text(encoding="utf-8").startswith("# Speed")
