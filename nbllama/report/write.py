"""A report as a file."""

from __future__ import annotations

import os

from nbllama.errors import UsageError, shown
from nbllama.report.page import page
from nbllama.report.records import read_log
from nbllama.system.files import atomic_write
from nbllama.system.replaced import PAGE, check_kind


def write_report(log: str, out: str) -> None:
    """Make the page `out` from the log, whole or not at all.

    Raises `DataError` for a log that is none, `OutputError` if the page cannot be written or
    would replace a file that is no such page, `UsageError` if both are the same file.
    """
    if os.path.exists(out) and os.path.exists(log) and os.path.samefile(log, out):
        raise UsageError(f"{shown(out, 400)}: the page would take the place of the log")
    check_kind(out, PAGE)
    text = page(read_log(log))
    with atomic_write(out) as file:
        file.write(text.encode("utf-8", "replace"))
