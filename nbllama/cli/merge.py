"""Code shared by programs that write a model: name checks, progress and the table of changes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from nbllama.checkpoint.gguf_kind import MODEL, check_gguf_kind, gguf_kind
from nbllama.errors import shown
from nbllama.export.rewrite import Changes
from nbllama.gguf_io import GGUFFile
from nbllama.report.log import duration
from nbllama.system.output_file import prepare_output
from nbllama.system.replaced import GGUF


class Progress:
    """A progress line on standard error.

    On a terminal, the line is overwritten; elsewhere, a new line is printed every 10 %. After the
    `with` block, `seconds` contains the duration of the block.
    """

    seconds = 0.0

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._start = time.monotonic()
        self._tenth = -1

    def __call__(self, done: int, total: int, name: str) -> None:
        """Show that `done` of `total` tensors are finished; `name` is the next tensor."""
        passed = time.monotonic() - self._start
        left = f"ETA {duration(passed / done * (total - done))}" if done and passed > 2 else ""
        if self._terminal:
            line = f"\r[{done + 1:4}/{total}] {shown(name, 44):44} {left:18}"
            print(line, end="", file=sys.stderr)
        elif (tenth := 10 * done // total) > self._tenth:
            self._tenth = tenth
            print(f"[{done + 1:4}/{total}] {shown(name, 60)} {left}".rstrip(), file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Erase the progress line, and set `seconds`."""
        self.seconds = time.monotonic() - self._start
        if self._terminal:
            print(f"\r{'':76}\r", end="", file=sys.stderr)


def table(changes: Changes) -> list[str]:
    """Return a table of tensor counts, sizes and errors, with one line per type conversion."""
    head = f"{'from':8} {'to':8} {'tensors':>7} {'MiB':>9} {'RMSE':>10} {'RMSE/RMS':>9}"
    lines = [head]
    for (old, new), c in sorted(changes.items()):
        row = f"{old:8} {new:8} {c.tensors:7} {c.bytes / 2**20:9.2f}"
        if c.squares:
            row += f" {c.rmse:10.3g} {c.relative:9.3g}"
        else:
            row += f" {'unchanged':>10}"
        lines.append(row)
    return lines


def prepare_model(path: str, inputs: Iterable[str]) -> None:
    """Check the name of a new model, and print a line if it replaces a model.

    Raises the same errors as `prepare_output`, and `OutputError` if the model would replace an
    adapter or a checkpoint.
    """
    prepare_output(path, inputs, GGUF)
    check_gguf_kind(path, MODEL)
    if gguf_kind(path) == MODEL:
        print(f"{shown(path, 400)}: the existing model will be replaced")


def note_parts(f: GGUFFile, target: str) -> None:
    """Print a note if a split model will be written as a single file."""
    if len(f.paths) > 1:
        print(
            f"the model has {len(f.paths)} file parts; {shown(target, 400)} will be a single file"
        )


def print_result(path: str, changes: Changes, seconds: float) -> None:
    """Print the table of changes, followed by the file size and the elapsed time."""
    print("\n".join(table(changes)))
    print(f"{shown(path, 400)}: {os.path.getsize(path) / 2**20:.2f} MiB in {seconds:.1f} s")
