"""Every malformed file is refused in one line that says what and where."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nbllama.errors import GGUFError
from nbllama.gguf_io import open_gguf
from tests.gguf_io.build import SMALL
from tests.gguf_io.cases import CASES, ENDS, GOOD


def refused(path: Path | str) -> str:
    """The message for the refused `path`, which must be one printable line that begins with it."""
    with pytest.raises(GGUFError) as caught:
        open_gguf(path).close()
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.isprintable(), message
    assert message.startswith(f"{path}: "), message
    assert len(message) < 700, message
    return message


@pytest.mark.parametrize(("build", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_malformed(tmp_path: Path, build: Callable[[], bytes], said: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(build())
    message = refused(path)
    assert said in message


def test_every_row_of_the_table_has_a_case() -> None:
    covered = {name[:3] for name, _, _ in CASES}
    elsewhere = {"G64", "G65"}  # below: they are about paths and time, not bytes
    assert covered | elsewhere == {f"G{i:02}" for i in range(1, 67)}


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    with open_gguf(path) as f:
        assert list(f.tensors) == [t.name for t in SMALL.tensors]
        assert len(f.metadata) == len(SMALL.kvs)
        assert [t.offset + t.nbytes for t in f.tensors.values()] == ENDS


class TestG64:
    """What is not a regular, readable file."""

    def test_directory(self, tmp_path: Path) -> None:
        assert "a directory, not a regular file" in refused(tmp_path)

    def test_fifo_does_not_block(self, tmp_path: Path) -> None:
        path = tmp_path / "fifo"
        os.mkfifo(path)
        assert "a FIFO, not a regular file" in refused(path)

    def test_device(self) -> None:
        assert "a character device, not a regular file" in refused("/dev/zero")

    def test_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("sock")
            assert "a socket, not a regular file" in refused("sock")

    def test_symlink_loop(self, tmp_path: Path) -> None:
        path = tmp_path / "loop"
        path.symlink_to(path)
        assert "cannot be opened: Too many levels" in refused(path)

    def test_missing(self, tmp_path: Path) -> None:
        assert "cannot be opened: No such file" in refused(tmp_path / "none.gguf")

    def test_nul_in_the_path(self) -> None:
        with pytest.raises(GGUFError, match="cannot be opened: embedded null"):
            open_gguf("a\0b")

    def test_control_characters_of_the_path_are_escaped(self, tmp_path: Path) -> None:
        with pytest.raises(GGUFError) as caught:
            open_gguf(tmp_path / "a\n\x1b[31m.gguf")
        assert str(caught.value).isprintable()

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.gguf"
        path.write_bytes(GOOD)
        path.chmod(0)
        assert "cannot be opened: Permission denied" in refused(path)

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
    def test_unreadable_for_another_user(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.gguf"
        path.write_bytes(GOOD)
        path.chmod(0)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        code = (
            "import os, sys\n"
            "from nbllama.gguf_io import open_gguf\n"
            "os.setuid(65534)\n"
            "try: open_gguf(sys.argv[1])\n"
            "except Exception as e: print(type(e).__name__, e)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert done.stdout == f"GGUFError {path}: cannot be opened: Permission denied\n"


class TestG65:
    """The file changes while it is mapped; see the text of `reader` for what that cannot catch."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "m.gguf"
        path.write_bytes(GOOD)
        return path

    def test_unchanged(self, path: Path) -> None:
        with open_gguf(path) as f:
            f.recheck()

    def test_unchanged_seen_from_elsewhere(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(path.parent)
        with open_gguf(path.name) as f:
            monkeypatch.chdir("/")
            f.recheck()

    def test_shortened(self, path: Path) -> None:
        with open_gguf(path) as f:
            os.truncate(path, len(GOOD) - 40)
            with pytest.raises(GGUFError, match=r"m.gguf: file: has changed .*size"):
                f.recheck()

    def test_rewritten_in_place(self, path: Path) -> None:
        with open_gguf(path) as f:
            os.utime(path, ns=(1, 1))
            with pytest.raises(GGUFError, match=r"has changed .*\(modification time\)"):
                f.recheck()

    def test_replaced(self, path: Path) -> None:
        with open_gguf(path) as f:
            other = path.with_suffix(".new")
            other.write_bytes(GOOD)
            os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            os.replace(other, path)
            with pytest.raises(GGUFError, match=r"has changed .*\(inode\)"):
                f.recheck()
            assert bytes(f.data("token_embd.weight")[:3]) == b"\0\1\2"  # the old file lives on

    def test_removed(self, path: Path) -> None:
        with open_gguf(path) as f:
            path.unlink()
            with pytest.raises(GGUFError, match="has disappeared since it was opened"):
                f.recheck()
