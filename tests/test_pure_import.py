"""Importing and running the package leaves Numba's settings and the environment as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = """
import importlib, os, pkgutil, sys
from pathlib import Path
import numba
if sys.argv[1] == "launched":
    numba.get_num_threads()

def settings():
    return {k: repr(v) for k, v in vars(numba.config).items() if k.isupper()}, dict(os.environ)

before = settings()
import nbllama
skipped = []
for module in pkgutil.walk_packages(nbllama.__path__, "nbllama."):
    if module.name.rpartition(".")[2].startswith("_") and not module.name.endswith(".jit"):
        continue  # separate programs
    try:
        importlib.import_module(module.name)
    except ImportError as e:
        skipped.append(e.name)
assert not {s for s in skipped if s.startswith("nbllama")}, skipped
assert settings() == before, "import"

from tests.train.toy_runs import random_rows, toy_adapter, toy_model, trainer
model = toy_model(Path.cwd())
before = settings()
nbllama.logits(model, [1, 2, 3])
adapter = toy_adapter(model)
trainer(model, adapter, random_rows(model, [30, 17])).step()
nbllama.generate(model, [1, 2, 3], 3, adapter)
assert settings() == before, "run"

import users
assert users.twice(21) == 42
print(users.twice.stats.cache_path, numba.threading_layer())
"""
USERS = """
import numba

@numba.njit(cache=True)
def twice(x):
    return 2 * x
"""


def run(folder: Path, *words: str, **env: str) -> list[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "users.py").write_text(USERS)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "program.py", *words], capture_output=True, text=True, cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_settings_environment_and_the_user_s_own_cache_stay(tmp_path: Path) -> None:
    cache, layer = run(tmp_path, "first")
    assert Path(cache) == tmp_path / "__pycache__"  # Numba's own default
    assert any((tmp_path / "__pycache__").glob("users.twice*.nbi"))
    assert layer in ("omp", "workqueue")


def test_a_layer_that_runs_already_is_used(tmp_path: Path) -> None:
    """Also for a setting that the package would not choose."""
    pytest.importorskip("numba.np.ufunc.omppool", reason="no OpenMP library")
    _, layer = run(tmp_path, "launched", NUMBA_THREADING_LAYER="workqueue")
    assert layer == "workqueue"
