"""Saves under kills, errors of the system, size limits and full disks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nbllama.errors import OutputError
from nbllama.system.files import atomic_write
from tests.system.writers import POSIX, child


@POSIX
class TestFaults:
    """Claim: the name always has one complete version, and a failed save reports the reason."""

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
                # only the fsync of the folder can fail after the rename
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
            assert not written, "the last size cannot fit next to the old file"
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
