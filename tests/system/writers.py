"""Writers in separate processes (`child.py`), and where they can run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="forks, signals, modes")


def start(*args: object) -> subprocess.Popen[str]:
    """Run `tests.system.child` with these words, in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.system.child", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child(*args: object) -> Any:
    """The JSON that a run of `tests.system.child` prints."""
    process = start(*args)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)
