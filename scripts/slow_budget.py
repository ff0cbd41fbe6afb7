"""Time budgets of the slow tests, in minutes per folder of tests/, and times from a JUnit report.

Continuous integration runs the slow tests that are not `long`, within a time limit. If a folder
exceeds its budget, mark some of its tests `long`, share work between them, or move minutes from
another folder.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict

LIMIT = 50  # minutes, with a cold cache, on two cores
BUDGET = {
    "arch": 7, "cli": 1, "data": 2, "docs": 7, "evaluate": 2, "examples": 2, "generation": 3,
    "gguf_io": 2, "gradcheck": 1, "inspect": 1, "kernels": 3, "model": 1, "ops": 2, "peek": 2,
    "quants": 1, "scripts": 7, "system": 1, "text": 2, "train": 2, "(tests itself)": 1,
}  # fmt: skip


def folder_of(classname: str) -> str:
    """Return a test's folder: `tests.arch.test_archs` is in `arch`, `tests.test_api` in none."""
    parts = classname.split(".")
    return parts[1] if len(parts) > 2 and not parts[1].startswith("test_") else "(tests itself)"


def seconds_by_folder(report: str) -> dict[str, float]:
    """Return the seconds of set-up, call and tear-down of the tests in a JUnit report."""
    found: dict[str, float] = defaultdict(float)
    for case in ET.parse(report).iter("testcase"):
        found[folder_of(case.attrib["classname"])] += float(case.attrib["time"])
    return dict(found)


def main(words: list[str]) -> int:
    if len(words) > 1 or (words and words[0].startswith("-")):
        print("usage: scripts/slow_budget [REPORT.xml]", file=sys.stderr)
        return 2
    try:
        took = seconds_by_folder(words[0]) if words else {}
    except (OSError, ET.ParseError, KeyError, ValueError) as e:
        print(f"error: {words[0]}: no JUnit report can be read: {e}", file=sys.stderr)
        return 2
    print(f"{'folder of tests':18}{'budget, min':>12}" + (f"{'took, min':>11}" if took else ""))
    for folder in sorted(BUDGET.keys() | took.keys()):
        line = f"{folder:18}{BUDGET.get(folder, 0):12}"
        if took:
            minutes = took.get(folder, 0.0) / 60
            line += f"{minutes:11.1f}" + ("  over" if minutes > BUDGET.get(folder, 0) else "")
        print(line)
    line = f"{'together':18}{sum(BUDGET.values()):12}"
    print(line + (f"{sum(took.values()) / 60:11.1f}" if took else ""))
    if sum(BUDGET.values()) > LIMIT:
        print(f"error: the budgets add up to more than {LIMIT} minutes", file=sys.stderr)
        return 1
    if unknown := sorted(took.keys() - BUDGET.keys()):
        where = "scripts/slow_budget.py"
        print(f"error: no budget for {', '.join(unknown)}: add it to {where}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
