"""Code that wraps every program: UTF-8 output, one-line errors, and exit codes.

| the program ends with | exit |
|---|---|
| `NbllamaError` | the code of the class (see `nbllama.errors`) |
| out of memory | 4 |
| SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR1 outside of training | 130, 143, 129, 138 |
| a path that cannot be read | 2 |
| a path that cannot be written | 3 |
| anything else, which is a bug | 1 |
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from nbllama.errors import Interrupted, NbllamaError, shown
from nbllama.system.start import Program, Stopped, Unwinding, unwinding

_LINE = 4000  # characters; a message about resuming contains a whole command
_WRITING = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EXDEV, errno.ETXTBSY}

_name: ContextVar[str] = ContextVar("_name", default="")


@contextmanager
def called(name: str) -> Iterator[None]:
    """Set the name of the running program, such as "nbllama chat", inside the `with` block."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def called_as(name: str) -> str:
    """Return the name under which the program was started, or `name` if it is unknown."""
    return _name.get() or name


def prepare_streams() -> None:
    """Make standard output and standard error line-buffered and able to print any character.

    The encoding is UTF-8. If one of the first three file descriptors is closed, it is opened on the
    null device; otherwise, the next file that the program opens would receive that descriptor.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # the reader may have exited; the exit code is not affected
        print(shown(line, _LINE), file=sys.stderr, flush=True)


def _close_stdout() -> None:
    """Flush standard output; if the reader has exited, prevent an error when Python exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the exit)
        os.dup2(sys.stdout.fileno(), 1)


def os_error_code(e: OSError) -> int:
    """Return the exit code for an unexpected `OSError`, as in the table in the module docstring."""
    if e.errno == errno.ENOMEM:
        return 4
    if e.errno in _WRITING:
        return 3
    if e.filename is None:
        return 1
    path = os.fsdecode(e.filename) if isinstance(e.filename, str | bytes) else ""
    if isinstance(e, PermissionError):
        return 2 if os.path.exists(path) and not os.access(path, os.R_OK) else 3
    # If the file can be read, or its folder is missing, the failed operation was a write.
    return 3 if os.access(path, os.R_OK) or not os.path.isdir(os.path.dirname(path) or ".") else 2


def _for_want_of_memory(e: BaseException | None) -> bool:
    """Return whether `e`, or an exception that caused it, means that memory ran out.

    This includes an `ImportError` if the dynamic linker could not allocate memory. The linker's
    message about a segment also appears if the file system forbids execution, so this message is
    considered only if there is a memory limit (`ulimit -v`).
    """
    if e is None:
        return False
    if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno == errno.ENOMEM):
        return True
    if not isinstance(e, ImportError):
        return _for_want_of_memory(e.__cause__ or e.__context__)
    if "cannot allocate memory" in str(e).lower():
        return True
    if sys.platform == "win32" or "failed to map segment" not in str(e):
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _line_and_code(e: BaseException) -> tuple[str, int]:
    """Return the message line and the exit code for an exception."""
    if isinstance(e, Interrupted):
        return str(e), e.exit_code
    if isinstance(e, NbllamaError):
        return f"error: {e}", 4 if _for_want_of_memory(e) else e.exit_code
    if isinstance(e, Stopped):
        return str(e), 128 + e.signum
    if isinstance(e, KeyboardInterrupt):
        return "stopped by SIGINT", 130
    if not isinstance(e, OSError) and _for_want_of_memory(e):
        reason = f" ({e})" if str(e) else ""
        return f"error: not enough memory{reason}; try a smaller --batch or --ctx", 4
    if isinstance(e, BrokenPipeError) and e.filename is None:
        return "error: broken pipe: the program that reads the output has ended", 1
    if isinstance(e, OSError):
        where = f"{os.fsdecode(e.filename)}: " if isinstance(e.filename, str | bytes) else ""
        return f"error: {where}{e.strerror or e}", os_error_code(e)
    return f"internal error: {type(e).__name__}: {e}", 1


@contextmanager
def _stoppable() -> Iterator[Unwinding]:
    """Let signals unwind the program, so that cleanup code runs.

    Outside the main thread, which receives all signals, this function has no effect.
    """
    if threading.current_thread() is threading.main_thread():
        with unwinding() as handler:
            yield handler
    else:
        yield Unwinding()


def run_program(
    program: Callable[[list[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """Run `program` with command-line arguments (by default, those of this process).

    Returns the exit code: the return value of `program` (0 for None), or the code for the exception
    that it raised. An exception is printed as one line on standard error, after a traceback if
    --debug is given. For `SystemExit`, the code of the exception is returned.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    if not sys.warnoptions:  # hide numba's warning if a threading layer cannot be loaded
        warnings.filterwarnings("ignore", module=r"numba\.")
    try:
        with _stoppable() as handler:
            code = _ended(program, words, handler)
            handler.over = True
            _close_stdout()
    except Stopped as e:  # raised before the program started, or after it ended
        _say(str(e))
        code = 128 + e.signum
        _close_stdout()
    return code


def _ended(program: Callable[[list[str]], int | None], words: list[str], handler: Unwinding) -> int:
    """Run the program, print any error, and return the exit code."""
    try:
        return program(words) or 0
    except SystemExit as e:
        handler.over = True
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException as e:
        handler.over = True
        line, code = _line_and_code(e)
        if "--debug" in words:
            _traceback()
        elif line.startswith("internal"):
            line += " (run again with --debug for a traceback)"
        _say(line)
        if isinstance(e, Stopped | Interrupted) and Program.started:
            _exit(code)
        return code


def _exit(code: int) -> None:
    """End the process after a signal, without releasing its objects.

    The signal may have interrupted a finalizer that was freeing memory of a C library, and Python
    would run that finalizer again.
    """
    _close_stdout()
    atexit._run_exitfuncs()
    os._exit(code)


def _traceback() -> None:
    with suppress(OSError, ValueError):
        traceback.print_exc(file=sys.stderr)
