"""Runs of the program under a fault, and checks of the result.

Each run is a separate process: a fork of this one, in which everything is imported and no kernel
has run, or a new interpreter (`start`) for faults that concern the start.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import nbllama.cli.ui
import nbllama.finetune
import nbllama.train.run.run
from examples.toy_models import make_llama
from nbllama.checkpoint.file import SHA_KEY, load_checkpoint
from nbllama.errors import NbllamaError
from nbllama.gguf_io import open_gguf
from tests.train.toy_runs import toy_text, words

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300.0  # a run that takes longer hangs
N, EVERY = 24, 3  # iterations, and iterations between saves
CODES = (0, 1, 2, 3, 4, 5, 6, 7)  # from errors.py, without those of signals


class NotRun(Exception):
    """This machine lacks something that a fault needs."""


class Done(NamedTuple):
    """How a run ended: exit code (negative: a signal), standard output and error, seconds."""

    code: int
    out: str
    err: str
    seconds: float


class Fault(NamedTuple):
    """A fault; `run` yields "" for each run that passed, else what was wrong."""

    name: str
    what: str
    run: Callable[[Box], Iterator[str]]


FAULTS: list[Fault] = []


def fault(name: str, what: str) -> Callable[..., Callable[[Box], Iterator[str]]]:
    """Add a function to `FAULTS`."""

    def add(run: Callable[[Box], Iterator[str]]) -> Callable[[Box], Iterator[str]]:
        FAULTS.append(Fault(name, what, run))
        return run

    return add


class Process:
    """A forked run that begins when `go` is called."""

    def __init__(self, args: Sequence[str], folder: Path, setup: Callable[[], None] | None) -> None:
        self._paths = [folder.parent / f"{folder.name}.{x}" for x in ("out", "err")]
        wait, self._gate = os.pipe()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            code = 99
            try:
                _as_a_program(args, folder, self._paths)
                os.read(wait, 1)
                if setup:
                    setup()
                code = nbllama.finetune.main.start()
                sys.stdout.flush()
            except BrokenPipeError:
                code = 0
            finally:
                os._exit(code)
        os.close(wait)

    def go(self) -> None:
        """Let the process begin."""
        os.close(self._gate)
        self.began = time.monotonic()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive():
            os.kill(self.pid, signum)

    def alive(self) -> bool:
        """Return whether the process is still running."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def end(self, seconds: float = SECONDS) -> Done:
        """Wait for the end of the process; after `seconds` it is killed, with exit code -9."""
        late = self.began + seconds
        while self.alive():
            if time.monotonic() > late:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.003)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        texts = [p.read_text(errors="replace") if p.exists() else "" for p in self._paths]
        return Done(code, *texts, time.monotonic() - self.began)


def _as_a_program(args: Sequence[str], folder: Path, paths: Sequence[Path]) -> None:
    for fd, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    os.chdir(folder)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["nbllama.finetune", *args]


class Box:
    """A folder for runs, and the correct files of a run without a fault."""

    def __init__(self, folder: Path, full: bool) -> None:
        self.folder, self.full, self.rng = folder, full, random.Random(1)
        self._made = 0
        self.base = folder / "base"
        self.base.mkdir()
        make_llama(self.base / "toy.gguf")
        toy_text(self.base / "text.txt", 112)
        self._right: dict[str, str] = {}
        self.seconds = self.prepare(N)

    def prepare(self, n_iter: int) -> float:
        """Create the correct files of `n_iter` iterations; return the seconds that this takes."""
        whole = self.copy()
        done = self.run(self.args(whole, n_iter, "--save-every", "1"), whole)
        if done.code or done.err:
            raise AssertionError(f"a run without a fault fails: {done}")
        self._right |= {p.name: content(p) for p in whole.glob("*-[0-9]*.gguf")}
        return done.seconds

    def n(self, quick: int, full: int) -> int:
        """Return the number of runs."""
        return full if self.full else quick

    def copy(self, into: Path | None = None) -> Path:
        """Make a new folder with the model and the text."""
        self._made += 1
        folder = into or self.folder / f"run-{self._made}"
        folder.mkdir(exist_ok=True)
        for file in self.base.iterdir():
            shutil.copy(file, folder)
        return folder

    def args(self, folder: Path, n_iter: int = N, *more: str) -> list[str]:
        """Return the options of a run in `folder`: one thread, which never waits for another."""
        return words(
            folder, "--log", str(folder / "log.jsonl"), "--grad-acc", "2", "--save-every",
            str(EVERY), "--adam-iter", str(n_iter), "--threads", "1", *more,
        )  # fmt: skip

    def begin(
        self, args: Sequence[str], folder: Path, setup: Callable[[], None] | None = None
    ) -> Process:
        """Begin a forked run; `setup` is called first in its process."""
        process = Process(args, folder, setup)
        process.go()
        return process

    def run(
        self, args: Sequence[str], folder: Path, setup: Callable[[], None] | None = None
    ) -> Done:
        """Run the program to its end."""
        return self.begin(args, folder, setup).end()

    def start(self, args: Sequence[str], folder: Path, **options: object) -> subprocess.Popen[str]:
        """Start a new interpreter with the program."""
        given: dict[str, object] = {
            "env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE, "preexec_fn": _default_signals,
        }  # fmt: skip
        command = [sys.executable, "-m", "nbllama.finetune", *args]
        return subprocess.Popen(command, cwd=folder, text=True, **given | options)  # type: ignore

    # Checks

    def torn(self, folder: Path) -> str:
        """Return what is wrong with the files under their final names (K1)."""
        numbered = set(self._right.values())
        for path in folder.glob("*-*.gguf"):
            try:
                found = content(path)
            except NbllamaError as e:
                return f"{path.name} is torn: {e}"
            right = numbered if "LATEST" in path.name else {self._right.get(path.name)}
            if found not in right:
                return f"{path.name} has other bits"
        return ""

    def reached(self, folder: Path) -> int:
        """Return the iteration of the newest checkpoint; 0 without one."""
        latest = folder / "chk-LATEST.gguf"
        return load_checkpoint(latest).iteration if latest.exists() else 0

    def lost(self, folder: Path) -> str:
        """Return whether more than one interval of saves is lost (K3)."""
        logged = 0
        for line in (folder / "log.jsonl").read_text(errors="replace").splitlines():
            if found := re.match(r'\{"iter": (\d+)', line):
                logged = max(logged, int(found[1]))
        at = self.reached(folder)
        return f"at {logged} iterations the save is of {at}" if logged - at > EVERY else ""

    def resumed(self, folder: Path, n_iter: int = N) -> str:
        """Continue to `n_iter`; return what differs from a run without the fault (K2)."""
        try:
            at = self.reached(folder)
        except NbllamaError as e:
            return f"cannot be continued: {e}"
        if at < n_iter:
            more = ["--checkpoint-in", str(folder / "chk-LATEST.gguf"), "--force"]
            done = self.run(self.args(folder, n_iter - at, *more), folder)
            if done.code or done.err:
                return f"the continued run ends with {done.code}: {done.err[:300]}"
        return self.finished(folder, n_iter, swept=at < n_iter)

    def finished(self, folder: Path, n_iter: int = N, *, swept: bool = True) -> str:
        """Return what differs in a finished run from one without the fault.

        `swept`: whether the last run ended normally, so that no temporary file may remain. After a
        kill at the very end, no later start has removed such a file.
        """
        if wrong := self.torn(folder):
            return wrong
        for name in (f"chk-{n_iter}.gguf", "chk-LATEST.gguf", "lora-LATEST.gguf"):
            right = self._right[name.replace("LATEST", str(n_iter))]
            if not (folder / name).exists() or content(folder / name) != right:
                return f"{name} has other bits"
        left = [p.name for p in folder.glob(".*nbllama-tmp")]
        if left and swept:
            return f"left over: {left}"
        return ""

    def told(self, done: Done, codes: Sequence[int] = CODES) -> str:
        """Return what is wrong with a run's end: exit code, several lines, a traceback (K4)."""
        if done.code not in codes:
            return f"exit code {done.code}: {done.err[-300:]}"
        if len(done.err.splitlines()) > 1 or "Traceback" in done.err + done.out:
            return f"more than a line: {done.err[-300:]}"
        return f"{done.err}" if "internal error" in done.err else ""

    def after_a_kill(self, folder: Path) -> str:
        """Return what is wrong after a kill: K1, K3, then K2."""
        try:
            return self.torn(folder) or self.lost(folder) or self.resumed(folder)
        except (NbllamaError, OSError) as e:
            return f"{type(e).__name__}: {e}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def content(path: Path) -> str:
    """Return a hash of a file, without the requested number of iterations.

    Raises NbllamaError for an incomplete file.
    """
    sha = hashlib.sha256()
    if path.name.startswith("chk"):
        load_checkpoint(path)  # checks the file's own hash
    with open_gguf(path) as f:
        for key, value, kind in f.entries():
            if key not in ("nbllama.settings.last", SHA_KEY):
                plain = value.tobytes() if isinstance(value, np.ndarray) else value
                sha.update(f"{key} {plain!r} {kind}".encode())
        for name in f.tensors:
            sha.update(name.encode() + f.data(name).tobytes())
    return sha.hexdigest()


def _default_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
