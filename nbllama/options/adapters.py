"""The options `--lora` and `--lora-scaled`, shared by all programs that accept adapters.

Both options can be repeated, and both accept lists. `--lora-scaled FILE SCALE` takes two words, but
the parser supports only options with one value. Both options are therefore removed from the command
line before it is parsed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from nbllama.errors import UsageError, shown
from nbllama.options.parser import Option, option, plain
from nbllama.options.values import Text

_files = partial(option, "Files")
_LARGEST = 3.4e38  # the largest finite float32


def lora_option(*also: str) -> Any:
    """Declare the field `lora`; `also` lists the other names of the option."""
    return _files(
        Text("FILE,..."), "", "adapters to apply at scale 1", also=also, shown_default="none"
    )


def lora_scaled_option(*also: str) -> Any:
    """Declare the field `lora_scaled`; `also` lists the other names of the option."""
    text = (
        f"adapters to apply, each at its own scale; `{(*also, '--lora-scaled')[0]} FILE SCALE` "
        f"takes a single adapter"
    )
    return _files(Text("FILE:SCALE,..."), "", text, also=also, shown_default="none")


def take_adapters(
    argv: Sequence[str], options: Sequence[Option]
) -> tuple[list[tuple[str, float]], list[str]]:
    """Return the adapters with their scales, in order, and the command-line arguments that remain.

    `options` contains all options of the program, including `lora` and `lora_scaled`. Raises
    `UsageError` if a list is malformed or a scale is not a number.
    """
    by_name = {name: o for o in options for name in (*o.names, *o.off)}
    adapters: list[tuple[str, float]] = []
    left: list[str] = []
    rest = list(argv)

    def value(name: str) -> str:
        if not rest or plain(rest[0].partition("=")[0]) in by_name:
            raise UsageError(f"{name} requires a value")
        return rest.pop(0)

    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        found = by_name.get(plain(name))
        if found is None or found.dest not in ("lora", "lora_scaled"):
            left.append(word)
            if found is not None and found.value is not None and not equals and rest:
                left.append(rest.pop(0))
            continue
        text = text if equals else value(name)
        if found.dest == "lora":
            adapters += [(file, 1.0) for file in _list(name, text)]
        elif (scaled := _scaled_list(text)) is not None:
            adapters += scaled
        elif equals or not rest or plain(rest[0].partition("=")[0]) in by_name:
            raise UsageError(
                f"{name} {shown(text)}: the scale is missing; use FILE SCALE or FILE:SCALE"
            )
        else:
            adapters.append((text, _scale(name, rest.pop(0))))
    return adapters, left


def _list(name: str, text: str) -> list[str]:
    """Split a list at commas, unless the whole text is the name of an existing file."""
    files = [text] if os.path.lexists(text) else text.split(",")
    if not all(files):
        raise UsageError(f"{name} '{shown(text)}': the file name is empty")
    return files


def _scale(name: str, text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UsageError(f"{name}: scale '{shown(text)}' is not a number")
    if abs(scale) > _LARGEST:
        raise UsageError(f"{name}: scale '{shown(text)}' is too large for float32")
    return scale


def _scaled_list(text: str) -> list[tuple[str, float]] | None:
    """Return the pairs in FILE:SCALE,..., or None for a file whose scale is the next word."""
    if os.path.lexists(text):
        return None
    items = [item.rpartition(":") for item in text.split(",")]
    if not any(colon for _, colon, _ in items):
        return None
    if len(items) == 1 and len(items[0][0]) == 1 and items[0][2][:1] in ("\\", "/"):
        return None  # a drive letter and a path, not a file and a scale
    for file, colon, _ in items:
        if not colon or not file:
            raise UsageError(f"--lora-scaled '{shown(text)}': each item must be FILE:SCALE")
    return [(file, _scale("--lora-scaled", scale)) for file, _, scale in items]
