"""Tests with workers on this machine: counts of workers, and kills."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scripts.many_parts.runs import ENDLESS, JOINED, Run, compared, same_bits, started


def w1(folder: Path, steps: int) -> list[str]:
    """Compare runs without Ray, and with 1 to 4 workers."""
    wanted = Run(folder, "plain1", steps).bits()
    rows = [f"W1 | no Ray | {wanted} | -"]
    for n in (1, 2, 3, 4):
        run = started(partial(Run, folder, f"w{n}", steps, ray=f"local:{n}"))
        found = run.bits()
        rows.append(f"W1 | {n} workers | {found} | {compared([found], wanted)}")
    return rows


def continued(start: Callable[[], Run], begun: int) -> Run:
    """Continue a run whose output has `begun` iterations; return it after the next one."""
    for _ in range(5):
        run = start()
        try:
            run.wait_for("iter= ", begun + 1)
        except RuntimeError:
            if "Ray did not start" not in run.seen()[-1000:]:
                raise
            print("Ray did not start; trying again", flush=True)
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
    """Kill one of three workers at a random moment, `per_run` times in a run."""
    found, killed, lost = [], 0, 0
    while killed < count:
        run = started(partial(Run, folder, f"kill{killed}", ENDLESS, ray="local:3"))
        for _ in range(min(per_run, count - killed)):
            while len(alive := _alive(run)) < 2:
                time.sleep(0.05)
            time.sleep(rng.random() * 1.5)
            killed += kill(rng.choice(alive))
        time.sleep(1)
        found.append(run.stop())
        lost += run.seen().count("lost worker")
        print(f"{killed} kills", flush=True)
        shutil.rmtree(run.out)
    same = same_bits(folder, "plain2", found)
    steps = " and ".join(str(n) for n, _ in found)
    return [
        f"W2 | kill -9 of one of three workers at a random moment, {killed} times in {len(found)} "
        f"runs ({steps} steps); {lost} of the kills were in a block | {outcome(same)}"
    ]


def outcome(same: Sequence[bool]) -> str:
    """Return the last two columns of a row about several runs."""
    return f"{sum(same)} of {len(same)} runs | {'same' if all(same) else 'OTHER'}"


def _alive(run: Run) -> list[str]:
    """Return the processes of the workers that have joined and are not lost."""
    if run.ended:
        raise RuntimeError(f"the run has ended too early:\n{run.seen()}")
    return _joined(run)


def _joined(run: Run) -> list[str]:
    gone = set(re.findall(r"lost worker (\S+):", run.seen()))
    joined = re.findall(JOINED, run.seen())
    return [pid for name, pid in joined if name not in gone and Path(f"/proc/{pid}").exists()]


def w5(folder: Path, steps: int) -> list[str]:
    """In every step, a worker is killed, and another one joins in one of the next steps."""
    more = ["--grad-acc", "1024", "--block", "64"]
    run = started(partial(Run, folder, "steps", steps, *more, ray="local:4"))
    killed: set[int] = set()
    while not run.ended:
        now = run.seen().count("iter=")
        if now not in killed and now < steps and len(alive := _joined(run)) > 1:
            kill(alive[0])  # the oldest worker
            killed.add(now)
        time.sleep(0.05)
    found = run.bits()
    n = len(re.findall(JOINED, run.seen())) - 4
    wanted = Run(folder, "plain5", steps, *more).bits()
    return [
        f"W5 | one of four workers is killed (kill -9) in {len(killed)} of {steps} steps, and {n} "
        f"others join | {found} | {compared([found], wanted)}"
    ]


def w6(folder: Path, count: int, rng: random.Random, per_run: int = 10) -> list[str]:
    """Kill the driver at a random moment; continue with another number of workers."""
    found, killed, numbers = [], 0, set()
    while killed < count:
        out, n = f"driver{killed}", 2
        run = started(partial(Run, folder, out, ENDLESS, ray=f"local:{n}"))
        for _ in range(min(per_run, count - killed)):
            time.sleep(rng.random() * 1.0)
            if run.ended:
                raise RuntimeError(f"the run has ended too early:\n{run.seen()}")
            run.process.kill()
            run.process.wait()
            killed += 1
            n = rng.choice([k for k in (1, 2, 3) if k != n])
            numbers.add(n)
            more = ["--checkpoint-in", str(run.out / "chk-LATEST.gguf")]
            more += ["--adam-iter", str(ENDLESS)]
            again = partial(Run, folder, out, ENDLESS, *more, ray=f"local:{n}", fresh=False)
            run = continued(again, run.seen().count("iter="))
        found.append(run.stop())
        print(f"{killed} kills", flush=True)
        shutil.rmtree(run.out)
    same = same_bits(folder, "plain6", found)
    steps = " and ".join(str(n) for n, _ in found)
    return [
        f"W6 | kill -9 of the driver at a random moment, {killed} times in {len(found)} runs "
        f"({steps} steps), each time continued with another number of workers ({min(numbers)} to "
        f"{max(numbers)}) | {outcome(same)}"
    ]


def w7(folder: Path) -> list[str]:
    """Try an address without a token; try to join the cluster of a run with `local:2`."""
    run = Run(folder, "token", 2, ray="10.255.255.1:6379")
    code, line = run.process.wait(timeout=300), run.seen().strip().splitlines()[-1]
    right = code == 2 and "RAY_AUTH_MODE=token" in line
    rows = [f"W7 | an address without a token | exit {code} | {'refused' if right else 'OTHER'}"]
    run = started(partial(Run, folder, "stranger", ENDLESS, ray="local:2"))
    address = cluster_of(run.process.pid)
    env = {name: x for name, x in os.environ.items() if not name.startswith("RAY_")}
    program = f"import ray; ray.init(address={address!r}, logging_level='ERROR')"
    other = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120
    )
    run.stop()
    refused = other.returncode == 1 and "InvalidAuthToken" in other.stderr
    rows.append(
        "W7 | another process connects to the cluster of local:2 without its token | exit "
        f"{other.returncode} | {'refused' if refused else 'OTHER'}"
    )
    return rows


def cluster_of(driver: int) -> str:
    """Return HOST:PORT of the cluster that a process has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            if name.endswith("(raylet") and int(rest.split()[1]) == driver:
                words = stat.with_name("cmdline").read_text()
                return re.findall(r"gcs-address=([0-9.]+:[0-9]+)", words)[0]
    raise RuntimeError(f"process {driver} has no raylet")
