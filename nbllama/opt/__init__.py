"""Optimisers on flat dicts of float32 arrays, one a file, and the learning-rate schedules."""

from nbllama.opt.adamw import AdamW
from nbllama.opt.arrays import check_finite, global_norm, n_dims
from nbllama.opt.lion import Lion
from nbllama.opt.optimiser import Optimiser, StepInfo
from nbllama.opt.schedule import schedule
from nbllama.opt.sgd import SGD

__all__ = [
    "OPTIMISERS",
    "SGD",
    "AdamW",
    "Lion",
    "Optimiser",
    "StepInfo",
    "check_finite",
    "global_norm",
    "n_dims",
    "schedule",
]

OPTIMISERS: dict[str, type[Optimiser]] = {"adamw": AdamW, "sgd": SGD, "lion": Lion}
"""By the name that `--optimizer` gives; all of them take the same arguments."""
