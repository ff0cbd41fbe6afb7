"""Full disks and closed readers (F05, F19)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.fault_parts.box import Box, Done, NotRun, fault


@contextmanager
def small_disk(folder: Path, size: str, *more: str) -> Iterator[Path]:
    """Mount a tmpfs of this size inside the `with` block."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *more]), "tmpfs"]
    try:
        done = subprocess.run([*command, str(folder)], capture_output=True)
    except OSError:
        raise NotRun("there is no mount program") from None
    if done.returncode:
        raise NotRun("a small disk cannot be mounted (root only)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _grow(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)


@fault("F05", "disk full during a save (free space from 64 KB, in steps of 64 KB)")
def full(box: Box) -> Iterator[str]:
    """Expect exit 6 if the last save fails, no torn file, and a good run once there is space."""
    base = sum(p.stat().st_size for p in box.base.iterdir()) // 1024
    ended = False
    for k in range(1, 40):
        if ended or (not box.full and k % 4 != 1):
            continue
        folder = box.folder / f"disk-{k}"
        with small_disk(folder, f"{base + 64 * k}k"):
            box.copy(folder)
            done = box.run(box.args(folder, 6, "--save-every", "2"), folder)
            wrong = box.told(done, (0, 3, 6)) or box.torn(folder)
            if done.code == 6 and not done.err:
                wrong = wrong or "exit 6 without a line"
            ended = done.code == 0 and "No space" not in done.out
            _grow(folder)
            yield wrong or box.resumed(folder, 6)


@fault("F19", "the program that reads the output exits, or the output or the log cannot be written")
def readers(box: Box) -> Iterator[str]:
    """Expect the training to finish normally."""
    for what in ("pipe", "closed", "/dev/full", "log on a full disk"):
        folder = box.copy()
        args = box.args(folder, 6)

        def setup(what: str = what) -> None:
            if what == "closed":
                os.close(1)
            elif what == "/dev/full":
                os.dup2(os.open(what, os.O_WRONLY), 1)

        if what.startswith("log"):
            with small_disk(box.folder / "log-disk", "4k") as disk:
                log = str(disk / "log.jsonl")
                done = box.run([*args, "--log", log], folder)
        elif what == "pipe":
            read, write = os.pipe()
            os.close(read)
            child = box.start(args, folder, stdout=write)
            os.close(write)
            _, err = child.communicate()
            done = Done(child.returncode, "", err, 0.0)
        else:
            done = box.run(args, folder, setup)
        wrong = box.told(done, (0,)) or box.finished(folder, 6)
        yield wrong and f"{what}: {wrong}"
        shutil.rmtree(folder)
