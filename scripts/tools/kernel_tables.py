"""Compare our kernels with plain numpy and llama.cpp, and write docs/kernels.md: the largest
difference and the speed for every case in the tests' registry. All sides use one thread, so that
the kernels themselves are compared and other programs on the machine have less effect.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numba

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench import machine  # noqa: E402
from bench_parts.kernel_page import page  # noqa: E402
from bench_parts.timing import interleaved, ratio  # noqa: E402

from tests.kernels.case import SIZES, Case, differences, llama  # noqa: E402
from tests.kernels.registry import CASES, GROUPS  # noqa: E402

STORED = ROOT / "docs" / "results" / "kernels.json"
PAGE = ROOT / "docs" / "kernels.md"


def chosen(names: list[str]) -> list[Case]:
    """Return the cases that match names, groups or patterns; exit if one matches nothing."""
    if not names:
        return list(CASES)
    for name in names:
        if not any(_means(name, case) for case in CASES):
            sys.exit(f"there is no case or group named {name!r}; groups are {', '.join(GROUPS)}")
    return [case for case in CASES if any(_means(name, case) for name in names)]


def _means(name: str, case: Case) -> bool:
    return name == case.group or fnmatchcase(case.name, name)


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Measure differences for all sizes, and times for the large size in alternating runs."""
    found = [differences(case, size) for size in SIZES]
    row: dict[str, Any] = {"error": max(own for own, _ in found)}
    theirs = [d for _, d in found if d is not None]
    row["llama_error"] = max(theirs) if theirs else None
    for value, bound in ((row["error"], case.bound), (row["llama_error"], case.llama_bound)):
        if value is not None and not value <= bound:
            sys.exit(f"{case.name}: a difference of {value:.2g} is over {bound:.2g}")
    run = case.make("large")
    runs: dict[str, Any] = {"ours": run.ours}
    if case.timed_reference:
        runs["numpy"] = lambda: run.reference(**run.inputs)
    if run.theirs is None:
        rounds = interleaved(runs, seconds)
    else:
        with llama(run) as other:
            rounds = interleaved({**runs, "llama": other.run}, seconds)
    row["rate"] = run.work / min(r["ours"] for r in rounds) / 1e9
    row["times_numpy"] = ratio(rounds, "numpy", "ours") if "numpy" in runs else None
    row["times_llama"] = ratio(rounds, "llama", "ours") if run.theirs is not None else None
    return row


def save(rows: dict[str, Any], about: dict[str, Any]) -> None:
    """Write both files, omitting cases that no longer exist."""
    rows = {case.name: rows[case.name] for case in CASES if case.name in rows}
    STORED.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(rows, about), encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument(
        "names", nargs="*", metavar="NAME", help="cases, groups or patterns (default: all)"
    )
    p.add_argument("--seconds", type=float, default=0.3, help="seconds per case (%(default)s)")
    p.add_argument("--missing", action="store_true", help="only cases without a result")
    p.add_argument("--page", action="store_true", help="only write the page from stored results")
    given = p.parse_args()
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    rows, about = stored.get("rows", {}), stored.get("about", {})
    if not given.page:
        about = {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
        numba.set_num_threads(1)
        for case in chosen(given.names):
            if given.missing and case.name in rows:
                continue
            rows[case.name] = measure(case, given.seconds)
            print(case.name, rows[case.name], flush=True)
            save(rows, about)
    save(rows, about)
    missing = [case.name for case in CASES if case.name not in rows]
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} rows" + (f", not: {missing}" if missing else ""))


if __name__ == "__main__":
    main()
