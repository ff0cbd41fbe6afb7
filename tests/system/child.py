"""Writers that are killed, run in a separate process: `python -m tests.system.child WHAT ...`.

The process imports little and forks one child per fault, so hundreds of faults take seconds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbllama.errors import OutputError
from nbllama.system import files
from nbllama.system.files import atomic_write, sweep_temporary
from nbllama.system.run_lock import RunLock

CHUNK = 64 << 10


def content(version: int, n_chunks: int) -> bytes:
    """A file that contains its version and ends with a hash of everything before."""
    body = version.to_bytes(8, "little") * (CHUNK * n_chunks // 8)
    return body + hashlib.sha256(body).digest()


def version_of(raw: bytes) -> int | None:
    """The version of a complete file; None for a torn one."""
    body, digest = raw[:-32], raw[-32:]
    return int.from_bytes(body[:8], "little") if hashlib.sha256(body).digest() == digest else None


def save(path: Path, version: int, n_chunks: int) -> None:
    raw = content(version, n_chunks)
    with atomic_write(path) as file:
        for at in range(0, len(raw), CHUNK):
            file.write(raw[at : at + CHUNK])


def save_directly(path: Path, version: int, n_chunks: int) -> None:
    """The wrong way; it shows that the tests would notice."""
    raw = content(version, n_chunks)
    with open(path, "wb") as file:
        for at in range(0, len(raw), CHUNK):
            file.write(raw[at : at + CHUNK])


def _changed(path: Path) -> int:
    """When the file was last written; 0 for no file or an empty one."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return 0
    return state.st_mtime_ns if state.st_size else 0


def random_kills(folder: Path, n: int, seed: int, save: Callable[..., None]) -> dict[str, int]:
    """Kill a process that rewrites one file in a loop, `n` times, and look at the file."""
    rng = random.Random(seed)
    path = folder / "out.bin"
    torn = last = left = swept = 0
    for _ in range(n):
        pid = os.fork()
        if pid == 0:
            version = last
            while True:
                version += 1
                save(path, version, 32)
        began, before = time.monotonic(), _changed(path)
        while _changed(path) == before:  # on a busy machine the first save can take long
            assert time.monotonic() - began < 60, "no save ever ended"
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 1.5) * (time.monotonic() - began))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = version_of(path.read_bytes()) if path.exists() else last
        if found is None:
            torn += 1
        else:
            assert found >= last, "an older version came back"
            last = found
        left += len(os.listdir(folder)) - path.exists()
        swept += len(sweep_temporary(path))
        assert os.listdir(folder) == ["out.bin"] * path.exists()
    return {"torn": torn, "last": last, "left": left, "swept": swept}


class Events:
    """Counts the calls of `files` into the system, and does `act` at call number `at`."""

    NAMES = ("open", "close", "fsync", "replace", "fchmod", "lstat")

    def __init__(self, at: int, act: Callable[[str], None]) -> None:
        self.at, self.act, self.seen = at, act, [""]
        for name in self.NAMES:
            real = getattr(os, name)
            setattr(os, name, lambda *a, _f=real, _n=name, **k: self.call(_n, _f, *a, **k))
        real_fdopen = os.fdopen
        os.fdopen = lambda *a, **k: _Watched(real_fdopen(*a, **k), self)  # type: ignore[assignment]

    def call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.seen.append(name)
        if len(self.seen) - 1 == self.at:
            self.act(name)
        return real(*args, **kwargs)


class _Watched:
    """A file whose writes and flushes are events."""

    def __init__(self, file: Any, events: Events) -> None:
        self.file, self.events = file, events

    def write(self, raw: bytes) -> int:
        return int(self.events.call("write", self.file.write, raw))

    def flush(self) -> None:
        self.events.call("flush", self.file.flush)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def fault_at_each_call(folder: Path, fault: str) -> list[dict[str, Any]]:
    """Save version 2 over version 1 with the fault at the first, the second, ... system call."""
    path = folder / "out.bin"
    results: list[dict[str, Any]] = []
    for at in range(1, 1000):
        save(path, 1, 3)
        read, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            act = _kill if fault == "kill" else _fail
            events = Events(at, act)
            try:
                save(path, 2, 3)
                said = ""
            except OutputError as e:
                said = str(e)
            answer = {"done": not said, "said": said, "calls": events.seen[1:]}
            os.write(send, json.dumps(answer).encode())
            os._exit(0)
        os.close(send)
        with open(read, "rb") as pipe:
            answer = json.loads(pipe.read() or b"{}")
        status = os.waitpid(pid, 0)[1]
        answer["killed"] = os.WIFSIGNALED(status)
        answer["version"] = version_of(path.read_bytes())
        answer["left"] = sorted(set(os.listdir(folder)) - {"out.bin"})
        answer["swept"] = sweep_temporary(path)
        assert os.listdir(folder) == ["out.bin"]
        results.append(answer)
        if len(answer.get("calls", ())) and len(answer["calls"]) < at:
            return results
    raise AssertionError("the save never ended without a fault")


def _kill(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(name: str) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def size_limits(folder: Path) -> list[dict[str, Any]]:
    """Save 8 chunks with a limit of the file size."""
    path = folder / "out.bin"
    whole = 8 * CHUNK + 32
    results = []
    for limit in [1, *range(CHUNK // 2, whole, CHUNK // 2), whole - 1, whole]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        save(path, 1, 8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(path, 2, 8)
            said = ""
        except OutputError as e:
            said = str(e)
        version = version_of(path.read_bytes())
        names = os.listdir(folder)
        results.append({"enough": limit >= whole, "said": said, "version": version, "names": names})
    return results


def as_nobody(folder: Path) -> list[str]:
    """The errors of all writers for a user without permissions."""
    os.setuid(65534)
    said = []
    for attempt in (
        lambda: files.check_writable(folder / "out.bin"),
        lambda: save(folder / "out.bin", 1, 1),
        lambda: RunLock(folder / "out.bin").acquire(),
    ):
        try:
            attempt()
            said.append("")
        except OutputError as e:
            said.append(f"{e.exit_code} {e}")
    return said


def hold_lock(path: Path, fork: bool) -> None:
    """Take the lock, say so, and wait to be killed; with `fork`, a child lives on."""
    lock = RunLock(path)
    lock.acquire()
    child = 0
    if fork:
        read, ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(ready, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(read, 1)
    print(os.getpid(), child, flush=True)
    time.sleep(60)


def contend(path: Path, log: Path, n: int) -> None:
    """Take and release the lock `n` times; write a line at both ends of each hold."""
    taken = 0
    while taken < n:
        try:
            with RunLock(path), open(log, "ab", buffering=0) as file:
                file.write(b"%d in\n" % os.getpid())
                time.sleep(0.001)
                file.write(b"%d out\n" % os.getpid())
            taken += 1
        except OutputError:
            pass


def main(what: str, *args: str) -> None:
    folder = Path(args[0])
    match what:
        case "kills":
            print(json.dumps(random_kills(folder, int(args[1]), int(args[2]), save)))
        case "kills-direct":
            print(json.dumps(random_kills(folder, int(args[1]), int(args[2]), save_directly)))
        case "faults":
            print(json.dumps(fault_at_each_call(folder, args[1])))
        case "size-limits":
            print(json.dumps(size_limits(folder)))
        case "nobody":
            print(json.dumps(as_nobody(folder)))
        case "hold":
            hold_lock(folder, args[1] == "fork")
        case "contend":
            contend(folder, Path(args[1]), int(args[2]))
        case _:
            raise SystemExit(f"unknown: {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
