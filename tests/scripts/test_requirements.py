"""The lists of tested versions: each has its hashes, they are complete, and name no host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

FILES = sorted((ROOT / "requirements").glob("*.txt"))
PINNED = re.compile(r"([a-z0-9-]+)==([^ ;\\]+)(?: ; [^\\]+)? \\")


def versions(path: Path) -> dict[str, list[str]]:
    """Name to versions; all lines are pins with hashes."""
    found: dict[str, list[str]] = {}
    hashes = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line:
            continue
        if line.startswith("    --hash=sha256:"):
            hashes += 1
            continue
        assert hashes or not found, f"{path.name}: no hash before {line}"
        match = PINNED.fullmatch(line)
        assert match, f"{path.name}: {line}"
        found.setdefault(match[1], []).append(match[2])
        hashes = 0
    assert hashes
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_version_is_pinned_with_hashes(path: Path) -> None:
    assert len(versions(path)) > 20
    assert "://" not in path.read_text(encoding="utf-8")


@pytest.mark.skipif(tomllib is None, reason="needs Python 3.11")
def test_what_the_project_needs_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    run, test = versions(ROOT / "requirements/run.txt"), versions(ROOT / "requirements/test.txt")
    extras = project["optional-dependencies"]
    wanted = {"run.txt": (run, project["dependencies"])}
    wanted["test.txt"] = test, [*project["dependencies"], *extras["test"], *extras["docs"]]
    for name, (found, needed) in wanted.items():
        for line in needed:
            package = re.match(r"[A-Za-z0-9-]+", line)
            assert package
            if package[0] != "nbllama":
                assert package[0].lower() in found, f"{name} lacks {package[0]}: make it again"
    assert all(test[package] == found for package, found in run.items() if package in test)
