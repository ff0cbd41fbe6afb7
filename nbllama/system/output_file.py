"""Check a program's output file before the work begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from nbllama.errors import UsageError, shown
from nbllama.system.files import check_writable, sweep_temporary
from nbllama.system.part_names import files_of
from nbllama.system.replaced import Kind, check_kind


def prepare_output(path: str, inputs: Iterable[str], kind: Kind | None = None) -> None:
    """Check that an output is writable and not an input; remove old temporary files.

    An output is also refused if it is in an input folder, or if it would replace a file of a kind
    other than `kind`. Raises `UsageError` or `OutputError`.
    """
    for file in inputs:
        if os.path.exists(path) and any(os.path.samefile(path, each) for each in _files(file)):
            raise UsageError(
                f"{shown(path, 400)}: is also an input; choose a different output name"
            )
    if kind is not None:
        check_kind(path, kind)
    check_writable(path)
    sweep_temporary(path)


def _files(name: str) -> Iterator[str]:
    """Yield an input and the other parts of its model, or a folder and its files, if they exist."""
    yield from filter(os.path.exists, files_of(name))
    if os.path.isdir(name):
        with os.scandir(name) as entries:
            yield from (entry.path for entry in entries if entry.is_file())
