"""Choose the checkpoint to resume from: the given file, or the newest valid one next to it.

If the newest file (LATEST) is damaged, the run prints a warning and resumes from the last valid
numbered checkpoint. The damaged file is kept under a different name. If a folder is given, the run
resumes from the newest valid checkpoint in the folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from nbllama.checkpoint.file import load_checkpoint
from nbllama.checkpoint.gguf_kind import CHECKPOINT, gguf_kind
from nbllama.checkpoint.state import TrainState
from nbllama.errors import CheckpointError, GGUFError, NbllamaError, OutputError, shown
from nbllama.gguf_io import open_gguf
from nbllama.options.finetune.table import Options
from nbllama.system.files import atomic_write
from nbllama.system.regular import first_bytes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Continued:
    """A usable checkpoint.

    `damaged` is the file that the user named, if that file turned out to be damaged.
    """

    state: TrainState
    path: str
    damaged: str = ""

    def settle(self, say: Say) -> None:
        """Rename the damaged file, and copy the good file to the old name.

        The same command line will then find the good file. If this fails, a warning is printed and
        the run continues.
        """
        if not self.damaged:
            return
        try:
            kept = _free_name(f"{self.damaged}.damaged")
            with open(self.path, "rb") as source:
                try:
                    os.link(self.damaged, kept, follow_symlinks=False)
                except OSError:  # the file system has no hard links
                    os.rename(self.damaged, kept)
                with atomic_write(self.damaged) as target:
                    shutil.copyfileobj(source, target)
        except (OSError, OutputError) as e:
            say(f"warning: the damaged file {shown(self.damaged, 400)} was not replaced: {e}")
            return
        say(f"the damaged file is kept as {shown(kept, 400)}")


def continued(options: Options, say: Say) -> Continued | None:
    """Find the checkpoint with `find_checkpoint`, and report where the run starts."""
    path = options.checkpoint_in or ""
    if not path:
        return None
    found = find_checkpoint(options, say)
    if found is None:
        say(f"there is no checkpoint {shown(path)}; starting from the beginning")
    else:
        say(f"resuming from {shown(found.path)} after iteration {found.state.iteration}")
    return found


def find_checkpoint(options: Options, say: Say) -> Continued | None:
    """Find the checkpoint that `--checkpoint-in` names, or return None if it does not exist.

    Raises `CheckpointError` for a folder that contains no valid checkpoint. Also raises it for an
    unusable file, if `--strict-resume` was given or there is no valid checkpoint of the same run
    next to the file.
    """
    path = options.checkpoint_in or ""
    if os.path.isdir(path):
        return _newest_in(path, options.strict_resume, say)
    try:
        return Continued(load_checkpoint(path), path)
    except FileNotFoundError:
        return None
    except CheckpointError as e:
        damage = e
    if options.strict_resume or gguf_kind(path) not in ("", CHECKPOINT):
        raise damage
    for other in _numbered(path, options.fn_latest):
        with suppress(CheckpointError, FileNotFoundError):
            state = load_checkpoint(other)
            say(f"warning: {damage}")
            return Continued(state, other, damaged=path)
    raise damage


def _numbered(path: str, newest: str) -> Iterator[str]:
    """Yield the numbered files next to `path`, highest number first.

    Yields nothing if the name of `path` does not contain `newest`.
    """
    folder, base = os.path.split(path)
    before, found, after = base.partition(newest)
    if not found:
        return
    shape = re.compile(rf"{re.escape(before)}(0|[1-9][0-9]{{0,9}}){re.escape(after)}")
    matches = [m for m in map(shape.fullmatch, os.listdir(folder or os.curdir)) if m]
    for match in sorted(matches, key=lambda m: int(m[1]), reverse=True):
        yield os.path.join(folder, match[0])


def _newest_in(folder: str, strict: bool, say: Say) -> Continued:
    """Find the valid checkpoint with the most iterations in a folder.

    A GGUF file that cannot be opened is reported, because it may be a newer checkpoint.
    """
    found: list[tuple[int, int, str]] = []
    problems: list[NbllamaError] = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith(".") or not os.path.isfile(path) or first_bytes(path, 4) != b"GGUF":
            continue
        try:
            with open_gguf(path) as f:
                iteration = f.metadata.get("training.iteration_count")
        except GGUFError as e:
            problems.append(e)
            continue
        if type(iteration) is int:
            found.append((iteration, os.stat(path).st_mtime_ns, path))
    for _, _, path in sorted(found, reverse=True):
        if strict and problems:
            break
        try:
            state = load_checkpoint(path)
        except CheckpointError as e:
            problems.append(e)
            continue
        for problem in problems:
            say(f"warning: {problem}")
        return Continued(state, path)
    if problems:
        raise CheckpointError(f"{problems[0]}; the checkpoint cannot be used")
    raise CheckpointError(f"{shown(folder, 400)}: the folder contains no checkpoint")


def _free_name(wanted: str) -> str:
    name, n = wanted, 1
    while os.path.lexists(name):
        n += 1
        name = f"{wanted}-{n}"
    return name
