"""A program on the oldest x86-64: no half conversion, byte shuffles or wide registers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ON_X86_64 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 baseline"
)


def run_on_oldest_x86_64(program: str, cache: Path) -> list[str]:
    """The words printed by a Python program whose kernels are compiled for that CPU, in `cache`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    env |= {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NBLLAMA_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
