"""Kills and signals at random moments (F01, F02, F11, F12)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

from scripts.fault_parts.box import Box, N, Process, fault


def _at_random(box: Box, process: Process) -> None:
    """Wait for a random time, up to slightly more than a whole run, or until the process ends."""
    end = time.monotonic() + box.rng.uniform(0, 1.1 * box.seconds)
    while process.alive() and time.monotonic() < end:
        time.sleep(0.001)


@fault("F01", "kill -9 at a random moment")
def kill(box: Box) -> Iterator[str]:
    """Kill half of the runs at any time, and half of them shortly after a save."""
    for i in range(box.n(12, 200)):
        folder = box.copy()
        process = box.begin(box.args(folder), folder)
        if i % 2:
            saves = box.rng.randrange(1, 12)
            while process.alive() and len(list(folder.glob("chk-*.gguf"))) < saves:
                time.sleep(0.001)
            time.sleep(box.rng.uniform(0, 0.03))
        else:
            _at_random(box, process)
        process.kill()
        process.end()
        yield box.after_a_kill(folder) if (folder / "log.jsonl").exists() else ""


@fault("F02", "a single run that is killed repeatedly")
def chain(box: Box) -> Iterator[str]:
    """Kill a run at most 20 times, each time at a random moment; then let it finish."""
    n_iter = 200
    box.prepare(n_iter)
    for _ in range(box.n(1, 10)):
        folder = box.copy()
        kills = 0
        wrong = ""
        while kills < box.n(5, 20) and not wrong and (at := box.reached(folder)) < n_iter:
            more = ["--checkpoint-in", str(folder / "chk-LATEST.gguf"), "--force"]
            process = box.begin(box.args(folder, n_iter - at, *more), folder)
            _at_random(box, process)
            process.kill()
            process.end()
            kills += 1
            wrong = box.torn(folder)
        yield wrong or box.resumed(folder, n_iter)
        shutil.rmtree(folder)


def _signals(box: Box, name: str) -> Iterator[str]:
    signum = getattr(signal, name)
    n = box.n(4, 50)
    for i in range(n):
        folder = box.copy()
        if i % 2:  # a new interpreter, from its start on
            child = box.start(box.args(folder), folder)
            late = time.monotonic() + box.rng.uniform(0, box.seconds)
            while child.poll() is None and time.monotonic() < late:
                time.sleep(0.001)
            child.send_signal(signum)
            sent = time.monotonic()
            try:
                out, err = child.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
                out, err = child.communicate()
            code = child.returncode
        else:
            process = box.begin(box.args(folder), folder)
            _at_random(box, process)
            process.kill(signum)
            sent = time.monotonic()
            code, out, err, _ = process.end(60)
        # before our first line the system ends the process, which a shell also reports as 128 + n
        wrong = ""
        starting = _of_python(err, out)  # then Python itself may exit with 1
        if code not in (0, 128 + signum, -signum, *([1] if starting else [])):
            wrong = f"exit code {code}: {err[-200:]}"
        elif (len(err.splitlines()) > 1 or "Traceback" in err) and not starting:
            wrong = f"more than a line: {err[:400]}"
        elif code == -signum and (err or out) and not starting:
            wrong = f"ended by the system after its first line: {out[:100]}{err[:100]}"
        elif time.monotonic() - sent > 10:
            wrong = "later than 10 s"
        yield wrong or box.torn(folder) or box.resumed(folder)
        shutil.rmtree(folder)


def _of_python(err: str, out: str) -> bool:
    """Return whether Python was still starting: SIGINT's traceback then contains none of our files.

    No program can prevent this, because its first line has not been read yet.
    """
    return "KeyboardInterrupt" in err and "/nbllama/" not in err and not out


def _for_each() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):

        def run(box: Box, name: str = name) -> Iterator[str]:
            return _signals(box, name)

        fault("F11", f"{name} at a random moment, from the first millisecond on")(run)


_for_each()


@fault("F12", "a second SIGINT shortly after the first, or SIGKILL after SIGTERM")
def twice(box: Box) -> Iterator[str]:
    """Send both signals within 50 ms."""
    for i in range(box.n(4, 40)):
        folder = box.copy()
        threads = ["--threads", str(1 + i // 2 % 2)]
        process = box.begin(box.args(folder, N, *threads), folder)
        _at_random(box, process)
        first, second = ((signal.SIGINT,) * 2, (signal.SIGTERM, signal.SIGKILL))[i % 2]
        process.kill(first)
        time.sleep(box.rng.uniform(0, 0.05))
        process.kill(second)
        done = process.end()
        allowed = (0, 130, -2) if i % 2 == 0 else (0, 143, -9, -15)
        wrong = "" if done.code in allowed else f"exit code {done.code}: {done.err[-200:]}"
        yield wrong or box.torn(folder) or box.resumed(folder, N)
        shutil.rmtree(folder)
