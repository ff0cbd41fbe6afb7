"""Tests on two machines: network namespaces with distinct host names, joined by a switch.

Needs root and Linux. Machine n has the address 10.77.0.n in the namespace nbr<n>; the switch is a
bridge in nbr0. The cable of a machine is pulled by setting its port of the bridge down.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from scripts.many_parts.lossy import LossyCable
from scripts.many_parts.runs import ENDLESS, ROOT, Run, compared, same_bits

PORT = 6399
RAY = str(Path(sys.executable).parent / "ray")
HEAD = f"10.77.0.1:{PORT}"
GIVEN_UP = 30.0  # seconds without a link after which Ray may have given up a machine
LINK = "tbf rate 1gbit burst 256kb latency 50ms"


def ip(*words: str) -> None:
    """Run `ip` or raise `CalledProcessError`."""
    subprocess.run(["ip", *words], check=True, stdout=subprocess.DEVNULL)


class Machines:
    """Two machines with a Ray cluster."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(32)
        self.env = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0", "NO_PROXY": "10.77.0.1,10.77.0.2",
            "no_proxy": "10.77.0.1,10.77.0.2",
        }  # fmt: skip

    def __enter__(self) -> Machines:
        self._remove()
        for n in (0, 1, 2):
            ip("netns", "add", f"nbr{n}")
            ip("-n", f"nbr{n}", "link", "set", "lo", "up")
        self._connect()
        return self

    def _connect(self) -> None:
        ip("-n", "nbr0", "link", "add", "switch", "type", "bridge")
        ip("-n", "nbr0", "link", "set", "switch", "up")
        for n in (1, 2):
            ip("link", "add", f"port{n}", "netns", "nbr0", "type", "veth", "peer", "name", "eth",
               "netns", f"nbr{n}")  # fmt: skip
            ip("-n", "nbr0", "link", "set", f"port{n}", "master", "switch", "up")
            self._up(n)
            self._tc(n)

    def _up(self, n: int) -> None:
        ip("-n", f"nbr{n}", "addr", "add", f"10.77.0.{n}/24", "dev", "eth")
        ip("-n", f"nbr{n}", "link", "set", "eth", "up")

    def __exit__(self, *error: object) -> None:
        self._remove()

    def _tc(self, n: int) -> None:
        words = ["netns", "exec", f"nbr{n}", "tc", "qdisc", "add", "dev", "eth", "root"]
        ip(*words, *LINK.split())

    def _remove(self) -> None:
        for n in (1, 2, 0):
            self.stop(n)
            subprocess.run(["ip", "netns", "del", f"nbr{n}"], stderr=subprocess.DEVNULL)

    def stop(self, n: int) -> None:
        """End all processes of a machine."""
        found = subprocess.run(
            ["ip", "netns", "pids", f"nbr{n}"], capture_output=True, text=True
        ).stdout
        for pid in found.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)

    def on(self, n: int, *before: str) -> list[str]:
        """Return a command that runs another one on machine n, after a shell line `before`."""
        line = "; ".join([f"hostname nbm{n}", *before, 'exec "$@"'])
        return ["ip", "netns", "exec", f"nbr{n}", "unshare", "-um", "sh", "-c", line, "sh"]

    def start(self, n: int, *before: str, env: dict[str, str] | None = None) -> int:
        """Start Ray on a machine; return the exit code."""
        words = ["start", f"--node-ip-address=10.77.0.{n}", "--num-cpus=1"]
        words += ["--object-store-memory=200000000"]
        if n == 1:
            words += ["--head", f"--port={PORT}", "--include-dashboard=false"]
        else:
            words += [f"--address={HEAD}"]
        return subprocess.run(
            [*self.on(n, *before), RAY, *words],
            env=os.environ | self.env | (env or {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120,
        ).returncode  # fmt: skip

    def start_surely(self, n: int, *before: str) -> None:
        """Start Ray on a machine, again if it takes more than Ray's 30 s."""
        for _ in range(5):
            if self.start(n, *before) == 0 and self.alive(n):
                return
            self.stop(n)
        raise RuntimeError(f"Ray did not start on machine {n}")

    def alive(self, n: int) -> bool:
        """Return whether Ray runs on a machine."""
        words = ["ip", "netns", "pids", f"nbr{n}"]
        pids = subprocess.run(words, capture_output=True, text=True).stdout.split()
        for pid in pids:
            with suppress(OSError):
                if b"raylet" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
        return False

    def plug(self, n: int, *, plugged: bool) -> None:
        """Pull the cable of a machine, or plug it in."""
        ip("-n", "nbr0", "link", "set", f"port{n}", "up" if plugged else "down")

    def run(self, folder: Path, out: str, steps: int, *more: str, **others: object) -> Run:
        """Start a run on machine 1."""
        env = self.env | {"RAY_AUTH_TOKEN": str(others.get("token", self.token))}
        return Run(folder, out, steps, *more, ray=HEAD, around=self.on(1), env=env)


class LossyMachines(Machines):
    """Two machines on a cable that delays each frame by 50 ms and loses 1 % of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def _connect(self) -> None:
        self.cable = LossyCable(("nbrtap1", "nbrtap2"), delay=0.05, loss=0.01, seed=self._seed)
        for n in (1, 2):
            ip("link", "set", f"nbrtap{n}", "netns", f"nbr{n}", "name", "eth")
            self._up(n)

    def __exit__(self, *error: object) -> None:
        for n in (1, 2):
            self.stop(n)
        self.cable.close()
        super().__exit__(*error)


def w4(folder: Path, steps: int, seed: int) -> list[str]:
    """Train on a slow and lossy network."""
    with LossyMachines(seed) as machines:
        machines.start_surely(1)
        machines.start_surely(2)
        time.sleep(5)
        run = machines.run(folder, "lossy", steps)
        found, text = run.bits(), run.seen()
        cable = machines.cable
    joined = text.count("joined")
    blocks = [int(n) for n in re.findall(r"worker \S+: (\d+) blocks", text)]
    late = text.count("has not answered")
    wanted = Run(folder, "plain4", steps).bits()
    return [
        f"W4 | delay 50 ms in each direction, loss 1 %: {joined} workers, {steps} steps, blocks "
        f"{blocks}, {cable.lost} of {cable.lost + cable.passed} frames lost, {late} blocks overdue "
        f"| {found} | {compared([found], wanted) if joined == 2 and min(blocks) else 'OTHER'}"
    ]


def w3(folder: Path, count: int, rng: random.Random) -> list[str]:
    """Pull the cable of machine 2 in a run, and plug it in again."""
    found, lengths = [], []
    late = lost = restarted = 0
    with Machines() as machines:
        machines.start_surely(1)
        machines.start_surely(2)
        time.sleep(3)
        for i in range(count):
            if lengths and lengths[-1] > GIVEN_UP:  # Ray has given up the machine
                restarted += 1
                machines.stop(2)
                time.sleep(2)
                machines.start_surely(2)
                time.sleep(3)
            run = machines.run(folder, f"cut{i}", ENDLESS)
            run.wait_for("joined", 2)
            run.wait_for("iter= ")
            time.sleep(rng.random())
            # every third cut is longer than Ray needs to notice it
            lengths.append(rng.uniform(70, 90) if i % 3 == 2 else rng.uniform(1, 25))
            machines.plug(2, plugged=False)
            time.sleep(lengths[-1])
            machines.plug(2, plugged=True)
            now = run.seen().count("iter=")
            run.wait_for("iter= ", now + 3)
            found.append(run.stop())
            late += "has not answered" in run.seen()
            lost += "lost worker" in run.seen()
            print(f"cut {i}: {lengths[-1]:.0f} s, steps and bits {found[-1]}", flush=True)
            shutil.rmtree(run.out)
            time.sleep(2)
    same = same_bits(folder, "plain3", found)
    return [
        f"W3 | cable pulled in {count} runs for {min(lengths):.0f} to {max(lengths):.0f} s; in "
        f"{late} of them a block was overdue, in {lost} a worker was lost, and Ray was restarted "
        f"on the second machine {restarted} times | {sum(same)} of {len(same)} runs | "
        f"{'same' if all(same) else 'OTHER'}"
    ]


def refused(text: str, *parts: str) -> str:
    """Return a result if all parts are in the output."""
    return "refused" if all(part in text for part in parts) else "OTHER"


def w7(folder: Path) -> list[str]:
    """A machine with another version, another base model, or a wrong token."""
    steps, rows = 20, []
    wanted = Run(folder, "plain7", steps).bits()
    with Machines() as machines:
        machines.start_surely(1)
        other = folder / "other-version"
        shutil.copytree(ROOT / "nbllama", other / "nbllama")
        init = other / "nbllama" / "__init__.py"
        init.write_text(init.read_text() + '\n__version__ = "0.0.1"\n', encoding="utf-8")
        code = machines.start(2, env={"RAY_AUTH_TOKEN": secrets.token_hex(32)})
        time.sleep(5)
        alone = not machines.alive(2)
        rows.append(
            f"W7 | a machine with a wrong token | exit {code}, Ray "
            f"{'has ended' if alone else 'runs'} there | {'refused' if alone else 'OTHER'}"
        )
        machines.stop(2)
        # the driver's folder is the first one that a worker looks in
        machines.start_surely(2, f"mount --bind {other}/nbllama {ROOT}/nbllama")
        time.sleep(3)
        run = machines.run(folder, "version", steps)
        found, text = run.bits(), run.seen()
        line = next((x for x in text.splitlines() if "cannot join" in x), "")
        rows.append(
            f"W7 | a machine with version 0.0.1: `{line}` | {found} | "
            f"{refused(text, 'cannot join: nbllama is 0.0.1 on the worker')}, the bits are "
            f"{compared([found], wanted)}"
        )
        machines.stop(2)
        time.sleep(5)
        rows.append(_other_base(machines, folder, steps, wanted))
        run = machines.run(folder, "wrong", steps, token=secrets.token_hex(32))
        code = run.process.wait(timeout=300)
        line = run.seen().strip().splitlines()[-1]
        right = code == 2 and "--ray" in line
        rows.append(
            f"W7 | the first machine with a wrong token: `{line[:120]}` | exit {code} | "
            f"{'refused' if right else 'OTHER'}"
        )
    return rows


def _other_base(machines: Machines, folder: Path, steps: int, wanted: str) -> str:
    """Another model is in the same path on machine 2: it gets a copy of the right one."""
    from examples.toy_models import make_llama

    make_llama(folder / "another.gguf", n_embd=128, n_ff=256, seed=5)
    where = folder / "copies"
    machines.start_surely(2, f"mount --bind {folder}/another.gguf {folder}/toy.gguf")
    time.sleep(3)
    run = machines.run(folder, "base", steps, "--model-dir", str(where))
    found, text = run.bits(), run.seen()
    copies = [path.name for path in where.glob("*.gguf")] if where.exists() else []
    joined = text.count("joined") == 2
    return (
        f"W7 | another base model in the same path: {len(copies)} copy sent, "
        f"{text.count('joined')} workers | {found} | "
        f"{compared([found], wanted) if joined and len(copies) == 1 else 'OTHER'}"
    )
