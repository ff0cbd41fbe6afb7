"""Faults at single system calls, injected with strace (F03, F06, F20)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.fault_parts.box import Box, Done, NotRun, Process, fault

NAMES = (
    "openat", "write", "fsync", "rename", "unlink", "ftruncate", "fchmod", "flock", "close"
)  # fmt: skip
ITERATIONS, SAVES = 4, ("--save-every", "2", "--keep-last", "1")


class Call(NamedTuple):
    """A system call of a run: its name, its number among calls of that name, and its paths."""

    name: str
    number: int
    paths: list[str]
    data: bytes
    result: str


def traced(box: Box, folder: Path, args: Sequence[str], *options: str) -> Done:
    """Run under strace with `options`. Only the main thread is traced, which does all saving."""
    strace = shutil.which("strace")
    if strace is None:
        raise NotRun("strace is missing")
    process = Process(args, folder, None)
    tracer = subprocess.Popen(
        [strace, "-p", str(process.pid), *options], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr
    line = tracer.stderr.readline()
    if "attached" not in line:
        process.kill()
        process.end()
        tracer.kill()
        raise NotRun(f"strace may not trace: {line.strip()[-80:]}")
    process.go()
    done = process.end()
    tracer.kill()
    tracer.communicate()
    return done


def _plain(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), text.encode("latin-1"))


def recorded(box: Box, folder: Path, args: Sequence[str]) -> list[Call]:
    """Return the system calls of a run, in order."""
    log = folder.with_suffix(".strace")
    options = ["-y", "-xx", "-s", "9999999", "-o", str(log), "-e", f"trace={','.join(NAMES)}"]
    done = traced(box, folder, args, *options)
    assert done.code == 0, done
    calls, counts = [], dict.fromkeys(NAMES, 0)
    for line in log.read_text(encoding="latin-1").splitlines():
        found = re.match(r"(\w+)\((.*)\) += (.*)$", line)
        if not found or found[1] not in counts:
            continue
        counts[found[1]] += 1
        strings = [_plain(x) for x in re.findall(r'"([^"]*)"', found[2])]
        named = [_plain(x) for x in re.findall(r"<([^>]*)>", found[2])]
        data = strings[0] if found[1] == "write" and strings else b""
        paths = named if found[1] not in ("rename", "unlink", "openat") else strings
        texts = [x.decode(errors="replace") for x in paths]
        calls.append(Call(found[1], counts[found[1]], texts, data, found[3]))
    log.unlink()
    return calls


def _inside(calls: Sequence[Call], folder: Path) -> list[Call]:
    """Return the calls on files of the folder, from the first call that changes it."""
    here = [c for c in calls if any(p.startswith(str(folder)) for p in c.paths)]
    first = next(i for i, c in enumerate(here) if c.name in ("flock", "write"))
    return here[first:]


def _points(box: Box, every: int) -> list[tuple[str, int]]:
    folder = box.copy()
    calls = _inside(recorded(box, folder, box.args(folder, ITERATIONS, *SAVES)), folder)
    shutil.rmtree(folder)
    return [(c.name, c.number) for c in calls][:: 1 if box.full else every]


@fault("F03", "kill at every system call during two saves")
def kill_at_each(box: Box) -> Iterator[str]:
    """Kill each run one call later than the previous one."""
    for name, number in _points(box, 12):
        folder = box.copy()
        inject = f"inject={name}:signal=KILL:when={number}"
        args = box.args(folder, ITERATIONS, *SAVES)
        traced(box, folder, args, "-o", "/dev/null", "-e", f"trace={name}", "-e", inject)
        wrong = box.torn(folder) or box.resumed(folder, ITERATIONS)
        yield wrong and f"{name} {number}: {wrong}"
        shutil.rmtree(folder)


def _errors(box: Box, again: str, every: int) -> Iterator[str]:
    for name, number in _points(box, every):
        if name == "close":
            continue  # Linux closes the file anyway
        folder = box.copy()
        inject = f"inject={name}:error=EIO:when={number}{again}"
        args = box.args(folder, ITERATIONS, *SAVES)
        done = traced(box, folder, args, "-o", "/dev/null", "-e", f"trace={name}", "-e", inject)
        wrong = box.told(done) or box.torn(folder) or box.resumed(folder, ITERATIONS)
        yield wrong and f"{name} {number}{again}: {wrong}"
        shutil.rmtree(folder)


@fault("F06", "the n-th system call fails (EIO)")
def error_once(box: Box) -> Iterator[str]:
    """Make each call on a file of the run fail once."""
    return _errors(box, "", 20)


@fault("F06", "the n-th system call and all later ones of the same name fail (EIO)")
def error_for_ever(box: Box) -> Iterator[str]:
    """Make all later calls of the same name fail too, as with a persistent error."""
    return _errors(box, "+", 20)


@fault("F20", "old files cannot be removed, or the run is killed while it removes them")
def pruning(box: Box) -> Iterator[str]:
    """At each unlink of a run that keeps one checkpoint: kill, EIO once, or EIO from then on."""
    folder = box.copy()
    args = ["--save-every", "1", "--keep-last", "1"]
    calls = _inside(recorded(box, folder, box.args(folder, 6, *args)), folder)
    numbers = [c.number for c in calls if c.name == "unlink"]
    for number in numbers if box.full else numbers[:2]:
        for what in ("signal=KILL", "error=EIO", "error=EIO:+"):
            how, _, plus = what.partition(":")
            folder = box.copy()
            options = ["-e", "trace=unlink", "-e", f"inject=unlink:{how}:when={number}{plus}"]
            traced(box, folder, box.args(folder, 6, *args), "-o", "/dev/null", *options)
            wrong = box.torn(folder) or box.resumed(folder, 6)
            yield wrong and f"unlink {number} {what}: {wrong}"
            shutil.rmtree(folder)
