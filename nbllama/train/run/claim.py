"""Check and lock outputs, so that no run destroys files or writes to the files of another run.

Locks are acquired before any slow work, and released when the run ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from nbllama.adapter.file import FOLDER_FILES, check_replaced
from nbllama.checkpoint.gguf_kind import CHECKPOINT, check_gguf_kind
from nbllama.checkpoint.names import PLACEHOLDER, output_name
from nbllama.system.files import check_writable, make_folder, sweep_temporary
from nbllama.system.replaced import LOG, NPZ, OPTIONS_FILE, PAGE, check_kind
from nbllama.system.run_lock import RunLock
from nbllama.train.run.names import Names

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.nbllama-tmp")
OPTIONS_OF_THE_RUN = "the run's options file"
LOG_OF_REPORT = "the log of --report"
_LOCKED = ("--checkpoint-out", "--lora-out", "--report", "--dump-out")
_KINDS = {
    "--report": PAGE, "--dump-out": NPZ, OPTIONS_OF_THE_RUN: OPTIONS_FILE, "--log": LOG,
    LOG_OF_REPORT: LOG,
}  # fmt: skip


def claim(outputs: Mapping[str, Sequence[Names]], stack: ExitStack) -> None:
    """Check that the outputs can be written, and lock them until `stack` ends.

    Also removes incomplete files from runs that were killed, and refuses to replace a file of a
    different kind.

    `outputs` maps options to all the files that the run writes. If an option has several names, the
    first one is locked. A log is locked by its writer.

    Raises `OutputError` if an output cannot be written or locked.
    """
    check_kinds(outputs)
    for option, own in outputs.items():
        if option in _LOCKED:
            _lock(own[0], stack)
        for names in own:
            for name in _left_over(names):
                sweep_temporary(name)


def check_kinds(outputs: Mapping[str, Sequence[Names]]) -> None:
    """Raise `OutputError` if an output's newest file would replace a file of a different kind."""
    for option, own in outputs.items():
        for names in own:
            check_contents(option, names.latest)


def _lock(names: Names, stack: ExitStack) -> None:
    """Lock the LATEST name and the pattern, because `--fn-latest` may differ between runs."""
    newest = names.latest
    if names.folder:
        make_folder(newest)
        newest = os.path.join(newest, FOLDER_FILES[-1])
    check_writable(newest)
    pattern = output_name(names.pattern, PLACEHOLDER, names.mark) if names.mark else names.pattern
    for name in dict.fromkeys((newest, pattern)):
        stack.enter_context(RunLock(name))


def check_contents(option: str, path: str) -> None:
    """Raise `OutputError` if an output would replace a file of a different kind."""
    if os.path.isdir(path):
        return  # a folder for PEFT, whose two files have unambiguous names
    if option in _KINDS:
        check_kind(path, _KINDS[option])
    elif option == "--lora-out":
        check_replaced(path)
    elif option == "--checkpoint-out":
        check_gguf_kind(path, CHECKPOINT)


def _left_over(names: Names) -> Iterator[str]:
    """Yield the files in `names` for which a temporary file may remain from an earlier run."""
    folder = os.path.dirname(names.pattern) or os.curdir
    if names.folder:
        for base in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, base)
            if names.shape.fullmatch(base) and os.path.isdir(path):
                yield from (os.path.join(path, file) for file in FOLDER_FILES)
    elif os.path.isdir(folder):
        found = map(_TEMPORARY.fullmatch, os.listdir(folder))
        for base in sorted({m[1] for m in found if m and names.shape.fullmatch(m[1])}):
            yield os.path.join(folder, base)
