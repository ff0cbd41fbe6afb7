"""Locks and logs follow no link; devices and pipes are never taken for files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nbllama.errors import CheckpointError, NbllamaError, OutputError
from nbllama.report.log import MetricsLog
from nbllama.system import regular
from nbllama.system.regular import first_bytes, read_whole
from nbllama.system.replaced import GGUF, check_kind
from nbllama.system.run_lock import RunLock
from tests.system.writers import POSIX


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim.txt"
    path.write_text("precious\n")
    return path


def soft(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("made"))


def hard(path: Path, victim: Path) -> None:
    os.link(victim, path)


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def device(path: Path, victim: Path) -> None:
    path.symlink_to("/dev/null")


def folder(path: Path, victim: Path) -> None:
    path.mkdir()


@POSIX
@pytest.mark.parametrize("trap", [soft, dangling, hard, fifo, device, folder])
def test_a_lock_file_that_is_a_trap(
    tmp_path: Path, victim: Path, trap: Callable[[Path, Path], None]
) -> None:
    trap(tmp_path / ".out.lock", victim)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=r"\.out\.lock: "):
        RunLock(tmp_path / "out").acquire()
    assert victim.read_text() == "precious\n"
    assert sorted(os.listdir(tmp_path)) == before


@POSIX
@pytest.mark.parametrize("trap", [soft, dangling, fifo, device, folder])
def test_a_log_that_is_a_trap(
    tmp_path: Path, victim: Path, trap: Callable[[Path, Path], None]
) -> None:
    trap(tmp_path / "log", victim)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=r"--log .*log: "):
        MetricsLog(str(tmp_path / "log"), lambda text: None)
    assert victim.read_text() == "precious\n"
    assert sorted(os.listdir(tmp_path)) == before


@POSIX
def test_a_log_has_one_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    log = MetricsLog(path, lambda text: None)
    with pytest.raises(OutputError, match="another run is writing to it"):
        MetricsLog(path, lambda text: None)
    log.close()
    MetricsLog(path, lambda text: None).close()


@POSIX
def test_what_is_read_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular, "_PIPE_SECONDS", 0.1)
    (tmp_path / "text").write_bytes(b"12345")
    assert read_whole(tmp_path / "text", 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, but the limit is 4"):
        read_whole(tmp_path / "text", 4)
    for name in ("/dev/zero", "/dev/full", "/dev/null"):
        with pytest.raises(ValueError, match="a character device, not a regular file"):
            read_whole(name, 10)
        with pytest.raises(OSError, match="a character device"):
            first_bytes(name, 4)
    with pytest.raises(ValueError, match="a folder"):
        read_whole(tmp_path, 10)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="sent nothing"):
        read_whole(tmp_path / "fifo", 10)
    with pytest.raises(OSError, match="a FIFO"):
        first_bytes(tmp_path / "fifo", 4)
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(b"x" * 11,))
    monkeypatch.setattr(regular, "_PIPE_SECONDS", 10.0)
    writer.start()
    with pytest.raises(ValueError, match="larger than the limit of 10 bytes"):
        read_whole(tmp_path / "fifo", 10)
    writer.join()


def test_what_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (None, b"", b"GGUF and more"):
        if content is not None:
            path.write_bytes(content)
        check_kind(str(path), GGUF)
    path.write_bytes(b"a letter")
    with pytest.raises(
        OutputError, match="the existing file is not a GGUF file and is not replaced"
    ):
        check_kind(str(path), GGUF)


def test_no_error_holds_a_control_character() -> None:
    error = CheckpointError("x.gguf: key 'optimizer.type': \x1b[31mred\nand \u202emore")
    assert str(error) == r"x.gguf: key 'optimizer.type': \x1b[31mred\nand \u202emore"
    assert str(NbllamaError("h\u00fchner \u4e2d")) == "h\u00fchner \u4e2d"  # letters stay
