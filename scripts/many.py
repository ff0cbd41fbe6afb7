"""Runs on many workers that must have the bits of a run on one machine, also when something dies.

Needs Ray. Prints a table, and writes it to docs/results/many-machines.md with --write.

    W1  no Ray, then 1, 2, 3, 4 workers
    W2  kill -9 of a worker at a random moment
    W6  kill -9 of the driver at a random moment, continued with another number of workers
    W7  an address without a token

Every run trains a small random model; the checkpoint's sha256 is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STEPS = 12
SAME = ["--ctx", "64", "--batch", "2", "--grad-acc", "8", "--block", "1", "--warmup", "2"]
SAME += ["--seed", "11", "--threads", "1", "--save-every", "1", "--cos-decay-steps", str(STEPS)]
RESULTS = ROOT / "docs" / "results" / "many-machines.md"


def make(folder: Path) -> None:
    from examples.toy_models import make_llama
    from tests.train.toy_runs import toy_text

    make_llama(folder / "toy.gguf")
    toy_text(folder / "text.txt", 1500)


class Run:
    """The program, with its files in `out`."""

    def __init__(self, folder: Path, out: str, workers: int, steps: int, *more: str) -> None:
        self.out = folder / out
        self.out.mkdir(exist_ok=True)
        words = ["--model-base", str(folder / "toy.gguf"), "--train-data", str(folder / "text.txt")]
        words += ["--checkpoint-out", str(self.out / "chk-ITERATION.gguf"), "--lora-out", ""]
        words += ["--adam-iter", str(steps), "--log", str(self.out / "log.jsonl"), *SAME]
        words += ["--ray", f"local:{workers}"] if workers else []
        self.text = self.out / "screen.txt"
        env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        with open(self.text, "a") as screen:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nbllama.finetune", *words, *more],
                stdout=screen, stderr=subprocess.STDOUT, env=env, start_new_session=True,
            )  # fmt: skip

    def seen(self) -> str:
        return self.text.read_text(encoding="utf-8")

    def wait_for(self, pattern: str, n: int = 1, seconds: float = 300) -> list[str]:
        end = time.monotonic() + seconds
        while len(found := re.findall(pattern, self.seen())) < n:
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"{pattern} is not in the output:\n{self.seen()}")
            time.sleep(0.02)
        return found

    def end(self) -> int:
        return self.process.wait(timeout=600)

    def bits(self, step: int = STEPS) -> str:
        if self.end():
            raise RuntimeError(self.seen())
        return hashlib.sha256((self.out / f"chk-{step}.gguf").read_bytes()).hexdigest()[:16]


def w1(folder: Path) -> tuple[str, list[str]]:
    rows = []
    wanted = Run(folder, "none", 0, STEPS, "--checkpoint-in", "").bits()
    for n in (1, 2, 3, 4):
        found = Run(folder, f"w{n}", n, STEPS, "--checkpoint-in", "").bits()
        rows.append(f"W1 | {n} workers | {found} | {'same' if found == wanted else 'OTHER'}")
    return wanted, [f"W1 | no Ray | {wanted} | -", *rows]


def w2(folder: Path, wanted: str, count: int, rng: random.Random) -> list[str]:
    good = lost = 0
    for i in range(count):
        run = Run(folder, f"kill{i}", 2, STEPS, "--checkpoint-in", "")
        pids = run.wait_for(r"joined \(process (\d+)\)", 2)
        run.wait_for("iter= ")
        time.sleep(rng.random() * 0.5)
        with contextlib.suppress(ProcessLookupError):  # the run has ended; not counted as lost
            os.kill(int(rng.choice(pids)), signal.SIGKILL)
        good += run.bits() == wanted
        lost += "lost the worker" in run.seen() or run.seen().count("joined") > 2
        shutil.rmtree(run.out)
    return [f"W2 | kill -9 of a worker, {count} times ({lost} noticed) | {good} of {count} | "
            f"{'same' if good == count else 'OTHER'}"]  # fmt: skip


def w6(folder: Path, wanted: str, count: int, rng: random.Random) -> list[str]:
    good = killed = 0
    for i in range(count):
        run = Run(folder, f"driver{i}", 2, STEPS, "--checkpoint-in", "")
        run.wait_for("iter= ")
        time.sleep(rng.random() * 0.3)
        killed += run.process.poll() is None
        run.process.kill()
        run.process.wait()
        latest = run.out / "chk-LATEST.gguf"
        if latest.exists():
            done = max(int(m) for m in re.findall(r"chk-(\d+)", " ".join(os.listdir(run.out))))
            more = ["--checkpoint-in", str(latest)]
        else:
            done, more = 0, ["--checkpoint-in", ""]
        again = Run(folder, f"driver{i}", rng.choice([1, 3]), STEPS - done, *more, "--force")
        good += again.bits() == wanted if done < STEPS else True
        shutil.rmtree(run.out)
    return [f"W6 | kill -9 of the driver, {count} times ({killed} before its end) | {good} of "
            f"{count} | {'same' if good == count else 'OTHER'}"]  # fmt: skip


def w7(folder: Path) -> list[str]:
    run = Run(folder, "token", 0, STEPS, "--checkpoint-in", "", "--ray", "10.255.255.1:6379")
    code, line = run.end(), run.seen().strip().splitlines()[-1]
    right = code == 2 and "RAY_AUTH_MODE=token" in line
    return [f"W7 | an address without a token | exit {code} | {'refused' if right else 'OTHER'}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3, help="times of W2")
    parser.add_argument("--driver-kills", type=int, default=2, help="times of W6")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        wanted, rows = w1(folder)
        for row in rows:
            print(row, flush=True)
        for part in (
            lambda: w7(folder),
            lambda: w2(folder, wanted, args.kills, rng),
            lambda: w6(folder, wanted, args.driver_kills, rng),
        ):
            more = part()
            print("\n".join(more), flush=True)
            rows += more
    if args.write:
        words = " ".join(["scripts/many.py", *sys.argv[1:]])
        text = "# Many machines: the bits of one\n\nOn one machine (`local:N`), a small random "
        text += f"model, {STEPS} steps of 8 micro-batches in 8 blocks. Made by\n`python {words}`.\n"
        text += "\n| test | what | result | bits |\n|---|---|---|---|\n"
        text += "".join(f"| {row} |\n" for row in rows)
        RESULTS.write_text(text, encoding="utf-8")
    return int(any("OTHER" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
