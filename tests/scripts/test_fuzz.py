"""scripts/fuzz: every target reads its good file and refuses damaged ones; findings are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the limit of time")
TARGETS = (
    "gguf model adapter bin safetensors adapter-config checkpoint old-checkpoint data config "
    "template log"
).split()
NEVER_REFUSED = ("log",)  # malformed lines of a log are skipped


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scripts.fuzz as fuzz

    assert list(fuzz.TARGETS) == TARGETS
    monkeypatch.setattr(fuzz, "KEPT", tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    before = signal.signal(signal.SIGALRM, fuzz._too_slow)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            counts = fuzz.run(name, 60, 5, 40)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sum(counts.values()) == 40 and counts["wrong"] == 0, list(tmp_path.rglob("*"))
    assert counts["refused"] or name in NEVER_REFUSED


def test_a_finding_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scripts.fuzz as fuzz

    def read(path: Path) -> None:
        if path.read_bytes() != good:
            raise IndexError("found")

    good = b"".join(b"line %d\n" % i for i in range(9))
    monkeypatch.setattr(fuzz, "KEPT", tmp_path)
    target = fuzz.Target(lambda folder: _written(folder / "x", good), fuzz.text, read)
    monkeypatch.setitem(fuzz.TARGETS, "config", target)
    before = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, fuzz._too_slow)
    try:
        counts = fuzz.run("config", 60, 5, 3)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert counts == {"read": 0, "refused": 0, "wrong": 3}
    kept = sorted(tmp_path.iterdir())
    assert [p.name for p in kept] == ["config-5-1", "config-5-2", "config-5-3"]
    assert all(p.read_bytes() != good for p in kept)


def _written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def test_the_program_prints_a_table() -> None:
    words = [sys.executable, "scripts/fuzz.py", "gguf", "--files", "50", "--seed", "3"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    head, _, row = done.stdout.splitlines()
    assert head == "| target | seed | files | read | refused | wrong |"
    cells = [x.strip() for x in row.strip("|").split("|")]
    assert cells[:3] == ["gguf", "3", "50"] and cells[5] == "0"
    assert int(cells[3]) + int(cells[4]) == 50
