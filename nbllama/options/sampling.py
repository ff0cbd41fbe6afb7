"""The values that each sampling setting can have, on the command line and in Python."""

from __future__ import annotations

from nbllama.options.values import Real, Whole

_ANY = Real(-1e30, 1e30)

RANGES: dict[str, Whole | Real] = {
    "seed": Whole(0, 2**32 - 1),
    "temp": _ANY,
    "top_k": Whole(-(2**31)),
    "top_p": Real(0, 1, off=1),
    "min_p": Real(0, 1, off=0),
    "typical": Real(0, 1, off=1),
    "repeat_last_n": Whole(-1),
    "repeat_penalty": Real(0.01, 1e6, off=1),
    "frequency_penalty": _ANY,
    "presence_penalty": _ANY,
    "mirostat": Whole(0, 2),
    "mirostat_lr": Real(0, 10),
    "mirostat_ent": Real(0, 100),
}
"""The allowed values of each field of `SamplingParams`.

llama.cpp also accepts numbers outside these ranges. For example, it treats a top_p of 95 as 1.
"""
