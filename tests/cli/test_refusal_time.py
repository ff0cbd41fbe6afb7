"""Bad usage is refused before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEAVY = ("numba", "llvmlite", "tokenizers", "sentencepiece", "jinja2")
PROGRAM = (
    "import sys\nfrom nbllama.finetune import main\ncode = main(sys.argv[1:])\n"
    f"print(code, [x for x in {HEAVY} if x in sys.modules])\n"
)
BAD = {
    "an unknown option": ["--no-such-option"],
    "a word for a number": ["--model-base", "m.gguf", "--adam-iter", "many"],
    "no model": ["--train-data", "text.txt"],
    "a number out of range": ["--model-base", "m.gguf", "--lora-alpha", "1e39"],
}


@pytest.mark.parametrize("what", BAD)
def test_bad_usage(tmp_path: Path, what: str) -> None:
    """In at most 0.6 s of processor time (the machine may be busy), without Numba."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(3):
        before = os.times()
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *BAD[what]],
            cwd=tmp_path, env=env, capture_output=True, text=True,
        )  # fmt: skip
        after = os.times()
        used = after.children_user + after.children_system
        used -= before.children_user + before.children_system
        seconds.append(min(used, time.monotonic() - began))
        assert done.stdout == "2 []\n", done
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
        if seconds[-1] <= 0.6:
            return
    raise AssertionError(seconds)
