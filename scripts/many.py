"""Runs on many workers that must have the bits of a run on one machine, also when something dies.

Needs Ray. Prints a row per test; --json FILE appends them, and docs/results/many-machines.md shows
them. Every run trains a small random model, and the sha256 of its last checkpoint is compared.

    W1  no Ray, then 1, 2, 3, 4 workers
    W2  kill -9 of a worker at a random moment
    W3  the cable of a second machine is pulled and plugged in again (network namespaces; root)
    W4  a delay of 50 ms and a loss of 1 % between two machines (root)
    W5  a worker leaves and another one joins in every step
    W6  kill -9 of the driver at a random moment, continued with another number of workers
    W7  a machine with another version, another base model, a wrong token, no token (root)
    overhead  the time of a step with one worker, compared with no Ray (--model: the demo model)
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.many_parts import local, network
from scripts.many_parts.overhead import overhead
from scripts.many_parts.runs import make


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tests", nargs="+", choices=["w1", "w2", "w3", "w4", "w5", "w6", "w7", "overhead"]
    )
    parser.add_argument("--kills", type=int, default=50, help="times of W2")
    parser.add_argument("--cuts", type=int, default=10, help="times of W3")
    parser.add_argument("--steps", type=int, default=12, help="steps of W1, W4 and W5")
    parser.add_argument("--driver-kills", type=int, default=20, help="times of W6")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of steps for overhead")
    parser.add_argument("--model", default="", help="model of overhead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to append the rows to")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        parts = {
            "w1": lambda: local.w1(folder, args.steps),
            "w2": lambda: local.w2(folder, args.kills, rng),
            "w3": lambda: network.w3(folder, args.cuts, rng),
            "w4": lambda: network.w4(folder, args.steps, args.seed),
            "w5": lambda: local.w5(folder, args.steps),
            "w6": lambda: local.w6(folder, args.driver_kills, rng),
            "overhead": lambda: overhead(folder, args.model, args.pairs),
            "w7": lambda: local.w7(folder) + network.w7(folder),
        }
        for test in args.tests:
            start = time.perf_counter()
            found = parts[test]()
            print("\n".join(found), f"({time.perf_counter() - start:.0f} s)", flush=True)
            rows += found
    if args.json:
        words = " ".join(["scripts/many.py", *sys.argv[1:]])
        record = {"command": words, "date": time.strftime("%Y-%m-%d"), "rows": rows}
        record["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        with open(args.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return int(any("OTHER" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
