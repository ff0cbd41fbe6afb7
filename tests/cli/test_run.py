"""Every end of a program: one line on standard error, its exit code, no traceback."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nbllama.errors as errors
from nbllama.system.program import os_error_code, run_program
from tests.conftest import ROOT


def child(
    body: str, *, debug: bool = False, env: dict[str, str] | None = None, shell: str = "{}"
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program whose `main` is `body`."""
    words = ["--debug"] if debug else []
    code = (
        "import sys, os, errno\n"
        "from nbllama.system.program import run_program\n"
        "import nbllama.errors as E\n"
        "def main(words):\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + f"sys.exit(run_program(main, {words}))\n"
    )
    command = [sys.executable, "-c", code]
    if shell != "{}":
        command = ["bash", "-c", shell.format('"$0" -c "$1"'), sys.executable, code]
    done = subprocess.run(
        command, capture_output=True, cwd=ROOT, env={**os.environ, **(env or {})}, timeout=60
    )
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise E.NbllamaError('no')", 1, "error: no"),
        ("raise E.UsageError('no')", 2, "error: no"),
        ("raise E.GGUFError('no')", 2, "error: no"),
        ("raise E.DataError('no')", 2, "error: no"),
        ("raise E.OutputError('no')", 3, "error: no"),
        ("raise E.NotEnoughMemory('no')", 4, "error: no"),
        ("raise E.CheckpointError('no')", 5, "error: no"),
        ("raise E.SaveFailed('no')", 6, "error: no"),
        ("raise E.Diverged('no')", 7, "error: no"),
        ("raise E.Interrupted('stopped, go on with: x', 2)", 130, "stopped, go on with: x"),
        ("raise E.Interrupted('stopped, go on with: x', 15)", 143, "stopped, go on with: x"),
        ("raise KeyboardInterrupt", 130, "stopped by SIGINT"),
        ("raise MemoryError", 4, "error: not enough memory; try a smaller --batch or --ctx"),
        (
            "raise ImportError('a.so: cannot open shared object file: Cannot allocate memory')",
            4,
            "error: not enough memory (a.so: cannot open shared object file: Cannot allocate memory"
            "); try a smaller --batch or --ctx",
        ),
        (
            "import resource as r\n"
            "r.setrlimit(r.RLIMIT_AS, (1 << 40, r.RLIM_INFINITY))\n"
            "raise ImportError('a.so: failed to map segment from shared object')",
            4,
            "error: not enough memory (a.so: failed to map segment from shared object); "
            "try a smaller --batch or --ctx",
        ),
        (
            "raise ImportError('a.so: failed to map segment from shared object')",
            1,
            "internal error: ImportError: a.so: failed to map segment from shared object "
            "(run again with --debug for a traceback)",
        ),
        (
            "raise MemoryError('Unable to allocate 9 TB')",
            4,
            "error: not enough memory (Unable to allocate 9 TB); try a smaller --batch or --ctx",
        ),
        (
            "try:\n    raise OSError(errno.ENOMEM, 'Cannot allocate memory')\n"
            "except OSError as e:\n    raise E.GGUFError('x.gguf: cannot be mapped') from e",
            4,
            "error: x.gguf: cannot be mapped",
        ),
        (
            "try:\n    raise MemoryError\n"
            "except MemoryError:\n    raise E.DataError('data.csv: cannot be read') from None",
            4,
            "error: data.csv: cannot be read",
        ),
        (
            "try:\n    raise OSError(errno.EACCES, 'no')\n"
            "except OSError as e:\n    raise E.GGUFError('x.gguf: cannot be mapped') from e",
            2,
            "error: x.gguf: cannot be mapped",
        ),
        (  # a threading layer that cannot be loaded is not the user's concern
            "import warnings\n"
            "warnings.warn_explicit('TBB', UserWarning, 'numba/x.py', 1, 'numba.np.x')\n"
            "raise E.DataError('no')",
            2,
            "error: no",
        ),
        ("open('nothing-here')", 2, "error: nothing-here: No such file or directory"),
        ("open('no-folder/x', 'w')", 3, "error: no-folder/x: No such file or directory"),
        (
            "raise OSError(errno.ENOSPC, 'No space left on device')",
            3,
            "error: No space left on device",
        ),
        ("raise OSError('odd')", 1, "error: odd"),
        (
            "{}['a key']",
            1,
            "internal error: KeyError: 'a key' (run again with --debug for a traceback)",
        ),
        ("raise E.GGUFError('two\\nlines\\x1b[2J')", 2, r"error: two\nlines\x1b[2J"),
    ],
)
def test_errors_end_as_one_line(body: str, code: int, line: str) -> None:
    assert child(body) == (code, "", line + "\n")


def test_a_result_and_a_system_exit_pass() -> None:
    assert child("print('out')\nreturn 7") == (7, "out\n", "")
    assert child("sys.exit(0)") == (0, "", "")
    assert child("sys.exit()") == (0, "", "")
    assert child("sys.exit(3)") == (3, "", "")


def test_a_traceback_only_with_debug() -> None:
    code, _, err = child("{}['a key']", debug=True)
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "internal error: KeyError: 'a key'"
    code, _, err = child("raise E.GGUFError('no')", debug=True)
    assert (code, err.splitlines()[-1]) == (2, "error: no")
    assert "Traceback" in err


def test_a_long_line_is_whole() -> None:
    text = "resume with: " + "x" * 3000
    assert child(f"raise E.Interrupted({text!r}, 2)") == (130, "", text + "\n")


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "cp936"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_output_is_utf8_whatever_the_locale(env: dict[str, str]) -> None:
    body = (
        r"print('\u6a21\u578b \u2581 \udce4')" + "\n" + r"raise E.DataError('\u6570\u636e \udce4')"
    )
    assert child(body, env=env) == (2, "模型 ▁ \\udce4\n", "error: 数据 \\udce4\n")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("print('x' * 100000)", 1),  # written immediately, so main gets the error
        ("sys.stdout.write('x')", 0),  # the error occurs only at the final flush
        ("raise E.DataError('no')", 2),
    ],
)
def test_a_reader_that_went_away(body: str, code: int) -> None:
    program = (
        "import sys, time\nfrom nbllama.system.program import run_program\n"
        "import nbllama.errors as E\n"
        f"def main(words):\n    time.sleep(0.3)\n    {body}\n    return 0\n"
        "sys.exit(run_program(main, []))"
    )
    got = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | true; echo ${PIPESTATUS[0]}', sys.executable, program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        timeout=60,
    )
    assert got.stdout == f"{code}\n"
    assert "Traceback" not in got.stderr
    assert "Exception ignored" not in got.stderr
    assert len(got.stderr.splitlines()) == (1 if code else 0)


def test_a_signal_while_the_handlers_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Between two of them, the first one may be called already."""
    real = signal.signal
    sent: list[int] = []

    def slow(signum: int, handler: Any) -> Any:
        before = real(signum, handler)
        if signum == signal.SIGTERM and not sent:
            sent.append(signum)
            os.kill(os.getpid(), signum)
        return before

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.MonkeyPatch.context() as m:
            m.setattr(signal, "signal", slow)
            assert run_program(lambda words: 0, []) == 128 + signal.SIGTERM
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


@pytest.mark.parametrize("line", ["from nbllama.system.start import Program", "import _signal"])
def test_ctrl_c_before_the_handlers_are_set(tmp_path: Path, line: str) -> None:
    """From the first import of the package on there is no traceback of ours."""
    package = tmp_path / "nbllama"
    shutil.copytree(ROOT / "nbllama", package, ignore=shutil.ignore_patterns("*.js", "__pycache__"))
    file = package / ("finetune.py" if "start" in line else "__init__.py")
    kill = "import os as o; o.kill(o.getpid(), 2)\n"
    text = file.read_text(encoding="utf-8")
    assert line in text
    indent = " " * 8 if line == "import _signal" else ""
    file.write_text(text.replace(indent + line, f"{indent}{kill}{indent}{line}"), encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", '"$0" -m nbllama.finetune; echo $?', sys.executable],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )  # fmt: skip
    assert done.stdout == "130\n" and "Traceback" not in done.stderr, done


def test_closed_streams() -> None:
    body = "print('x')\nf = open('pyproject.toml')\nassert f.fileno() > 2\nreturn 5"
    for shell in ("{} >&-", "{} 2>&-", "{} <&- >&- 2>&-"):
        code, _, err = child(body, shell=shell)
        assert (code, err) == (5, "")


def test_unreadable_and_unwritable_paths(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("x")
    missing = str(tmp_path / "missing")

    def code(number: int, path: str | None) -> int:
        return os_error_code(OSError(number, "text", path))

    assert code(errno.ENOENT, missing) == 2
    assert code(errno.ENOENT, str(tmp_path / "no" / "folder")) == 3
    assert code(errno.EACCES, missing) == 3
    assert code(errno.EACCES, str(there)) == 3
    assert code(errno.EROFS, str(there)) == 3
    assert code(errno.ENOMEM, None) == 4
    assert code(errno.EIO, None) == 1
    if os.geteuid() != 0:
        there.chmod(0)
        assert code(errno.EACCES, str(there)) == 2


def test_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: list[str]) -> None:
        if words:
            raise errors.CheckpointError(f"{words[0]} does not fit")

    assert run_program(main, []) == 0
    assert run_program(main, ["it"]) == 5
    assert capsys.readouterr().err == "error: it does not fit\n"
