"""Tests with workers on this machine: counts of workers, and kills."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.many_parts.runs import JOINED, Run, compared, started


def w1(folder: Path, steps: int) -> list[str]:
    """Compare runs without Ray, and with 1 to 4 workers."""
    wanted = Run(folder, "none", steps).bits()
    rows = [f"W1 | no Ray | {wanted} | -"]
    for n in (1, 2, 3, 4):
        run = started(partial(Run, folder, f"w{n}", steps, ray=f"local:{n}"))
        found = run.bits()
        rows.append(f"W1 | {n} workers | {found} | {compared([found], wanted)}")
    return rows


def again(start: Callable[[], Run], begun: int) -> Run:
    """Continue a run whose output has `begun` iterations; return it after the next one."""
    for _ in range(5):
        run = start()
        try:
            run.wait_for("iter= ", begun + 1)
        except RuntimeError:
            if run.process.wait() == 0:
                return run  # nothing was left to do
            print("the continued run did not start; trying again:", run.seen()[-300:], flush=True)
        else:
            return run
    raise RuntimeError("a run could not be continued 5 times in a row")


def kill(pid: str) -> bool:
    """End a process by kill -9; return whether it was running."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
        return True
    return False


def w2(folder: Path, count: int, rng: random.Random, per_run: int = 10) -> list[str]:
    """Kill one of two workers at a random moment, `per_run` times in a run."""
    steps, bits, killed, lost = 150, [], 0, 0
    wanted = Run(folder, "w2", steps).bits()
    while killed < count:
        run = started(partial(Run, folder, f"kill{killed}", steps, ray="local:2"))
        for i in range(min(per_run, count - killed)):
            joined = run.wait_for(JOINED, 2 + i)
            time.sleep(rng.random() * 1.5)
            gone = set(re.findall(r"lost the worker (\S+):", run.seen()))
            alive = [pid for name, pid in joined if name not in gone]
            if run.ended:
                raise RuntimeError(f"the run has ended too early:\n{run.seen()}")
            killed += kill(rng.choice(alive))
        bits.append(run.bits())
        lost += run.seen().count("lost the worker")
        shutil.rmtree(run.out)
    return [
        f"W2 | kill -9 of one of two workers at a random moment, {killed} times in {len(bits)} "
        f"runs of {steps} steps; {lost} of them in a block | "
        f"{sum(one == wanted for one in bits)} of {len(bits)} runs | {compared(bits, wanted)}"
    ]


def w5(folder: Path, steps: int) -> list[str]:
    """In every step, a worker joins and another one is killed."""
    wanted = Run(folder, "w5", steps, "--grad-acc", "512", "--block", "32").bits()
    more = ["--grad-acc", "512", "--block", "32"]
    run = started(partial(Run, folder, "steps", steps, *more, ray="local:2"))
    left = 0
    for step in range(1, steps):
        joined = run.wait_for(JOINED, 2 + left)
        run.wait_for(f"iter= +{step} ")
        left += kill(joined[left][1])  # the oldest worker
    found = run.bits()
    n = len(re.findall(JOINED, run.seen()))
    return [
        f"W5 | a worker leaves and another one joins in every step, {steps} steps: {left} left, "
        f"{n - 2} joined | {found} | {compared([found], wanted)}"
    ]


def w6(folder: Path, count: int, rng: random.Random, per_run: int = 10) -> list[str]:
    """Kill the driver at a random moment; continue with another number of workers."""
    steps, bits, killed, numbers = 150, [], 0, set()
    wanted = Run(folder, "w6", steps).bits()
    while killed < count:
        out, n = f"driver{killed}", 2
        run = started(partial(Run, folder, out, steps, ray=f"local:{n}"))
        for _ in range(min(per_run, count - killed)):
            time.sleep(rng.random() * 1.0)
            killed += not run.ended
            run.process.kill()
            run.process.wait()
            n = rng.choice([k for k in (1, 2, 3) if k != n])
            numbers.add(n)
            done = run.done()
            more = ["--adam-iter", str(steps - done), "--force"]
            if done:
                more += ["--checkpoint-in", str(run.out / "chk-LATEST.gguf")]
            else:
                more += ["--checkpoint-in", ""]
            begun = run.seen().count("iter=")
            run = again(
                partial(Run, folder, out, steps, *more, ray=f"local:{n}", fresh=False), begun
            )
        bits.append(run.bits())
        shutil.rmtree(run.out)
    return [
        f"W6 | kill -9 of the driver, {killed} times in {len(bits)} runs of {steps} steps, each "
        f"time continued with another number of workers ({min(numbers)} to {max(numbers)}) | "
        f"{sum(one == wanted for one in bits)} of {len(bits)} runs | {compared(bits, wanted)}"
    ]


def w7(folder: Path) -> list[str]:
    """Try an address without a token."""
    run = Run(folder, "token", 2, ray="10.255.255.1:6379")
    code, line = run.process.wait(timeout=300), run.seen().strip().splitlines()[-1]
    right = code == 2 and "RAY_AUTH_MODE=token" in line
    return [f"W7 | an address without a token | exit {code} | {'refused' if right else 'OTHER'}"]
