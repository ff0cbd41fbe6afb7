"""Read damaged files: each must be read correctly, or refused in one line.

    scripts/fuzz TARGET --seconds N --seed S [--files N]

TARGET is one of `TARGETS`, or `all`, which divides the time among them. `--files` also limits the
number of files per target. Reading a file may take 2 seconds, and 300 MB more than the file before
it. Numbers that are read must be finite, and tensors must be inside the file. A file with a wrong
outcome is kept in build/fuzz, named after target, seed and number, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from nbllama.adapter.file import load_adapter, save_adapter
from nbllama.arch import hparams_from_gguf
from nbllama.checkpoint.file import load_checkpoint, save_checkpoint
from nbllama.data.records import open_data
from nbllama.errors import NbllamaError
from nbllama.gguf_io import open_gguf
from nbllama.options.finetune.table import parse
from nbllama.report.write import write_report
from nbllama.text import tokenizer_from_gguf
from scripts.fuzz_parts import templates
from tests.adapter.test_fuzz import damaged
from tests.checkpoint.old_states import write
from tests.checkpoint.run_states import forge, make_state
from tests.checkpoint.test_old_checkpoint import parts
from tests.gguf_io.fuzz import mutated
from tests.report.story import write_log
from tests.test_hostile_counts import hostile, make_adapter, make_model
from tests.train.toy_runs import toy_adapter, toy_chat, toy_model

SECONDS, MEGABYTES = 2.0, 300
TOO_LONG = f"more than {SECONDS:g} s"
SCRIPTS = 2  # script elements in a page about a run
ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "fuzz"
Read = Callable[[Path], None]
Spoil = Callable[[Path, bytes, random.Random], None]


class Target(NamedTuple):
    """`make` writes a good file, `spoil` a damaged one over it, `read` reads it."""

    make: Callable[[Path], Path]
    spoil: Spoil
    read: Read


class TooSlow(BaseException):
    """Reading a file takes too long."""


def bytes_of(path: Path, whole: bytes, rng: random.Random) -> None:
    """Change a few bytes of the file."""
    path.write_bytes(damaged(whole, rng))


def structure(path: Path, whole: bytes, rng: random.Random) -> None:
    """Write a GGUF file of random atoms, some of them changed."""
    path.write_bytes(mutated(rng))


def values(path: Path, whole: bytes, rng: random.Random) -> None:
    """Change a few values of a checkpoint, with a correct sha256."""
    path.write_bytes(whole)

    def change(entries: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        first = dict(entries)
        for _ in range(rng.choice((1, 1, 2, 4))):
            if rng.random() < 0.2 and tensors:
                flat = tensors[rng.choice(list(tensors))].reshape(-1)
                flat[rng.randrange(flat.size)] = rng.choice((np.nan, np.inf, -1.0, 3e38, 1e-45))
            elif rng.random() < 0.15:
                entries.pop(rng.choice(list(entries)))
            else:
                key = rng.choice(list(entries))
                entries[key] = rng.choice(list(hostile(*first[key])))

    forge(path, change)


def text(path: Path, whole: bytes, rng: random.Random) -> None:
    """Change characters and lines of a text."""
    lines = whole.splitlines(keepends=True)
    for _ in range(rng.choice((1, 2, 5))):
        i = rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                lines[i] = damaged(lines[i].ljust(80), rng)  # long enough for all kinds of damage
            case 1:
                del lines[i]
                lines = lines or [b""]
            case 2:
                lines.insert(i, rng.choice(lines))
            case 3:
                token = rng.choice(
                    (b"[" * 500, b"1e999", b"-1", b"null", b'"\\u0000"', b"{}", b"\0")
                )
                at = rng.randrange(len(lines[i]) + 1)
                lines[i] = lines[i][:at] + token + lines[i][at:]
    path.write_bytes(b"".join(lines))


def read_tensors(path: Path) -> None:
    """Read a header; check that every tensor is inside the file."""
    size = path.stat().st_size
    with open_gguf(path) as f:
        for t in f.tensors.values():
            assert t.offset >= 0, t
            assert t.offset + t.nbytes <= size, t
            assert f.data(t.name).nbytes == t.nbytes


def read_model(path: Path) -> None:
    """Read a model's header, sizes and vocabulary."""
    read_tensors(path)
    with open_gguf(path) as f:
        hparams_from_gguf(f)
        tokenizer_from_gguf(f).encode("the hen", add_special=True)


@functools.cache
def _base(folder: Path) -> tuple[Any, Any]:
    model = toy_model(folder)
    return model.hp, model.shapes


def read_adapter(path: Path) -> None:
    """Read an adapter of any format for the model next to it; check that its numbers are finite."""
    adapter = load_adapter(path, *_base(path.parent), say=lambda line: None)
    for pair in adapter.pairs.values():
        assert np.isfinite(pair.a).all() and np.isfinite(pair.b).all()


def read_checkpoint(path: Path) -> None:
    """Read a checkpoint; check that its numbers are finite."""
    state = load_checkpoint(path)
    for arrays in (state.adapter.parameters(), state.m, state.v):
        assert all(np.isfinite(x).all() for x in arrays.values())


def read_peft(path: Path) -> None:
    """Read the folder of a PEFT file."""
    read_adapter(path.parent)


def _adapter(folder: Path, name: str) -> None:
    model = toy_model(folder)
    ranks = {"wq": 2, "wk": 1, "w2": 2}
    save_adapter(folder / name, toy_adapter(model, ranks), model.hp)


def make_bin(folder: Path) -> Path:
    """Write a .bin adapter."""
    _adapter(folder, "a.bin")
    return folder / "a.bin"


def make_peft(name: str) -> Callable[[Path], Path]:
    """Write a PEFT folder whose file `name` will be damaged."""

    def make(folder: Path) -> Path:
        (folder / "peft").mkdir()
        _adapter(folder, "peft/")
        return folder / "peft" / name

    return make


def make_checkpoint(folder: Path) -> Path:
    """Write a checkpoint."""
    save_checkpoint(folder / "c.gguf", make_state())
    return folder / "c.gguf"


def make_config(folder: Path) -> Path:
    """Write a file of options."""
    path = folder / "c.yaml"
    path.write_text((ROOT / "examples" / "config.yaml").read_text(encoding="utf-8"))
    return path


TARGETS = {
    "gguf": Target(make_model, structure, read_tensors),
    "model": Target(make_model, bytes_of, read_model),
    "adapter": Target(make_adapter, bytes_of, read_adapter),
    "bin": Target(make_bin, bytes_of, read_adapter),
    "safetensors": Target(make_peft("adapter_model.safetensors"), bytes_of, read_peft),
    "adapter-config": Target(make_peft("adapter_config.json"), text, read_peft),
    "checkpoint": Target(make_checkpoint, values, read_checkpoint),
    "old-checkpoint": Target(
        lambda folder: write(folder / "o.gguf", *parts()), bytes_of, read_checkpoint
    ),
    "data": Target(lambda folder: toy_chat(folder / "d.jsonl", 20), text, lambda path: _data(path)),
    "config": Target(make_config, text, lambda path: _config(path)),
    "template": Target(templates.make, templates.spoil, templates.Templates().read),
    "log": Target(lambda folder: write_log(folder / "log"), text, lambda path: _page(path)),
}


def _data(path: Path) -> None:
    open_data(path)


def _config(path: Path) -> None:
    parse(["--config", str(path), "--model-base", "m.gguf"])


def _page(path: Path) -> None:
    page = path.with_name("page.html")
    write_report(str(path), str(page))
    assert page.read_text(encoding="utf-8").count("<script") == SCRIPTS


def _too_slow(signum: int, frame: FrameType | None) -> None:
    raise TooSlow


def memory() -> int:
    """Return the peak memory of the process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def outcome(read: Read, path: Path) -> str:
    """Read a file; return "read", "refused", or what is wrong."""
    before = memory()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read(path)
        found = "read"
    except NbllamaError as e:
        one_line = str(e).isprintable() and len(str(e)) < 4000
        found = "refused" if one_line else f"the line is not one: {e!r:.200}"
    except TooSlow:
        found = TOO_LONG
    except BaseException as e:
        found = f"{type(e).__name__}: {e}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if memory() - before > MEGABYTES:
        found = f"{memory() - before} MB"
    return found


def run(name: str, seconds: float, seed: int, files: float = math.inf) -> dict[str, int]:
    """Fuzz one target for some seconds or files; return the number of files per outcome."""
    target, counts = TARGETS[name], {"read": 0, "refused": 0, "wrong": 0}
    rng = random.Random(f"{name} {seed}")
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = Path(tempfile.mkdtemp(prefix="nbllama-fuzz-", dir=shared))
    try:
        path = target.make(folder)
        whole = path.read_bytes()
        assert outcome(target.read, path) == "read", f"{name}: the good file is not read"
        end = time.monotonic() + seconds
        while time.monotonic() < end and sum(counts.values()) < files:
            target.spoil(path, whole, rng)
            found = outcome(target.read, path)
            if found == TOO_LONG:  # try again, in case the machine was busy
                found = outcome(target.read, path)
            if found in counts:
                counts[found] += 1
                continue
            counts["wrong"] += 1
            kept = KEPT / f"{name}-{seed}-{sum(counts.values())}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept)
            print(f"{kept}: {found:.300}", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return counts


def main() -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=sys.maxsize)
    asked = parser.parse_args()
    names = list(TARGETS) if asked.target == "all" else [asked.target]
    warnings.simplefilter("error")  # a numpy warning means that a number was not checked
    signal.signal(signal.SIGALRM, _too_slow)
    os.fsync = lambda fd: None  # no file here must survive a crash
    print("| target | seed | files | read | refused | wrong |\n|---|---|---|---|---|---|")
    wrong = 0
    for name in names:
        counts = run(name, asked.seconds / len(names), asked.seed, asked.files)
        n = sum(counts.values())
        row = [name, asked.seed, n, counts["read"], counts["refused"], counts["wrong"]]
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        wrong += counts["wrong"]
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
