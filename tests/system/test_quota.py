"""A container's processor limit, from the files of both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbllama.kernels import cores
from nbllama.system import memory, quota


@pytest.mark.parametrize(
    ("groups", "files", "found"),
    [
        ("0::/a/b", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "400000",
                              "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/x\n0::/", {}, None),
        ("0::/", {"cpu.max": "5 0"}, None),
    ],
)  # fmt: skip
def test_the_smallest_quota(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    files: dict[str, str],
    found: int | None,
) -> None:
    (tmp_path / "cgroup").write_text(groups + "\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "PROC_CGROUP", str(tmp_path / "cgroup"))
    monkeypatch.setattr(memory, "SYS_CGROUP", str(tmp_path / "fs"))
    assert quota.processor_quota() == found
    monkeypatch.setattr(cores, "processors", lambda: 64)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 64)
    assert cores.physical_cores() == (found or 64)
