"""Atomic replacement, sweeping, writability and the run lock, under kills and full disks."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbllama.errors import OutputError
from nbllama.files import RunLock, atomic_write, check_writable, sweep_temporary

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="forks, signals, modes")


def start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.files_child", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child(*args: object) -> Any:
    """The JSON that a run of `tests.files_child` prints."""
    process = start(*args)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder / "out.bin"


class TestAtomicWrite:
    def test_new_file(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(b"whole")
            assert not path.exists()
        assert path.read_bytes() == b"whole"
        assert os.listdir(path.parent) == ["out.bin"]

    def test_the_old_file_stays_until_the_end(self, path: Path) -> None:
        path.write_bytes(b"old")
        with atomic_write(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
    def test_an_error_changes_nothing(self, path: Path, error: type[BaseException]) -> None:
        path.write_bytes(b"old")
        with pytest.raises(error), atomic_write(path) as file:
            file.write(b"new")
            raise error
        assert path.read_bytes() == b"old"
        assert os.listdir(path.parent) == ["out.bin"]

    def test_a_write_error_is_an_output_error(self, path: Path) -> None:
        with pytest.raises(OutputError) as caught, atomic_write(path):
            raise OSError("262144 requested and 262048 written")  # as numpy's tofile says it
        said = f"{path}: cannot be written: 262144 requested and 262048 written"
        assert (str(caught.value), caught.value.exit_code) == (said, 3)

    def test_an_error_about_another_file_is_not_ours(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError), atomic_write(path):
            open(path.parent / "missing", "rb")
        assert os.listdir(path.parent) == []

    @POSIX
    def test_mode(self, path: Path) -> None:
        old_mask = os.umask(0o027)
        try:
            with atomic_write(path) as file:
                file.write(b"1")
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            path.chmod(0o604)
            with atomic_write(path) as file:
                file.write(b"2")
            assert stat.S_IMODE(path.stat().st_mode) == 0o604
        finally:
            os.umask(old_mask)

    @POSIX
    def test_a_link_is_replaced_not_followed(self, path: Path, tmp_path: Path) -> None:
        precious = tmp_path / "precious"
        precious.write_bytes(b"keep")
        path.symlink_to(precious)
        with atomic_write(path) as file:
            file.write(b"new")
        assert precious.read_bytes() == b"keep"
        assert not path.is_symlink() and path.read_bytes() == b"new"

    def test_relative_name(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(path.parent)
        with atomic_write("out.bin") as file:
            file.write(b"x")
        assert path.read_bytes() == b"x"


BAD_PATHS = [
    ("none/out.bin", "cannot be written: No such file or directory"),
    ("file/out.bin", "cannot be written: Not a directory"),
    ("folder", "cannot be written: Is a directory"),
    ("folder/", "not the name of a file"),
    ("folder/..", "not the name of a file"),
    ("a\0b", "not the name of a file"),
    ("x" * 300, "cannot be written: File name too long"),
]


@pytest.mark.parametrize(("name", "said"), BAD_PATHS)
def test_bad_paths(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    full = f"{tmp_path}/{name}"
    with pytest.raises(OutputError, match=said) as checked:
        check_writable(full)
    with pytest.raises(OutputError, match=said) as written, atomic_write(full):
        pass
    for error in (checked.value, written.value):
        assert error.exit_code == 3 and str(error).isprintable()
    assert sorted(os.listdir(tmp_path)) == before


@POSIX
def test_a_device_or_fifo_is_never_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for target in ("/dev/null", str(fifo)):
        with pytest.raises(OutputError, match="not a regular file"):
            check_writable(target)
        with pytest.raises(OutputError, match="not a regular file"), atomic_write(target):
            pass
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_check_writable_leaves_no_trace(path: Path) -> None:
    check_writable(path)
    assert os.listdir(path.parent) == []
    path.write_bytes(b"old")
    check_writable(path)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["out.bin"]


@POSIX
def test_a_folder_without_rights(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    if os.getuid() != 0:
        with pytest.raises(OutputError, match="Permission denied"):
            check_writable(folder / "out.bin")
        return
    said = child("nobody", folder)  # root ignores modes, so another user is asked
    out, lock = folder / "out.bin", folder / ".out.bin.lock"
    assert said == [
        f"3 {out}: cannot be written: Permission denied",
        f"3 {out}: cannot be written: Permission denied",
        f"3 {lock}: cannot be written: Permission denied",
    ]


@POSIX
class TestFaults:
    """Claim: the name always holds one whole version, and a failed save tells why."""

    def test_kill_at_each_system_call(self, path: Path) -> None:
        results = child("faults", path.parent, "kill")
        *killed, last = results
        assert len(killed) > 12
        versions = [r["version"] for r in killed]
        assert all(r["killed"] for r in killed) and not last["killed"]
        # version 1 up to the rename, version 2 after it, nothing else ever
        assert versions == sorted(versions) and set(versions) == {1, 2}
        for r in killed:
            assert r["swept"] == r["left"]
        assert any(r["left"] for r in killed)
        assert (last["version"], last["left"], last["done"]) == (2, [], True)

    def test_order_of_system_calls(self, path: Path) -> None:
        calls = child("faults", path.parent, "kill")[-1]["calls"]
        order = [c for c in calls if c in ("write", "flush", "fsync", "replace")]
        assert order == ["write"] * 4 + ["flush", "fsync", "replace", "fsync"]

    def test_an_error_at_each_system_call(self, path: Path) -> None:
        *failed, last = child("faults", path.parent, "error")
        assert last["done"] and last["version"] == 2
        told = 0
        for r in failed:
            assert r["version"] in (1, 2) and not r["killed"]
            if r["said"]:
                told += 1
                assert r["said"] == f"{path}: cannot be written: Input/output error"
                assert r["left"] == []
                # only a folder that does not reach the disk may fail after the rename
                assert r["version"] == 1 or "replace" in r["calls"]
            else:
                assert r["version"] == 2  # the mode of the old file could not be kept
        assert told >= len(failed) - 2

    def test_file_size_limit(self, path: Path) -> None:
        results = child("size-limits", path.parent)
        assert [r["enough"] for r in results].count(True) == 1
        for r in results:
            assert r["names"] == ["out.bin"]
            if r["enough"]:
                assert (r["version"], r["said"]) == (2, "")
            else:
                assert r["version"] == 1
                assert r["said"] == f"{path}: cannot be written: File too large"

    def test_full_disk(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
        try:
            done = subprocess.run(mount, capture_output=True)
        except OSError:
            pytest.skip("no mount program")
        if done.returncode:
            pytest.skip("may not mount a small disk")
        try:
            path = disk / "out.bin"
            with atomic_write(path) as file:
                file.write(b"o" * 600_000)
            for size in range(300_000, 700_000, 50_000):
                written = False
                try:
                    with atomic_write(path) as file:
                        for _ in range(size // 1000):
                            file.write(b"n" * 1000)
                    written = True
                except OutputError as e:
                    assert str(e) == f"{path}: cannot be written: No space left on device"
                raw = path.read_bytes()
                assert raw == b"n" * size if written else raw == b"o" * 600_000
                assert os.listdir(disk) == ["out.bin"]
                if written:
                    with atomic_write(path) as file:  # small enough, then the old size again
                        file.write(b"n")
                    with atomic_write(path) as file:
                        file.write(b"o" * 600_000)
            assert not written, "the last size cannot fit beside the old file"
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def kills(self, path: Path, n: int, seed: int) -> None:
        result = child("kills", path.parent, n, seed)
        assert result["torn"] == 0
        assert result["last"] >= 1, "no save ever ended"
        assert result["left"] >= n // 10, "the kills missed the saves"
        assert result["swept"] == result["left"]

    def test_random_kills(self, path: Path) -> None:
        self.kills(path, 30, 1)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [2, 3, 4])
    def test_random_kills_long(self, path: Path, seed: int) -> None:
        self.kills(path, 200, seed)

    def test_random_kills_would_be_noticed(self, path: Path) -> None:
        assert child("kills-direct", path.parent, 20, 5)["torn"] > 0


class TestSweep:
    def leftover(self, path: Path, name: str = "out.bin") -> Path:
        file = path.parent / f".{name}.0123456789ab.nbllama-tmp"
        file.write_bytes(b"half")
        return file

    def test_a_dead_writers_file_goes(self, path: Path) -> None:
        path.write_bytes(b"whole")
        dead = self.leftover(path)
        assert sweep_temporary(path) == [dead.name]
        assert os.listdir(path.parent) == ["out.bin"]
        assert sweep_temporary(path) == []

    @POSIX
    def test_a_living_writers_file_stays(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(b"slow")
            assert sweep_temporary(path) == []
        assert path.read_bytes() == b"slow"

    def test_other_files_stay(self, path: Path) -> None:
        others = {
            self.leftover(path, "out.bin2").name,
            self.leftover(path, "xout.bin").name,
            self.leftover(path, "outXbin").name,
            ".out.bin.lock",
            ".out.bin.0123456789ab.nbllama-tmp.old",
            ".out.bin.0123.nbllama-tmp",
        }
        for name in others:
            (path.parent / name).write_bytes(b"")
        assert sweep_temporary(path) == []
        assert set(os.listdir(path.parent)) == others

    def test_no_folder(self, tmp_path: Path) -> None:
        assert sweep_temporary(tmp_path / "none" / "out.bin") == []

    @POSIX
    def test_a_fifo_of_that_name_does_not_block(self, path: Path) -> None:
        os.mkfifo(path.parent / ".out.bin.0123456789ab.nbllama-tmp")
        sweep_temporary(path)


class TestRunLock:
    @pytest.fixture
    def holder(self, path: Path) -> Iterator[subprocess.Popen[str]]:
        process = start("hold", path, "alone")
        assert process.stdout is not None
        assert process.stdout.readline().split()[0] == str(process.pid)
        yield process
        process.kill()
        process.communicate()

    def test_alone(self, path: Path) -> None:
        with RunLock(path) as lock:
            assert lock.lock_path == str(path.parent / ".out.bin.lock")
            with open(lock.lock_path) as file:
                assert file.read() == f"process {os.getpid()} on {socket.gethostname()}\n"
        assert os.listdir(path.parent) == []
        with RunLock(path):
            pass

    def test_second_run_is_refused_at_once(self, path: Path, holder: subprocess.Popen[str]) -> None:
        began = time.monotonic()
        with pytest.raises(OutputError) as caught:
            RunLock(path).acquire()
        assert time.monotonic() - began < 1
        assert caught.value.exit_code == 3
        assert str(caught.value) == (
            f"{path}: another run is writing it (process {holder.pid} on {socket.gethostname()});"
            " wait for it, or choose another output name"
        )

    def test_another_name_is_free(self, path: Path, holder: subprocess.Popen[str]) -> None:
        with RunLock(path.with_name("other.bin")):
            pass

    @POSIX
    def test_kill_releases_it(self, path: Path, holder: subprocess.Popen[str]) -> None:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert os.listdir(path.parent) == [".out.bin.lock"]
        with RunLock(path), pytest.raises(OutputError, match=f"process {os.getpid()} on"):
            RunLock(path).acquire()

    @POSIX
    def test_a_forked_child_does_not_keep_it(self, path: Path) -> None:
        process = start("hold", path, "fork")
        assert process.stdout is not None
        forked = int(process.stdout.readline().split()[1])
        try:
            with pytest.raises(OutputError):
                RunLock(path).acquire()
            process.kill()
            process.wait()
            os.kill(forked, 0)  # lives
            with RunLock(path):
                pass
        finally:
            os.kill(forked, signal.SIGKILL)
            process.communicate()

    def test_within_one_process(self, path: Path) -> None:
        with RunLock(path) as lock:
            with pytest.raises(OutputError):
                RunLock(path).acquire()
            with pytest.raises(RuntimeError, match="already held"):
                lock.acquire()
        lock.release()  # twice is harmless

    def test_contenders_never_overlap(self, path: Path, tmp_path: Path) -> None:
        log = tmp_path / "log"
        processes = [start("contend", path, log, 15) for _ in range(4)]
        for process in processes:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
        lines = log.read_text().splitlines()
        assert len(lines) == 4 * 15 * 2
        for entered, left in zip(lines[::2], lines[1::2], strict=True):
            assert entered.endswith(" in") and left == entered.replace(" in", " out")
        assert len(Counter(line.split()[0] for line in lines)) == 4

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="cannot be written: No such file"):
            RunLock(tmp_path / "none" / "out.bin").acquire()
