"""The values that each sampling setting can have, on the command line and in Python."""

from __future__ import annotations

from typing import NamedTuple

_MOST = 2**31 - 1


class Range(NamedTuple):
    """The numbers from `low` to `high`, only integers if `whole`; `off` turns the setting off."""

    low: float
    high: float
    off: float | None = None
    whole: bool = False


ANY = Range(-1e30, 1e30)

RANGES = {
    "seed": Range(0, 2**32 - 1, whole=True),
    "temp": ANY,
    "top_k": Range(-(2**31), _MOST, whole=True),
    "top_p": Range(0, 1, off=1),
    "min_p": Range(0, 1, off=0),
    "typical": Range(0, 1, off=1),
    "repeat_last_n": Range(-1, _MOST, whole=True),
    "repeat_penalty": Range(0.01, 1e6, off=1),
    "frequency_penalty": ANY,
    "presence_penalty": ANY,
    "mirostat": Range(0, 2, whole=True),
    "mirostat_lr": Range(0, 10),
    "mirostat_ent": Range(0, 100),
}
"""The allowed values of each field of `SamplingParams`.

llama.cpp also accepts numbers outside these ranges. For example, it treats a top_p of 95 as 1.
"""
