"""The cost of training on preferences, compared with training on answers and with TRL.

Each run whose memory is measured is a separate process. The two kinds of steps in the part `steps`
take turns in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_parts.preferences import SETTINGS, compare_steps, measure, peer  # noqa: E402

from scripts.bench import demo_model  # noqa: E402

PARTS = ("steps", "memory", "peer")


def own(args: argparse.Namespace, checkpointing: bool, objective: str) -> dict[str, Any]:
    """Run `measure` in a new process."""
    words = [
        sys.executable,
        __file__,
        "--model",
        args.model,
        "--one",
        objective,
        "--steps",
        str(args.steps),
        "--batch",
        str(args.batch),
    ]
    words += ["--checkpointing"] if checkpointing else []
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"a run failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def against_peer(args: argparse.Namespace, checkpointing: bool) -> dict[str, Any]:
    """Run ours and TRL's twice, in turns; return the faster ones and the losses' difference."""
    ours, theirs = [], []
    for _ in range(args.repeat):
        ours.append(own(args, checkpointing, "dpo"))
        theirs.append(peer(args.peer, args.model, checkpointing, args.steps))
    a, b = (min(found, key=lambda row: row["seconds"]) for found in (ours, theirs))
    apart = max(abs(x - y) for x, y in zip(a["losses"], b["losses"], strict=True))
    return {
        "ours": a, "peer": b, "times_faster": b["seconds"] / a["seconds"],
        "of_its_memory": a["peak_mb"] / b["peak_mb"], "losses_apart": apart,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--model", default=None)
    parser.add_argument(
        "--steps", type=int, default=21, help="steps of each run; the first is not timed"
    )
    parser.add_argument("--batch", type=int, default=SETTINGS["batch"], help="pairs per step")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each side in part peer")
    parser.add_argument("--peer", help="a Python interpreter with torch, peft and trl")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", help="append one line of JSON per figure to this file")
    args = parser.parse_args()
    args.model = args.model or demo_model()
    SETTINGS["batch"] = args.batch
    if args.one:
        print(json.dumps(measure(args.model, args.checkpointing, args.one, args.steps)))
        return
    for part in args.parts or PARTS:
        row: dict[str, Any]
        if part == "steps":
            row = compare_steps(args.model, args.checkpointing, args.steps)
        elif part == "memory":
            peaks = [own(args, args.checkpointing, name)["peak_mb"] for name in ("sft", "dpo")]
            row = {"sft_mb": peaks[0], "dpo_mb": peaks[1], "ratio": peaks[1] / peaks[0]}
        elif args.peer:
            row = against_peer(args, args.checkpointing)
        else:
            print("no --peer: TRL is not measured")
            continue
        row = {"part": part, "cpus": os.cpu_count(), "model": Path(args.model).name} | row
        print(json.dumps({k: v for k, v in row.items() if k not in ("ours", "peer")}))
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
