"""The run lock, among processes that hold it, die and contend."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbllama.errors import OutputError
from nbllama.system.run_lock import RunLock
from tests.system.writers import POSIX, start


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
            f"{path}: another run is writing to it (process {holder.pid} on "
            f"{socket.gethostname()}); wait until that run ends, or choose a different output name"
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
