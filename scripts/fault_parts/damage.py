"""Damaged, changed and replaced files of a continued run (F08, F09, F10, F17)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from examples.toy_models import make_llama
from scripts.fault_parts.box import Box, Done, fault

LAST = 6


def _a_run(box: Box) -> Path:
    folder = box.copy()
    assert box.run(box.args(folder, LAST), folder).code == 0
    return folder


def _again(box: Box, folder: Path, *more: str, n_iter: int = 3) -> Done:
    latest = str(folder / "chk-LATEST.gguf")
    return box.run(box.args(folder, n_iter, "--checkpoint-in", latest, *more), folder)


def _clone(box: Box, done: Path) -> Path:
    folder = box.copy()
    for path in done.glob("*-*"):
        shutil.copy(path, folder)
    return folder


@fault("F08", "newest checkpoint truncated, with one bit flipped, empty, or from a different run")
def damaged(box: Box) -> Iterator[str]:
    """Expect a warning and the same bits from the previous one; exit 5 with `--strict-resume`."""
    run = _a_run(box)
    whole = (run / "chk-LATEST.gguf").read_bytes()
    bits = [box.rng.randrange(8 * len(whole)) for _ in range(box.n(3, 100))]
    cuts = range(0, len(whole), 4096 if box.full else 1 << 16)
    spoiled = [whole[:n] for n in cuts]
    for bit in bits:
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        spoiled.append(bytes(raw))
    for i, raw in enumerate(spoiled):
        folder = _clone(box, run)
        for name in ("chk-LATEST.gguf", f"chk-{LAST}.gguf"):
            (folder / name).write_bytes(raw)
        wrong = ""
        if i % 5 == 0:
            strict = _again(box, folder, "--strict-resume", "--force")
            wrong = box.told(strict, (5,))
        done = _again(box, folder)
        if done.code or "warning: " not in done.out or "chk-LATEST.gguf: " not in done.out:
            wrong = wrong or f"exit {done.code}: {done.err[-200:]}"
        if not (folder / "chk-LATEST.gguf.damaged").exists():
            wrong = wrong or "the damaged file is not kept"
        yield wrong or box.finished(folder, LAST)
        shutil.rmtree(folder)
    other = box.copy()
    box.run([*box.args(other, LAST), "--seed", "5"], other)
    shutil.copy(other / "chk-LATEST.gguf", run)
    yield box.told(_again(box, run), (5,))
    shutil.rmtree(run)


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


LATEST: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "binary": lambda p: p.write_bytes(bytes(range(256)) * 9),
    "missing": lambda p: p.unlink(),
    "a text": lambda p: p.write_text("../../etc/passwd\n"),
    "a link to nowhere": lambda p: _link(p, "../../no-such-file"),
    "a link outside": lambda p: _link(p, "/etc/passwd"),
    "a link to a device": lambda p: _link(p, "/dev/zero"),
    "a pipe": _fifo,
    "a folder": _folder,
}


@fault("F09", "LATEST is empty, binary, missing, a link, a pipe or a folder")
def latest(box: Box) -> Iterator[str]:
    """Expect one line or a good run, unchanged numbered checkpoints, and no change outside."""
    run = _a_run(box)
    outside = Path("/etc/passwd").read_bytes()
    for what, spoil in LATEST.items():
        folder = _clone(box, run)
        spoil(folder / "chk-LATEST.gguf")
        numbered = {p: p.read_bytes() for p in folder.glob("chk-[0-9]*")}
        done = _again(box, folder)
        wrong = box.told(done, (0, 1, 2, 3, 5))
        if any(not p.exists() or p.read_bytes() != raw for p, raw in numbered.items()):
            wrong = wrong or "a numbered checkpoint is another one"
        if Path("/etc/passwd").read_bytes() != outside:
            wrong = wrong or "a file outside was changed"
        yield wrong and f"{what}: {wrong}"
        shutil.rmtree(folder)


@fault("F10", "all checkpoints are damaged")
def all_damaged(box: Box) -> Iterator[str]:
    """Expect exit 5 and unchanged files."""
    run = _a_run(box)
    for raw in (b"", b"GGUF", bytes(5000)):
        for path in run.glob("chk-*"):
            path.write_bytes(raw)
        before = {p.name: p.read_bytes() for p in run.glob("*.gguf")}
        wrong = box.told(_again(box, run), (5,))
        same = {p.name: p.read_bytes() for p in run.glob("*.gguf")} == before
        yield wrong or ("" if same else "files were changed")


@fault("F17", "model, data, options or adapter changed between two runs")
def changed(box: Box) -> Iterator[str]:
    """Expect exit 5, a line that names the difference, and unchanged files."""
    run = _a_run(box)
    edits: list[tuple[str, Callable[[Path], object], list[str]]] = [
        ("base model", lambda f: make_llama(f / "toy.gguf", seed=1), []),
        ("block_count", lambda f: make_llama(f / "toy.gguf", n_layer=3), []),
        ("training data", lambda f: (f / "text.txt").write_text("the rat " * 20), []),
        ("batch", lambda f: None, ["--batch", "3"]),
        ("lr was", lambda f: None, ["--adam-alpha", "0.5"]),
        ("seed", lambda f: None, ["--seed", "12"]),
        ("ctx", lambda f: None, ["--ctx", "8"]),
        ("rank", lambda f: None, ["--rank-wq", "3"]),
    ]
    for what, edit, more in edits:
        folder = _clone(box, run)
        edit(folder)
        before = {p.name: p.read_bytes() for p in folder.glob("*-*.gguf")}
        done = _again(box, folder, *more)
        wrong = box.told(done, (5,)) or ("" if what in done.err else f"not named: {done.err}")
        if {p.name: p.read_bytes() for p in folder.glob("*-*.gguf")} != before:
            wrong = wrong or "files were changed"
        yield wrong and f"{what}: {wrong}"
        shutil.rmtree(folder)
