"""scripts/slow_budget: every folder with slow tests has a budget, and the total is limited."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "slow_budget.py"
SLOW = re.compile(r"mark\.slow\b")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def test_every_folder_with_slow_tests_has_a_budget() -> None:
    module = runpy.run_path(str(SCRIPT))
    files = (ROOT / "tests").rglob("test_*.py")
    slow = [p.relative_to(ROOT) for p in files if SLOW.search(p.read_text(encoding="utf-8"))]
    folders = {module["folder_of"](".".join(p.with_suffix("").parts)) for p in slow}
    assert {"arch", "docs", "(tests itself)"} <= folders
    # checkpoint and export have only `long` ones
    assert folders - {"checkpoint", "export"} <= module["BUDGET"].keys()
    assert sum(module["BUDGET"].values()) <= module["LIMIT"]
    assert run().returncode == 0


def test_what_they_took(tmp_path: Path) -> None:
    cases = [
        ("tests.arch.test_archs", 90), ("tests.arch.test_arch.TestX", 30),
        ("tests.test_api", 120), ("tests.gguf_io.test_fuzz", 6),
    ]  # fmt: skip
    rows = "".join(f'<testcase classname="{name}" name="x" time="{t}"/>' for name, t in cases)
    (tmp_path / "a.xml").write_text(f"<testsuites><testsuite>{rows}</testsuite></testsuites>")
    done = run(str(tmp_path / "a.xml"))
    assert done.returncode == 0
    lines = {line[:18].strip(): line[18:].split() for line in done.stdout.splitlines()}
    assert lines["arch"][1:] == ["2.0"]
    assert lines["(tests itself)"][1:] == ["2.0", "over"]
    assert lines["together"][1:] == ["4.1"]


def test_a_folder_without_a_budget_and_what_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text('<testsuite><testcase classname="tests.new.test_x" time="1"/></testsuite>')
    done = run(str(path))
    assert done.returncode == 1 and "no budget for new" in done.stderr
    path.write_text("nothing")
    done = run(str(path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
