"""Write a report to a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nbllama.errors import UsageError, shown
from nbllama.report.page.template import page
from nbllama.report.payload import payload
from nbllama.report.records import read_log
from nbllama.system.files import atomic_write
from nbllama.system.replaced import PAGE, check_kind


def write_report(logs: str | Sequence[str], out: str) -> None:
    """Write the page `out` atomically, from one log or from several logs to be compared.

    Raises `DataError` for a file that is not a log, `OutputError` if the page cannot be written or
    would replace a file that is not a report, and `UsageError` if the page would replace a log or
    there are too many logs.
    """
    names = [logs] if isinstance(logs, str) else list(logs)
    for log in names:
        if os.path.exists(out) and os.path.exists(log) and os.path.samefile(log, out):
            raise UsageError(
                f"{shown(out, 400)}: the page would replace the log; choose a different name"
            )
    check_kind(out, PAGE)
    runs = [(label, read_log(log)) for label, log in zip(labels(names), names, strict=True)]
    text = page(payload(runs))
    with atomic_write(out) as file:
        file.write(text.encode("utf-8", "replace"))


def labels(logs: Sequence[str]) -> list[str]:
    """Return short, distinct names for logs, with folders only if file names are equal."""
    paths = [os.path.splitext(log)[0].replace(os.sep, "/").split("/") for log in logs]
    for n in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-n:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]
