"""Pictures of arrays: histograms, heat maps and attention maps. Requires matplotlib."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np

from nbllama.errors import UsageError, shown
from nbllama.peek.dump import Dump
from nbllama.system.files import atomic_write, check_writable
from nbllama.system.regular import first_bytes
from nbllama.system.replaced import other_kind

KINDS = ("auto", "histogram", "heat", "attention")
MOST_PANELS = 36
_MOST_CELLS = 512  # cells per side of a heat map; larger arrays are shown as block means
_CREATOR = "nbllama peek"  # written into each picture
_METADATA: dict[str, dict[str, str | None]] = {
    # no date, so that the same numbers produce the same file
    "svg": {"Creator": _CREATOR, "Date": None},
    "png": {"Software": _CREATOR},
    "pdf": {"Creator": _CREATOR, "CreationDate": None},
}
_MOST_BYTES = 1 << 26  # how much of an existing picture is searched for its creator


def draw(dump: Dump, path: str, kind: str = "auto", head: int | None = None) -> list[str]:
    """Draw the arrays of a dump in one picture, and return notes for the user.

    Each array is drawn in one panel, but an attention map has one panel per head. With `kind`
    "auto", probabilities are drawn as attention maps and other arrays as histograms. The suffix of
    `path` determines the format. If `head` is given, only that head is drawn. Raises `UsageError`
    if matplotlib is missing, the suffix is unknown, or the arrays cannot be drawn in this way, and
    `OutputError` if writing fails or `path` is a file that this function did not write.
    """
    ending = os.path.splitext(path)[1].lower().lstrip(".")
    if ending not in _METADATA:
        formats = ", ".join(_METADATA)
        raise UsageError(f"{shown(path, 400)}: the name of a picture must end in {formats}")
    panels = _panels(dump, kind, head)
    if not panels:
        raise UsageError(
            "nothing to draw: the arrays are empty, or have too few dimensions for a heat map"
        )
    notes = []
    if len(panels) > MOST_PANELS:
        notes.append(
            f"only the first {MOST_PANELS} of {len(panels)} panels are drawn; use a narrower "
            "pattern"
        )
        panels = panels[:MOST_PANELS]
    _check_replaced(path)
    check_writable(path)
    figure = _figure(panels)
    memory = io.BytesIO()
    figure.savefig(memory, format=ending, dpi=150, metadata=_METADATA[ending])
    with atomic_write(path) as file:
        file.write(memory.getvalue())
    return notes


def _check_replaced(path: str) -> None:
    """Raise `OutputError` for an existing file that is neither empty nor written by `draw`."""
    try:
        content = first_bytes(path, _MOST_BYTES)
    except OSError:
        return  # no file, or none that can be replaced
    if content.strip(b"\0") and _CREATOR.encode() not in content:
        raise other_kind(path, "is not a picture that peek wrote")


Panel = tuple[str, str, np.ndarray]  # title, kind, numbers


def _panels(dump: Dump, kind: str, head: int | None) -> list[Panel]:
    panels: list[Panel] = []
    for name, x in dump.items():
        x = np.asarray(x, np.float64)
        if not x.size:
            continue
        view = kind
        if kind == "auto":
            view = "attention" if name.startswith("kq_soft_max") and x.ndim == 3 else "histogram"
        if view == "attention":
            panels += _attention(name, x, head)
        elif view == "heat":
            if x.ndim > 1:
                panels.append((name, "heat", _shrunk(x.reshape(len(x), -1))))
        else:
            panels.append((name, "histogram", x[np.isfinite(x)]))
    return panels


def _attention(name: str, x: np.ndarray, head: int | None) -> list[Panel]:
    if x.ndim != 3:
        raise UsageError(
            f"{shown(name)}: an attention map requires an array of shape heads x tokens x tokens"
        )
    if head is not None and head >= len(x):
        raise UsageError(f"{shown(name)}: there is no head {head}; the heads are 0..{len(x) - 1}")
    heads = range(len(x)) if head is None else [head]
    return [(f"{name}, head {h}", "attention", _shrunk(x[h])) for h in heads]


def _shrunk(x: np.ndarray) -> np.ndarray:
    """Shrink x to at most `_MOST_CELLS` per side; each cell is the mean of a block of elements."""
    x = np.where(np.isfinite(x), x, np.nan)
    for axis in (0, 1):
        n = x.shape[axis]
        if n > _MOST_CELLS:
            edges = np.linspace(0, n, _MOST_CELLS + 1).astype(int)
            sums = np.add.reduceat(x, edges[:-1], axis=axis)
            counts = np.diff(edges)
            x = sums / (counts[:, None] if axis == 0 else counts)
    return x


def _figure(panels: list[Panel]) -> Any:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UsageError("pictures require matplotlib: pip install 'nbllama[pictures]'") from e
    matplotlib.rcParams["svg.hashsalt"] = "nbllama"
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 3 * rows), layout="constrained")
    for i, (title, kind, x) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, i)
        axes.set_title(shown(title, 60), fontsize=9)
        axes.tick_params(labelsize=7)
        if kind == "histogram":
            axes.hist(x.reshape(-1), bins=80, log=True, color="#3b6ea5")
            axes.set_xlabel("value", fontsize=8)
            axes.set_ylabel("count", fontsize=8)
        elif kind == "attention":
            image = axes.imshow(x, cmap="viridis", vmin=0, interpolation="nearest")
            axes.set_xlabel("attended token", fontsize=8)
            axes.set_ylabel("token", fontsize=8)
            figure.colorbar(image, ax=axes, shrink=0.8)
        else:
            largest = float(np.nanmax(np.abs(x))) or 1.0
            image = axes.imshow(
                x, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
            )
            axes.set_xlabel("column", fontsize=8)
            axes.set_ylabel("row", fontsize=8)
            figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
