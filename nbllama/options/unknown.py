"""The error message for an unknown option."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from nbllama.errors import UsageError, shown

# Below this ratio, names are similar only by chance: it is 0.63 for --device and --escape, and 0.75
# for --data and --val-data.
_ALIKE = 0.76


def unknown(name: str, names: Sequence[str], familiar: Mapping[str, str]) -> UsageError:
    """Return the error for `name`, which is not one of the option names in `names`.

    `familiar` maps names from other programs to the option to use instead, or to a sentence that
    says what to do.
    """
    if not name.startswith("-"):
        model = next((n for n in ("--model", "--model-base") if n in names), "")
        if model and name.lower().endswith(".gguf"):
            return UsageError(f"'{shown(name)}' is not an option; pass a model with {model}")
        return UsageError(f"'{shown(name)}' is not an option; --help lists them all")
    near = [familiar[name]] if name in familiar else []
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
    hint = near[0] if near else "--help lists them all"
    if near and " " not in hint:
        hint = f"did you mean {hint}?"
    return UsageError(f"unknown option '{shown(name)}'; {hint}")
