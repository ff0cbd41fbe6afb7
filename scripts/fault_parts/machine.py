"""The machine: permissions, other runs, memory, the clock, user folders (F07, F13, F16, F18)."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from nbllama.kernels.folder import cache_root
from nbllama.kernels.jit import kernel_hash
from scripts.fault_parts.box import ROOT, Box, Done, N, NotRun, fault
from scripts.fault_parts.disk import small_disk

LAZY = (
    "multiprocessing.synchronize", "multiprocessing.shared_memory", "concurrent.futures.thread",
    "multiprocessing.popen_fork", "multiprocessing.heap", "_posixshmem",
)  # fmt: skip
CGROUPS = Path("/sys/fs/cgroup/memory")


@fault("F07", "output paths that the user may not write to")
def outputs(box: Box) -> Iterator[str]:
    """Expect exit 3 and one line, in less than 2 s and before the model is loaded."""
    if os.geteuid():
        raise NotRun("only root can become another user")
    folder = box.copy()
    for path in (box.folder, folder, *folder.iterdir()):
        path.chmod(0o755)
    (folder / "file").write_text("x")
    (folder / "own").mkdir(mode=0o777)
    (folder / "own").chmod(0o777)
    for name in LAZY:
        import_module(name)  # the other user may not be allowed to read root's Python
    for option in ("--checkpoint-out", "--lora-out", "--log", "--report", "--card"):
        for name in ("file/x.gguf", "missing/x.gguf", "x.gguf", "own", "/proc/x.gguf"):
            args = [*box.args(folder, 2, "--checkpoint-out", "", "--lora-out", "own/l.gguf"),
                    "--log", "", option, name]  # fmt: skip
            done = box.run(args, folder, lambda: os.setuid(65534))
            if option == "--lora-out" and name == "own":
                continue  # an existing folder is an adapter for PEFT
            wrong = box.told(done, (2, 3)) or ("" if done.err else "no line")
            if done.seconds > 2 * max(1, box.seconds):
                wrong = wrong or f"only after {done.seconds:.1f} s"
            yield wrong and f"{option} {name}: {wrong}"
            if not box.full:
                break


@fault("F13", "two runs that write to the same files through differently spelled paths")
def two_runs(box: Box) -> Iterator[str]:
    """Expect the second run to be refused with the first one's process; a kill leaves no lock."""
    folder = box.copy()
    link = box.folder / "link"
    link.symlink_to(folder)
    first = box.begin(box.args(folder, 100_000, "--save-every", "1000"), folder)
    while not (folder / "log.jsonl").exists() or (folder / "log.jsonl").stat().st_size < 2000:
        assert first.alive()
        time.sleep(0.01)
    folders = (".", str(link), f"../{folder.name}", f"{folder}/")
    try:
        for name in [f"{there}/chk-ITERATION.gguf" for there in folders]:
            for more in ([], ["--fn-latest", "NEWEST"]):
                out = ["--checkpoint-out", name, "--lora-out", "", "--log", "", *more]
                done = box.run(box.args(folder, 2, *out), folder)
                wrong = box.told(done, (3,))
                named = str(first.pid) in done.err and os.uname().nodename in done.err
                yield wrong or ("" if named else f"{name}: not named: {done.err}")
    finally:
        first.kill()
        first.end()
    yield box.resumed(folder)


@fault("F16", "memory limits (ulimit -v)")
def limits(box: Box) -> Iterator[str]:
    """Expect a good run, or one line and an exit code."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for extra in range(0, 1200, 100 if box.full else 400):
        folder = box.copy()

        def limit(extra: int = extra) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20),) * 2)

        done = box.run(box.args(folder, 6), folder, limit)
        wrong = box.told(done, (0, 1, 4)) or box.torn(folder)
        yield wrong and f"{extra} MB more: {wrong}"
        shutil.rmtree(folder)


@fault("F16", "killed because memory runs out (cgroup)")
def out_of_memory(box: Box) -> Iterator[str]:
    """Let another process use up the group's memory until the kernel kills the run; then as F01."""
    group = CGROUPS / f"nbllama-faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(400 << 20))
    except OSError:
        raise NotRun("no memory cgroup (version 1) can be made") from None
    hog = "import time\na = []\nwhile True:\n a.append(bytearray(b'x') * (4 << 20))\n"
    try:
        for _ in range(box.n(1, 10)):
            folder = box.copy()

            def join() -> None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
                Path("/proc/self/oom_score_adj").write_text("1000")

            run = box.begin(box.args(folder), folder, join)
            while run.alive() and not (folder / "chk-6.gguf").exists():
                time.sleep(0.002)
            run.kill(signal.SIGSTOP)  # so that it does not end first
            taker = subprocess.Popen(
                [sys.executable, "-c", hog],
                preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
            )
            late = time.monotonic() + 60
            while run.alive() and time.monotonic() < late:
                time.sleep(0.005)
            taker.kill()
            taker.wait()
            run.kill(signal.SIGCONT)
            done = run.end()
            wrong = "" if done.code == -9 else f"not killed: {done.code} {done.err[-200:]}"
            yield wrong or box.after_a_kill(folder)
    finally:
        time.sleep(0.2)
        group.rmdir()


def _back() -> None:
    """Set the clock of this process back by an hour at each reading."""
    now = time.time()
    looks = [0]

    def earlier() -> float:
        looks[0] += 1
        return now - 3600 * looks[0]

    time.time = earlier
    time.time_ns = lambda: int(earlier() * 1e9)


@fault("F18", "the clock is set back, or file dates are in the future")
def clock(box: Box) -> Iterator[str]:
    """Expect the same bits, even if every reading of the clock gives an earlier time."""
    folder = box.copy()
    yield box.told(box.run(box.args(folder, 6), folder, _back), (0,)) or box.finished(folder, 6)
    for when in (0, 2**31 - 1, 2**33):
        for path in folder.iterdir():
            os.utime(path, (when, when))
        yield box.resumed(folder, box.reached(folder) + 3)


@fault("F18", "HOME, temporary folder or kernel cache missing, read-only, full or damaged")
def folders(box: Box) -> Iterator[str]:
    """Run each case in a new interpreter, with a copy of this machine's compiled kernels."""
    warm = box.folder / "cache"
    warm.mkdir()
    name = f"kernels-{kernel_hash()}"
    shutil.copytree(cache_root() / name, warm / name)
    cases: list[tuple[str, dict[str, str], Callable[[Path], None]]] = [
        ("no HOME", {"HOME": ""}, lambda c: None),
        ("HOME that is not there", {"HOME": "/nonexistent"}, lambda c: None),
        ("HOME that is a file", {"HOME": "/etc/passwd"}, lambda c: None),
        ("no temporary folder", {"TMPDIR": "/nonexistent"}, lambda c: None),
        ("read-only cache", {}, _read_only),
        ("an empty kernel", {}, lambda c: _spoil(c, "norm_row*.kernel", b"")),
        ("a damaged kernel", {}, lambda c: _spoil(c, "norm_row*.kernel", bytes(4000))),
    ]
    for what, env, spoil in cases:
        folder = box.copy()
        cache = box.folder / f"cache-{folder.name}"
        shutil.copytree(warm, cache)
        spoil(cache)
        env = os.environ | {"PYTHONPATH": str(ROOT), "NBLLAMA_CACHE_DIR": str(cache)} | env
        with small_disk(box.folder / "tiny", "4k") as tiny:
            env = {"TMPDIR": str(tiny)} | env
            child = box.start(box.args(folder), folder, env=env)
            out, err = child.communicate(timeout=500)
        if what == "read-only cache":
            subprocess.run(["umount", "-l", str(cache)], check=False)
        wrong = box.told(Done(child.returncode, out, err, 0), (0,)) or box.finished(folder, N)
        yield wrong and f"{what}: {wrong}"
        shutil.rmtree(cache)
        shutil.rmtree(folder)


def _read_only(cache: Path) -> None:
    subprocess.run(["mount", "--bind", str(cache), str(cache)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(cache)], check=True)


def _spoil(cache: Path, pattern: str, raw: bytes) -> None:
    """Damage files of the cache that every run reads; each damaged file is compiled again."""
    found = sorted(cache.rglob(pattern))
    assert found
    for path in found:
        path.write_bytes(raw)
