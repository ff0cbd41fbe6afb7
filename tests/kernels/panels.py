"""Panels of tokens in plain numpy (`nbllama.ops.linear.panels`)."""

from __future__ import annotations

import numpy as np

from nbllama.kernels.lanes import PANEL
from nbllama.ops.linear.lora import packed_rows
from nbllama.ops.linear.panels import n_panels


def to_panels(x: np.ndarray, height: int | None = None) -> np.ndarray:
    """x `[N, K]` as `[P, K, PANEL]`, with zeros up to `height` columns (those of a LoRA product by
    default) and past token N.
    """
    n, k = x.shape
    lanes = np.zeros((n_panels(n) * PANEL, height or packed_rows(k)), x.dtype)
    lanes[:n, :k] = x
    return np.ascontiguousarray(lanes.reshape(-1, PANEL, lanes.shape[1]).transpose(0, 2, 1))


def unpacked(panels: np.ndarray, n: int, k: int) -> np.ndarray:
    """The contents of panels as `[n, k]`."""
    return panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[:n, :k]
