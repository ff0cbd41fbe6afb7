"""Vector kernels compiled for a CPU without half conversion, byte shuffles or wide registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.quants.oldest_cpu import ON_X86_64, run_on_oldest_x86_64

PROGRAM = """
import numba
from nbllama.quants import QUANTS, decode
from tests.quants.blocks import random_blocks, reference

assert numba.config.CPU_NAME == "generic"
for type_id, t in QUANTS.items():
    if t.name in ("F16", "Q4_0", "Q5_0", "Q6_K", "IQ2_XXS", "IQ3_S", "IQ4_NL", "TQ1_0"):
        raw = random_blocks(type_id, 20)
        got = decode(type_id, raw, 20 * t.block_size)
        assert (got.view("i4") == reference(type_id, raw).view("i4")).all(), t.name
        print(t.name)
"""


@ON_X86_64
def test_same_bits_on_the_oldest_x86_64(tmp_path: Path) -> None:
    printed = run_on_oldest_x86_64(PROGRAM, tmp_path)
    assert len(printed) == 8


def test_kernel_set_is_chosen_by_the_environment(tmp_path: Path) -> None:
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    program = "from nbllama.quants import DECODERS; print(DECODERS[2].__module__)"
    for value, want in (
        ("plain", "nbllama.quants.legacy"),
        ("vector", "nbllama.quants.vector.legacy"),
        ("", "nbllama.quants.vector.legacy"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=env | {"NBLLAMA_KERNELS": value},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.stdout.strip() == want
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env | {"NBLLAMA_KERNELS": "fast"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode != 0
    assert "NBLLAMA_KERNELS is fast; use plain or vector" in done.stderr
