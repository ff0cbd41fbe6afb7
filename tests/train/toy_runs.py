"""Small training runs: toy models, data in memory, and the program, here or as a child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.toy_models import make_llama
from nbllama.data import Batch, SeedFeed
from nbllama.data.batch import RowPerSample
from nbllama.lora.pairs import SLOTS, Adapter, init_adapter
from nbllama.model.passes import Model, load_model
from nbllama.opt.adamw import AdamW
from nbllama.opt.schedule import Schedule
from nbllama.train.trainer import Trainer
from tests.conftest import ROOT

EVERY_SLOT = {slot.name: 1 + i % 3 for i, slot in enumerate(SLOTS)}
RATES = Schedule(warmup=3)


def toy_model(folder: Path, **options: Any) -> Model:
    """A random model in `folder`/toy.gguf; F32, so that few kernels are compiled."""
    path = folder / "toy.gguf"
    if not path.exists():
        make_llama(path, **options)
    return load_model(path)


def toy_adapter(model: Model, ranks: dict[str, int] | None = None, seed: int = 5) -> Adapter:
    """Random A *and* B: at B = 0 the gradient of A is always zero."""
    ranks = EVERY_SLOT if ranks is None else ranks
    if model.hp.tied_output:
        ranks = ranks | {"out": 0}
    adapter = init_adapter(model.hp, ranks, alpha=3.0, lora_r=2, seed=seed, shapes=model.shapes)
    rng = np.random.default_rng(seed)
    for p in adapter.parameters().values():
        p[...] = rng.standard_normal(p.shape) * 0.1
    return adapter


@dataclass
class Rows(RowPerSample):
    """A data set of given rows."""

    rows: list[tuple[np.ndarray, np.ndarray]]
    kind: str = "chat"
    fingerprint: str = "00" * 32
    notes: tuple[str, ...] = field(default=())

    @property
    def n_samples(self) -> int:
        return len(self.rows)

    def n_tokens(self, i: int) -> int:
        return len(self.rows[i][0])

    def n_trained(self, i: int) -> int:
        return int((self.rows[i][1] >= 0).sum())

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch.from_rows([self.rows[i] for i in indices])


def random_rows(model: Model, lengths: Sequence[int], seed: int = 1) -> Rows:
    """Rows of these lengths; the share of trained tokens differs from row to row."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, n in enumerate(lengths):
        tokens, targets = rng.integers(0, model.hp.n_vocab, (2, n)).astype(np.int32)
        targets[: n * (i % 3) // 3] = -1
        rows.append((tokens, targets))
    return Rows(rows)


def random_batch(model: Model, lengths: Sequence[int]) -> Batch:
    """A batch of rows of these lengths; the first third of each is not trained."""
    rng = np.random.default_rng(1)
    rows = []
    for n in lengths:
        tokens, targets = rng.integers(0, model.hp.n_vocab, (2, n)).astype(np.int32)
        targets[: n // 3] = -1
        rows.append((tokens, targets))
    return Batch.from_rows(rows)


def trainer(model: Model, adapter: Adapter, data: Any, **options: Any) -> Trainer:
    """A trainer with `options` of `Trainer` and of `AdamW` (`alpha`, `gclip`, `decay`)."""
    own = {k: options.pop(k) for k in ("alpha", "gclip", "decay") if k in options}
    rates = options.pop("rates", RATES)
    feed = SeedFeed(data, options.pop("seed", 7))
    standard: dict[str, Any] = dict(feed=feed, batch=2, grad_acc=1, checkpointing=False)
    options = standard | options
    return Trainer(model, adapter, AdamW(adapter.parameters(), **own), data, rates=rates, **options)


class State(NamedTuple):
    """Copies of everything that a step changes."""

    arrays: dict[str, np.ndarray]
    counters: tuple[Any, ...]


def state_of(t: Trainer) -> State:
    groups = {"p": t.adapter.parameters(), "m": t.opt.m, "v": t.opt.v}
    arrays = {f"{g} {name}": x.copy() for g, d in groups.items() for name, x in d.items()}
    return State(arrays, (t.iteration, t.position, t.samples_seen, t.tokens_seen, t.opt.iteration))


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


# The program


class Done(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str


def toy_text(path: Path, n: int = 1500) -> Path:
    """A text of `n` characters with some repetition."""
    rng = np.random.default_rng(3)
    words = ["the", "hen", "and", "her", "rat", "eat", "on", "thin", "reed", "you", "hate", "it"]
    path.write_text(" ".join(rng.choice(words, n))[:n], encoding="utf-8")
    return path


def toy_chat(path: Path, n: int = 6) -> Path:
    """`n` short chats."""
    rows = []
    for i in range(n):
        talk = [("user", f"say {i}" + " please" * (i % 3)), ("assistant", "the hen " * (1 + i % 4))]
        rows.append({"messages": [{"role": r, "content": c.strip()} for r, c in talk]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def words(folder: Path, *more: str, ctx: int = 16) -> list[str]:
    """Options of a short run in `folder`, on its toy.gguf and text.txt. A fresh start replaces the
    files of an earlier one.
    """
    fresh = [] if "--checkpoint-in" in more else ["--force"]
    return [
        "--model-base", str(folder / "toy.gguf"), "--train-data", str(folder / "text.txt"),
        "--checkpoint-in", "", "--checkpoint-out", str(folder / "chk-ITERATION.gguf"),
        "--lora-out", str(folder / "lora-ITERATION.gguf"), "--ctx", str(ctx), "--batch", "2",
        "--adam-iter", "4", "--warmup", "2", "--seed", "11", "--threads", "1", *fresh, *more,
    ]  # fmt: skip


def _environment(**changed: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_NUM")}
    path = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"PYTHONPATH": os.pathsep.join(path)} | changed


def _by_default() -> None:
    # A shell that started the tests in the background makes its children ignore SIGINT.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)


class Child:
    """`python -m nbllama.finetune` as a separate process."""

    def __init__(self, args: Sequence[str], folder: Path, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nbllama.finetune", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=_environment(**env),
            preexec_fn=_by_default,
        )

    def wait_for(self, there: Callable[[], bool], seconds: float = 300) -> None:
        """Wait until `there()`; the child must not end before."""
        end = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.005)

    def end(self, seconds: float = 300) -> Done:
        out, err = self.process.communicate(timeout=seconds)
        return Done(self.process.returncode, out.decode(), err.decode())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def run_child(args: Sequence[str], folder: Path, **env: str) -> Done:
    return Child(args, folder, **env).end()


def log_rows(path: Path) -> list[dict[str, Any]]:
    """The iterations in a log."""
    return [row for row in events(path) if "event" not in row]


def events(path: Path, kind: str = "") -> list[dict[str, Any]]:
    """All lines of a log, or those of one kind."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if not kind or row.get("event") == kind]


def file_bits(path: Path) -> dict[str, bytes]:
    """Every tensor of a GGUF file, read by the `gguf` package."""
    from gguf import GGUFReader

    return {t.name: t.data.tobytes() for t in GGUFReader(path).tensors}
