"""Settings of the samplers, with llama.cpp's defaults. This module does not import numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """The settings of `Sampler`, named like llama.cpp's options.

    The values top_k 0, top_p 1, min_p 0 and typical 1 disable these filters. If temp is 0 or less,
    the most likely candidate is always chosen. repeat_last_n is the number of tokens to which the
    three penalties apply, or -1 for the whole context. mirostat is the version to use instead of
    filters and penalties, or 0.
    """

    seed: int = 0
    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat: int = 0
    mirostat_lr: float = 0.1
    mirostat_ent: float = 5.0
