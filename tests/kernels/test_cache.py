"""The files of compiled kernels: damage, rights, full disks, many processes, old folders."""

from __future__ import annotations

import ast
import errno
import hashlib
import logging
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbllama.kernels import cache as kernel_cache
from nbllama.kernels import folder as kernel_folder
from nbllama.kernels import jit
from nbllama.kernels.cache import KernelCache
from nbllama.kernels.folder import KernelFolder, not_trusted
from nbllama.kernels.jit import OWN_FOLDERS, kernel, kernel_sources
from tests.conftest import ROOT
from tests.kernels.test_own_cores import STEP

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no owners and modes")
PACKAGE = ROOT / "nbllama"


def add_one(x):
    return x + 1


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget notes and folders between tests."""
    for remembered in (kernel_cache._note, kernel_folder.kernel_folder):
        remembered.cache_clear()
    yield
    for remembered in (kernel_cache._note, kernel_folder.kernel_folder):
        remembered.cache_clear()


def run(folder: Path | None, why: str = "", function: Any = add_one) -> tuple[int, int]:
    """A kernel as in a new process: whether it was found and whether it was compiled."""
    made = kernel()(function)
    made._cache = KernelCache(function, lambda: KernelFolder(folder, why))
    assert made(41) == function(41)
    return sum(made.stats.cache_hits.values()), sum(made.stats.cache_misses.values())


FOUND, COMPILED = (1, 0), (0, 1)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_kernel_is_found_again_and_its_file_left_alone(tmp_path: Path) -> None:
    assert run(tmp_path) == COMPILED
    (file,) = files(tmp_path)
    before = file.stat()
    assert run(tmp_path) == FOUND
    assert file.stat() == before or file.stat().st_mtime_ns == before.st_mtime_ns
    assert stat.S_IMODE(before.st_mode) & 0o133 == 0  # not writable by others


def sealed(payload: bytes) -> bytes:
    return kernel_cache._MAGIC + hashlib.sha256(payload).digest() + payload


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda b: b"",
    "ten bytes": lambda b: b[:10],
    "half": lambda b: b[: len(b) // 2],
    "zeros": lambda b: bytes(len(b)),
    "zeros at the end": lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2),
    "one bit": lambda b: b[:-100] + bytes([b[-100] ^ 1]) + b[-99:],
    "another version": lambda b: b.replace(b"kernel 1", b"kernel 0"),
    "no pickle": lambda b: sealed(b"words"),
    "no kernel": lambda b: sealed(pickle.dumps("words")),
    "another key": lambda b: sealed(pickle.dumps(("key", ()))),
    "no machine code": lambda b: sealed(pickle.dumps((pickle.loads(b[49:])[0], (1, 2)))),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_compiled_anew(tmp_path: Path, how: str) -> None:
    run(tmp_path)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    bad = DAMAGE[how](good)
    assert bad != good
    file.write_bytes(bad)
    assert run(tmp_path) == COMPILED
    assert files(tmp_path) == [file]
    assert run(tmp_path) == FOUND


def minus_one(x):
    return x - 1


def test_one_kernel_s_file_does_not_serve_another(tmp_path: Path) -> None:
    run(tmp_path)
    (one,) = files(tmp_path)
    text = one.read_bytes()
    run(tmp_path, function=minus_one)
    (other,) = set(files(tmp_path)) - {one}
    other.write_bytes(text)
    assert run(tmp_path, function=minus_one) == COMPILED


def test_other_constants_and_other_sources_are_other_kernels() -> None:
    def adds(n: int) -> Any:
        def f(x):
            return x + n

        return f

    class Codegen:
        def magic_tuple(self) -> tuple[str, ...]:
            return ("cpu",)

    def key(function: Any, sig: str = "int64") -> str:
        return KernelCache(function, lambda: KernelFolder(None, "")).key(sig, Codegen())

    keys = [key(adds(1)), key(adds(2)), key(adds(1), "int32"), key(add_one), key(minus_one)]
    assert len(set(keys)) == len(keys) and key(adds(1)) == keys[0]


def refusing(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all writes fail with this error."""
    opened = os.open

    def refuse(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    before = files(tmp_path)
    refusing(code, monkeypatch)
    assert run(tmp_path) == FOUND
    assert caplog.messages == []
    for _ in range(2):
        assert run(tmp_path, function=minus_one) == COMPILED
    assert files(tmp_path) == before
    (line,) = caplog.messages
    assert str(tmp_path) in line and os.strerror(code) in line and "compiled again" in line


def test_a_disk_that_is_full_in_the_middle_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*paths: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert run(tmp_path) == COMPILED
    assert files(tmp_path) == [] and len(caplog.messages) == 1


def test_without_logging_the_note_is_one_line_on_standard_error() -> None:
    code = "from nbllama.kernels.cache import _note; _note('x: no'); _note('x: no')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "x: no" in done.stderr
    assert logging.getLogger("nbllama").handlers == []


class Marks:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "run")


@POSIX
@pytest.mark.parametrize(
    "how", ["folder is a link", "folder of all", "file of all", "file is a link"]
)
def test_what_others_may_have_written_is_never_loaded(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NBLLAMA_CACHE_DIR", str(tmp_path / "root"))
    place, mark = tmp_path / "root" / "kernels-0", tmp_path / "mark"
    place.mkdir(parents=True, mode=0o755)
    run(place)
    (file,) = files(place)
    file.write_bytes(sealed(pickle.dumps(Marks(mark))))
    if how == "folder is a link":
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    elif how == "folder of all":
        place.chmod(0o777)
    elif how == "file of all":
        file.chmod(0o666)
    else:
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    found = kernel_folder.kernel_folder("0")
    assert (found.path is None) == how.startswith("folder")
    assert run(*found) == COMPILED
    assert not mark.exists()
    if found.path is None:
        (line,) = caplog.messages
        assert str(place) in line and "is not used" in line
    pickle.loads(pickle.dumps(Marks(mark)))
    assert mark.exists()  # so loading it would be noticed


@POSIX
def test_whose_files_are_trusted() -> None:
    def found(mode: int, uid: int) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 1, uid, 0, 0, 0, 0, 0))

    folder = stat.S_IFDIR | 0o755
    assert not_trusted(found(folder, os.getuid())) == not_trusted(found(folder, 0)) == ""
    assert "another user" in not_trusted(found(folder, os.getuid() + 1))
    for mode in (0o775, 0o757):
        assert "write" in not_trusted(found(stat.S_IFDIR | mode, os.getuid()))
    assert "link" in not_trusted(found(stat.S_IFLNK | 0o777, os.getuid()))


@POSIX
def test_a_new_folder_is_not_for_others_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLAMA_CACHE_DIR", str(tmp_path / "a" / "b"))
    before = os.umask(0)
    try:
        found = kernel_folder.kernel_folder("0")
    finally:
        os.umask(before)
    assert found == (tmp_path / "a" / "b" / "kernels-0", "")
    assert stat.S_IMODE(found[0].stat().st_mode) == 0o755


def test_without_any_folder_kernels_are_compiled_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("NBLLAMA_CACHE_DIR", str(tmp_path / "file" / "below"))
    found = kernel_folder.kernel_folder("0")
    assert found.path is None
    assert run(*found) == COMPILED
    (line,) = caplog.messages
    assert str(tmp_path / "file") in line and "NBLLAMA_CACHE_DIR" in line
    assert list((tmp_path / "tmp").iterdir()) == []


def test_folders_that_old_versions_left_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("NBLLAMA_CACHE_DIR", str(tmp_path / "cache"))
    for name, age in (("nbllama-kernels-a", 30), ("nbllama-kernels-b", 0), ("other", 30)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
        os.utime(tmp_path / name, (time.time() - age * 86400,) * 2)
    kernel_folder.kernel_folder("0")
    assert [p.name for p in files(tmp_path)] == ["cache", "nbllama-kernels-b", "other"]


@POSIX
def test_old_folders_are_removed_but_for_those_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLAMA_CACHE_DIR", str(tmp_path))
    day = 86400
    for i in range(20):
        folder = tmp_path / f"kernels-{i:02}"
        folder.mkdir(mode=0o755)
        (folder / "in-use").touch()
        (folder / "some.kernel").write_bytes(b"x")
        for path in (folder / "in-use", folder):
            os.utime(path, (time.time() - (i + 2) * day,) * 2)
    (tmp_path / "kernels-18" / "in-use").unlink()  # as version 0.1 left it
    os.utime(tmp_path / "kernels-18", (time.time() - day,) * 2)
    (tmp_path / "kernels-of-mine").symlink_to(tmp_path / "kernels-00")
    hold = "import sys, nbllama.kernels.folder as k; print(k.kernel_folder('19')); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert b"kernels-19" in other.stdout.readline()
        for path in (tmp_path / "kernels-19" / "in-use", tmp_path / "kernels-19"):
            os.utime(path, (time.time() - 99 * day,) * 2)  # the lock counts, not the time
        kernel_folder.kernel_folder("new")
        left = {p.name.removeprefix("kernels-") for p in files(tmp_path)}
        # the seven most recently used ones, of which 18 is the first, and those in use
        assert left == {"new", "of-mine", "18", "19", *(f"{i:02}" for i in range(6))}
        other.stdin.close()
    kernel_folder.kernel_folder("newer")
    assert not (tmp_path / "kernels-19").exists()


@POSIX
def test_a_folder_removed_before_it_is_locked_is_made_again(tmp_path: Path) -> None:
    assert kernel_folder._hold(tmp_path)
    (tmp_path / "in-use").unlink()
    lock, locked = kernel_folder._lock, []

    def removed_meanwhile(fd: int, how: int) -> bool:
        locked.append(fd)
        shutil.rmtree(tmp_path)
        return lock(fd, how)

    kernel_folder._lock = removed_meanwhile
    try:
        assert not kernel_folder._hold(tmp_path)
    finally:
        kernel_folder._lock = lock
    assert len(locked) == 1


PROGRAM = """
import sys
import numpy as np
from numba import prange
from nbllama.kernels.jit import kernel

@kernel()
def scaled(x, by):
    return x * by

@kernel(parallel=True)
def both(x, out):
    for i in prange(x.shape[0]):
        out[i] = scaled(x[i], x[i]) + scaled(x[i], 3)

types = (np.float32, np.float64, np.int32, np.int64)
for kind in types if sys.argv[1] == "up" else types[::-1]:
    x = np.arange(100).astype(kind)
    out = np.empty_like(x)
    both(x, out)
    assert (out == x * x + 3 * x).all()
print(sum(both.stats.cache_misses.values()))
"""


def test_processes_that_compile_at_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = os.environ | {"NBLLAMA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def start(order: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(program), order]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)

    running = [start(order) for order in ("up", "down", "up")]
    for process in running:
        assert process.communicate(timeout=300)[0].strip() in "01234" and process.returncode == 0
    last = start("down")
    assert last.communicate(timeout=300)[0] == "0\n" and last.returncode == 0
    assert not list((tmp_path / "cache").rglob("*.tmp"))


BITS = """
import hashlib
import numpy as np
from nbllama.kernels.jit import kernel
from nbllama.ops.attention.tiles import exp_sum
from numba import prange

@kernel()
def one_row(s, i, ld, n):
    row = s[i * ld : (i + 1) * ld]
    return exp_sum(row, 0, n, np.float32(3.0))

@kernel(parallel=True)
def sums(s, out):
    for i in prange(out.shape[0]):
        out[i] = one_row(s, i, 1000, 900 + i)

s = np.random.default_rng(1).standard_normal(50 * 1000).astype(np.float32)
out = np.empty(50, np.float32)
sums(s, out)
print(hashlib.sha256(out.tobytes()).hexdigest(), sum(sums.stats.cache_hits.values()))
"""


def test_a_process_that_compiles_and_one_that_loads_get_the_same_bits(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BITS)
    env = os.environ | {"NBLLAMA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    found = []
    for _ in range(2):
        words = [sys.executable, str(program)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    assert [row[1] for row in found] == ["0", "1"]
    assert found[0][0] == found[1][0]


@pytest.mark.slow
def test_a_training_step_that_compiles_has_the_bits_of_one_that_loads(tmp_path: Path) -> None:
    env = os.environ | {"NBLLAMA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    found = []
    for _ in range(2):
        words = [sys.executable, "-c", STEP, str(tmp_path)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] == found[1]


def makers(path: Path) -> Iterator[str]:
    """The `own` of everything in a file that Numba compiles."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = node.func if isinstance(node, ast.Call) else node
        name = getattr(call, "id", getattr(call, "attr", ""))
        if name == "kernel" and isinstance(node, ast.Call):
            own = [k.value for k in node.keywords if k.arg == "own"]
            yield own[0].value if own and isinstance(own[0], ast.Constant) else ""  # type: ignore[misc]
        elif name == "thread_routine":
            yield ""
        elif isinstance(node, ast.ImportFrom) and node.module == "numba.extending":
            # they become parts of the kernels of their folder
            folder = path.parent.relative_to(PACKAGE).as_posix()
            yield folder if folder in OWN_FOLDERS else ""


def test_the_cache_s_key_covers_every_kernel() -> None:
    seen = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for own in makers(path):
            seen += 1
            assert path in kernel_sources(own), f"{path} has kernels, but in none of their folders"
    assert seen > 200
    assert set(kernel_sources()) < set(kernel_sources("quants/encode"))


def test_an_edit_of_any_kernel_source_is_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "nbllama"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jit, "_PACKAGE", copy)
    hashed = jit.kernel_hash.__wrapped__
    before = hashed()
    (copy / "api.py").write_text("")
    (copy / "quants" / "encode" / "legacy.py").write_text("")
    assert hashed() == before
    for path in (copy / "ops" / "rope.py", copy / "quants" / "vector" / "new.py"):
        path.write_text("")
        assert hashed() != before
        before = hashed()
