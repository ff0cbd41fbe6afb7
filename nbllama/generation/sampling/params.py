"""Settings of the samplers, with llama.cpp's defaults. Importing this module needs no numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """The settings of `Sampler`; names are those of llama.cpp's options.

    A filter is off with top_k 0, top_p 1, min_p 0, typical 1. temp 0 or below: always the most
    likely candidate. repeat_last_n counts tokens for the three penalties, -1: all of the context.
    mirostat 1 or 2 replaces filters and penalties.
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
