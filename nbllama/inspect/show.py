"""Format a `Found` as text for a terminal, or as JSON for other programs.

Every string from the file passes through `shown`, so that no control characters reach the terminal
and the length of lines is limited. JSON escapes all control characters anyway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np

from nbllama.errors import shown
from nbllama.gguf_io.strings import StringArray
from nbllama.inspect.found import Found, Key, Target, TensorRow

MOST_ROWS = 200  # maximum number of table rows without --all
MOST_ELEMENTS = 8  # maximum number of array elements shown
MOST_TEXT = 2000  # maximum number of characters in a JSON string
_BLOCK = re.compile(r"^blk\.[0-9]+\.")


def as_text(found: Found, everything: bool = False) -> str:
    """Format a `Found` as text; with `everything`, include every tensor and every key."""
    rows = None if everything else MOST_ROWS
    lines = [f"{shown(found.path, 400)}: {found.kind}, {found.format}, {_bytes(found.size)}", ""]
    lines += _columns([(name, _number(value)) for name, value in found.facts.items()])
    if found.metadata:
        lines += ["", f"metadata, {len(found.metadata)} keys"]
        lines += _columns([_key(key) for key in found.metadata], rows)
    if found.tensors:
        nbytes = sum(t.nbytes for t in found.tensors)
        lines += ["", f"tensors, {len(found.tensors)} ({_bytes(nbytes)})"]
        each = [_tensor(t) for t in found.tensors] if everything else _groups(found.tensors)
        lines += _columns(each, rows)
    if found.targets:
        lines += ["", _headline(found), *_targets(found.targets)]
    lines += ["", *(f"note: {shown(note, 400)}" for note in found.notes)] if found.notes else []
    verdict = "no, see the last line" if found.refused else "yes"
    return "\n".join([*lines, "", f"can be used: {verdict}", ""])


def _bytes(n: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= unit:
            return f"{n / unit:.3g} {name}" if n < 999.5 * unit else f"{n / unit:.0f} {name}"
    return f"{n} bytes"


def _headline(found: Found) -> str:
    if found.kind == "model":
        return "trainable parameters for each kind of training data"
    return "pairs"


def _columns(rows: Sequence[tuple[str, ...]], limit: int | None = None) -> list[str]:
    """Return at most `limit` rows, with their cells aligned in columns."""
    shown_rows = rows if limit is None else rows[:limit]
    widths = [min(44, max(map(len, cells))) for cells in zip(*shown_rows, strict=True)]
    out = []
    for row in shown_rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        out.append(("  " + "  ".join(cells)).rstrip())
    if len(shown_rows) < len(rows):
        out.append(f"  ... and {len(rows) - len(shown_rows)} more; --all shows them")
    return out


def _number(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return f"{value:g}" if isinstance(value, float) else shown(value, 400)


def _key(key: Key) -> tuple[str, ...]:
    return shown(key.name, 60), key.type, _value(key.value)


def _value(value: object) -> str:
    if isinstance(value, StringArray | np.ndarray):
        first = [repr(x) if isinstance(x, str) else f"{x:g}" for x in value[:MOST_ELEMENTS]]
        more = f", ... {len(value)} in total" if len(value) > MOST_ELEMENTS else ""
        return "[" + ", ".join(shown(x, 30) for x in first) + more + "]"
    return str(value) if isinstance(value, int | float | bool) else shown(value, 100)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _tensor(t: TensorRow) -> tuple[str, ...]:
    return shown(t.name, 80), t.type, _shape(t.shape), _bytes(t.nbytes), t.use


def _groups(tensors: Iterable[TensorRow]) -> list[tuple[str, ...]]:
    """Return one row for each group of tensors that are the same in all blocks."""
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorRow]] = {}
    for t in tensors:
        groups.setdefault((_BLOCK.sub("blk.*.", t.name), t.shape, t.use), []).append(t)
    rows: list[tuple[str, ...]] = []
    for (name, shape, use), group in groups.items():
        kinds = sorted({t.type for t in group})
        count = f" ({len(group)})" if len(group) > 1 else ""
        size = _bytes(sum(t.nbytes for t in group))
        rows.append((shown(name, 80) + count, "/".join(kinds), _shape(shape), size, use))
    return rows


def _targets(targets: Sequence[Target]) -> list[str]:
    columns = list(targets[0].parameters)
    rows: list[tuple[str, ...]] = [("option", "tensor", "shape", *columns)]
    for t in targets:
        cells = []
        for column in columns:
            ranks = "/".join(map(str, t.ranks[column]))
            n = t.parameters[column]
            cells.append(f"{_number(n)} (r {ranks})" if n else "off")
        shapes = ", ".join(map(_shape, t.shapes[:3]))
        rows.append((t.option, f"{t.tensor} ({t.tensors})", shapes, *cells))
    totals = (_number(sum(t.parameters[column] for t in targets)) for column in columns)
    rows.append(("total", "", "", *totals))
    return _columns(rows)


def as_json(found: Found) -> str:
    """Format a `Found` as one JSON document.

    Long arrays and strings are truncated; their full length is included.
    """
    refused = found.refused
    document = {
        "path": found.path,
        "bytes": found.size,
        "kind": found.kind,
        "format": found.format,
        "facts": found.facts,
        "metadata": {k.name: {"type": k.type, **_plain(k.value)} for k in found.metadata},
        "tensors": [t._asdict() for t in found.tensors],
        "targets": [t._asdict() for t in found.targets],
        "notes": found.notes,
        "refused": refused
        and {"why": shown(refused, 1000), "exit_code": getattr(refused, "exit_code", 1)},
    }
    return json.dumps(document, indent=1, allow_nan=False, default=str) + "\n"


def _plain(value: object) -> dict[str, object]:
    if isinstance(value, StringArray | np.ndarray):
        first = [x if isinstance(x, str) else _finite(x.item()) for x in value[:MOST_ELEMENTS]]
        return {"length": len(value), "first": [_cut(x) for x in first]}
    return {"value": _cut(_finite(value))}


def _finite(value: object) -> object:
    """Return the value, or its name if it is NaN or infinite, which JSON cannot represent."""
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)


def _cut(value: object) -> object:
    if isinstance(value, str) and len(value) > MOST_TEXT:
        return value[:MOST_TEXT] + f"… ({len(value)} characters)"
    return value
