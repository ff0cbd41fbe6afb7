"""A training run as a child process that a test can wait for, kill, and compare."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gguf import GGUFReader, ReaderTensor

ROOT = Path(__file__).resolve().parents[2]
SAME = ["--ctx", "64", "--batch", "2", "--grad-acc", "8", "--block", "1", "--warmup", "2"]
SAME += ["--seed", "11", "--threads", "1", "--save-every", "1", "--keep-last", "0"]
SAME += ["--cos-decay-steps", "200"]
ENDLESS = 100_000  # steps of a run that a test stops
JOINED = r"worker (\S+) joined \(process (\d+)\)"


def make(folder: Path) -> None:
    """Make a small random model and a text."""
    from examples.toy_models import make_llama
    from tests.train.toy_runs import toy_text

    make_llama(folder / "toy.gguf", n_embd=128, n_ff=256)
    toy_text(folder / "text.txt", 6000)


def by_name(tensor: ReaderTensor) -> str:
    """Return the name of a tensor."""
    return str(tensor.name)


class Run:
    """The program, with its files in `folder`/`out`. `around`: a command that starts it."""

    def __init__(
        self,
        folder: Path,
        out: str,
        steps: int,
        *more: str,
        ray: str = "",
        around: Sequence[str] = (),
        fresh: bool = True,
        env: dict[str, str] | None = None,
    ) -> None:
        self.steps = steps
        self.out = folder / out
        self.out.mkdir(exist_ok=True)
        words = ["--model-base", str(folder / "toy.gguf"), "--train-data", str(folder / "text.txt")]
        words += ["--checkpoint-out", str(self.out / "chk-ITERATION.gguf"), "--lora-out", ""]
        words += ["--log", str(self.out / "log.jsonl"), *SAME]
        words += ["--checkpoint-in", "", "--adam-iter", str(steps)] if fresh else []
        words += ["--ray", ray] if ray else []
        self.text = self.out / "screen.txt"
        with open(self.text, "a") as screen:
            self.process = subprocess.Popen(
                [*around, sys.executable, "-m", "nbllama.finetune", *words, *more],
                stdout=screen, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
            )  # fmt: skip

    def seen(self) -> str:
        """Return the output so far."""
        return self.text.read_text(encoding="utf-8", errors="replace")

    @property
    def ended(self) -> bool:
        """Return whether the process has ended."""
        return self.process.poll() is not None

    def wait_for(self, pattern: str, n: int = 1, seconds: float = 300) -> list[str]:
        """Wait until a pattern is in the output n times; return what was found."""
        end = time.monotonic() + seconds
        while len(found := re.findall(pattern, self.seen())) < n:
            if time.monotonic() > end or self.ended:
                raise RuntimeError(f"{pattern} is not in the output:\n{self.seen()}")
            time.sleep(0.02)
        return found

    def done(self) -> int:
        """Return the number of iterations that a checkpoint has."""
        found = [int(m) for m in re.findall(r"chk-(\d+)", " ".join(os.listdir(self.out)))]
        return max(found, default=0)

    def bits(self) -> str:
        """Wait for the end; return the bits of the last checkpoint, see `bits_at`."""
        if self.process.wait(timeout=900):
            raise RuntimeError(self.seen())
        return self.bits_at(self.steps)

    def bits_at(self, step: int) -> str:
        """Return the beginning of the sha256 of the arrays in a checkpoint.

        They are the adapter and the moments. The file also has the number of steps that were asked
        for, which differs if a run is stopped.
        """
        digest = hashlib.sha256()
        for tensor in sorted(GGUFReader(self.out / f"chk-{step}.gguf").tensors, key=by_name):
            digest.update(f"{tensor.name} {tensor.shape.tolist()}".encode())
            digest.update(tensor.data.tobytes())
        return digest.hexdigest()[:16]

    def stop(self) -> tuple[int, str]:
        """Let the run save and stop; return its iteration and the bits."""
        self.process.terminate()
        if self.process.wait(timeout=300) != 128 + signal.SIGTERM:
            raise RuntimeError(self.seen())
        return self.done(), self.bits_at(self.done())


def same_bits(folder: Path, out: str, found: Sequence[tuple[int, str]]) -> list[bool]:
    """Run without Ray up to the last of these iterations; compare the bits of each of them."""
    plain = Run(folder, out, max(n for n, _ in found))
    plain.bits()
    return [plain.bits_at(n) == bits for n, bits in found]


def started(start: Callable[[], Run]) -> Run:
    """Start a run, again if Ray takes more than its 30 s; return it in its first iteration."""
    for _ in range(5):
        run = start()
        try:
            run.wait_for("iter= ")
        except RuntimeError:
            if "Ray did not start" not in run.seen():
                raise
            print("Ray did not start; trying again", flush=True)
            shutil.rmtree(run.out)
        else:
            return run
    raise RuntimeError("Ray did not start 5 times in a row")


def compared(found: Sequence[str], wanted: str) -> str:
    """Return the last column of a row of results."""
    return "same" if found and all(one == wanted for one in found) else "OTHER"
