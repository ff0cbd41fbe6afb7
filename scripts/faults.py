"""Faults of the machine and of files, each injected into real training runs of a tiny model.

    scripts/faults [--quick|--full] [F01 F02 ...]

A run passes if no file is torn under its final name, if it can be continued with the same bits as
without the fault, if at most one interval of saves is lost, and if a failure ends with one line and
its exit code. `--quick` (the default) makes a few runs per fault, in less than 4 minutes; `--full`
makes all of them and updates the table in docs/results/faults.md, where faults that are not named
keep their last results. The exit code is 1 if a run did not pass.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.fault_parts import (  # noqa: F401 (each adds its faults)
    calls,
    damage,
    disk,
    kills,
    machine,
    numbers,
    power,
)
from scripts.fault_parts.box import FAULTS, ROOT, Box, Fault, NotRun

RESULTS = ROOT / "docs" / "results"
SHOWN = 5  # failures shown per fault


def run(box: Box, fault: Fault) -> dict[str, Any]:
    """Run a fault; return its row of the table."""
    began, runs, failures, note = time.monotonic(), 0, [], ""
    try:
        for wrong in fault.run(box):
            runs += 1
            if wrong:
                wrong = wrong.replace(str(box.folder), "FOLDER")
                failures.append(wrong)
                print(f"{fault.name} {fault.what}: run {runs}: {wrong}", file=sys.stderr)
    except NotRun as e:
        note = f"not run: {e}"
    seconds = round(time.monotonic() - began)
    row = {"fault": fault.name, "what": fault.what, "runs": runs, "passed": runs - len(failures)}
    today = datetime.date.today().isoformat()
    return row | {"note": note, "seconds": seconds, "date": today, "wrong": failures[:SHOWN]}


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    passed = row["passed"] if row["runs"] else row["note"]
    return f"| {row['fault']} | {row['what']} | {row['runs']} | {passed} |"


INTRODUCTION = """# Runs with injected faults

`scripts/faults --full` generates this page. Each run trains a tiny model in a separate process.
A run passes if all of the following are true:

- every file that exists under its final name is complete;
- the resumed run is bit-identical to a run without the fault;
- at most one save interval of work is lost;
- every failure ends with a one-line message and the right exit code.

[What can go wrong](../faults.md) describes how nbllama behaves.
"""
HEAD = "| fault | what | runs | passed |\n|---|---|---|---|"


def machine_line() -> str:
    """Return a description of this machine."""
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    cpu = platform.processor() or platform.machine()
    for text in _lines("/proc/cpuinfo"):
        if text.startswith("model name"):
            cpu = text.partition(":")[2].strip()
            break
    return f"{cpu}, {os.cpu_count()} processors, {system}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def keep(row: dict[str, Any]) -> None:
    """Store a row in docs/results/faults.json, and write the page again."""
    path = RESULTS / "faults.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    rows = [r for r in rows if (r["fault"], r["what"]) != (row["fault"], row["what"])]
    order = {(f.name, f.what): i for i, f in enumerate(FAULTS)}
    rows = [r for r in [*rows, row | {"machine": machine_line()}] if key(r) in order]
    rows.sort(key=lambda r: (r["fault"], order[key(r)]))
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / "faults.md").write_text(page(rows), encoding="utf-8")


def key(row: dict[str, Any]) -> tuple[str, str]:
    """Return the key that identifies a row."""
    return row["fault"], row["what"]


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page with the results."""
    missing = [f for f in FAULTS if (f.name, f.what) not in {key(r) for r in rows}]
    wrong = [f"- {r['fault']}, {r['what']}: {w}" for r in rows for w in r["wrong"]]
    machines = "".join(f"Machine: {m}.\n" for m in sorted({r["machine"] for r in rows}))
    head = "| fault | what | runs | passed | seconds | date |\n|---|---|---|---|---|---|"
    table = "\n".join([head, *(f"{line(r)} {r['seconds']} | {r['date']} |" for r in rows)])
    n, passed = (sum(r[k] for r in rows) for k in ("runs", "passed"))
    end = f"Runs: {n}, passed: {passed}.\n"
    if missing:
        end += f"\nNot run yet: {'; '.join(f'{f.name}, {f.what}' for f in missing)}.\n"
    if wrong:
        end += "\n".join(["\nFailures:\n", *wrong, ""])
    return f"{INTRODUCTION}\n{machines}\n{table}\n\n{end}"


def main(words: list[str] | None = None) -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__.split("\n\n")[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a few runs of each (the default)")
    how.add_argument("--full", action="store_true", help="all runs, and docs/results/faults.md")
    names = sorted({f.name for f in FAULTS})
    parser.add_argument("faults", nargs="*", metavar="F", help=f"of {', '.join(names)}")
    asked = parser.parse_args(words)
    if unknown := [name for name in asked.faults if name not in names]:
        parser.error(f"{unknown[0]} is not one of {', '.join(names)}")
    if sys.platform != "linux":
        print("error: the faults are injected on Linux only", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="nbllama-faults-"))
    wrong = 0
    try:
        box = Box(folder, asked.full)
        print(HEAD, flush=True)
        for fault in sorted(FAULTS, key=lambda f: f.name):
            if asked.faults and fault.name not in asked.faults:
                continue
            row = run(box, fault)
            print(line(row), flush=True)
            wrong += row["runs"] - row["passed"]
            if asked.full:
                keep(row)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
