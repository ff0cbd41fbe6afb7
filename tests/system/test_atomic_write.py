"""Atomic replacement, writability, and removal of files of dead writers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nbllama.errors import OutputError
from nbllama.system.files import atomic_write, check_writable, sweep_temporary
from tests.system.writers import POSIX, child


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
            raise OSError("262144 requested and 262048 written")  # the message of numpy's tofile
        said = f"{path}: cannot be written: 262144 requested and 262048 written"
        assert (str(caught.value), caught.value.exit_code) == (said, 3)

    def test_an_error_about_another_file_is_not_ours(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError), atomic_write(path):
            (path.parent / "missing").read_bytes()
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
    ("none/out.bin", "No such file or directory; the folder "),
    ("file/out.bin", "cannot be written: Not a directory"),
    ("folder", "cannot be written: Is a directory"),
    ("folder/", "not a file name"),
    ("folder/..", "not a file name"),
    ("a\0b", "not a file name"),
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
    said = child("nobody", folder)  # root ignores modes, so this runs as another user
    out, lock = folder / "out.bin", folder / ".out.bin.lock"
    assert said == [
        f"3 {out}: cannot be written: Permission denied",
        f"3 {out}: cannot be written: Permission denied",
        f"3 {lock}: cannot be written: Permission denied",
    ]


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
