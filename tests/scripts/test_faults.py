"""scripts/faults: the quick programme passes; a wrong run is detected."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults are injected on Linux")


def faults(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/faults.py", *words],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_quick_programme() -> None:
    done = faults("--quick")
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert {row[0] for row in rows} >= {"F01", "F02", "F05", "F08", "F11", "F14", "F17"}
    for name, what, runs, passed in rows:
        assert passed == runs if int(runs) else passed.startswith("not run: "), (name, what)
    assert sum(int(row[2]) for row in rows) > 60


def test_an_unknown_fault_is_refused() -> None:
    done = faults("F99")
    assert done.returncode == 2 and "F99 is not one of F01, F02," in done.stderr
