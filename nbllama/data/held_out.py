"""Validation data: a held-out part of the training data, or a separate file.

The held-out part shares nothing with the training part. For records, copies of a sample and all
samples of the same record stay on the same side. For raw text, a contiguous range of tokens is held
out, and training keeps only samples entirely outside that range, so that no overlapping sample
reveals the held-out text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nbllama.data.batch import Dataset
from nbllama.data.cutters import Windows
from nbllama.data.order import permutation
from nbllama.data.preferences import Preferences
from nbllama.data.raw_text import RawText
from nbllama.data.text_file import sha256_parts
from nbllama.errors import DataError

_EPOCH = 1 << 48  # no run reaches this epoch, so its permutation is not used for anything else


def hold_out(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split data into a training part and a held-out part for validation.

    The held-out part is about `share` of the samples or tokens, and depends only on `seed`.

    Raises `DataError` if either part would be empty.
    """
    if isinstance(data, Preferences):
        samples: Any = hold_out(data.samples, share, seed)
        return data.of(samples[0]), data.of(samples[1])
    parts = (
        _of_text(data, share, seed) if isinstance(data, RawText) else _of_rows(data, share, seed)
    )
    if parts is None:
        raise DataError(
            f"--val-split {share:g} of {data.n_samples} samples leaves nothing to train on or "
            "nothing to validate on; pass a different share, or --val-data"
        )
    return parts


def apart(data: Dataset) -> Dataset:
    """Return the data for validation, without overlaps that would count a token twice.

    If samples of raw text overlap, only the first is kept.
    """
    return _windows(data, _greedy(data.windows)) if isinstance(data, RawText) else data


def _greedy(windows: Windows, low: int = 0, high: int | None = None) -> np.ndarray:
    """Return the indices of non-overlapping windows within low..high, chosen from left to right."""
    numbers, end = [], low
    for i in np.argsort(windows.begins, kind="stable"):
        first, size = int(windows.begins[i]), int(windows.sizes[i])
        if first >= end and size and (high is None or first + size <= high):
            numbers.append(int(i))
            end = first + size
    return np.array(numbers, np.int64)


def _of_text(data: RawText, share: float, seed: int) -> tuple[Dataset, Dataset] | None:
    begins, sizes = data.windows
    n = len(data.tokens)
    length = max(1, round(share * n))
    first = int(permutation(n - length + 1, seed, _EPOCH)[0])
    inside = _greedy(data.windows, first, first + length)
    outside = np.flatnonzero((begins + sizes <= first) | (begins >= first + length))
    if not len(inside) or not len(outside):
        return None
    return _windows(data, outside), _windows(data, inside)


def _windows(data: RawText, numbers: np.ndarray) -> RawText:
    begins, sizes = (np.ascontiguousarray(part[numbers]) for part in data.windows)
    sha = sha256_parts(data.fingerprint, "part", begins.tobytes(), sizes.tobytes())
    return replace(data, windows=Windows(begins, sizes), fingerprint=sha)


def _of_rows(data: Any, share: float, seed: int) -> tuple[Dataset, Dataset] | None:
    n = data.n_samples
    wanted, held = max(1, round(share * n)), np.zeros(n, bool)
    groups = _groups(data)
    for i in permutation(n, seed, _EPOCH):
        if held.sum() >= wanted:
            break
        held[groups == groups[i]] = True
    if held.all():
        return None
    return _rows(data, np.flatnonzero(~held)), _rows(data, np.flatnonzero(held))


def _groups(data: Any) -> np.ndarray:
    """Return the group number for each sample, int64 [n].

    Samples of the same record are in the same group, and so are copies of a sample.
    """
    parent = list(range(data.n_samples))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    records = range(data.n_samples) if data.records is None else data.records.tolist()
    seen: dict[Any, int] = {}
    for i in range(data.n_samples):
        for key in (_content(data, i), records[i]):
            parent[root(i)] = root(seen.setdefault(key, i))
    return np.array([root(i) for i in range(data.n_samples)], np.int64)


def _content(data: Any, i: int) -> bytes:
    part = slice(data.offsets[i], data.offsets[i + 1])
    return bytes(data.ids[part].tobytes())


def _rows(data: Any, numbers: np.ndarray) -> Dataset:
    """Return the samples with these indices as a data set of the same kind."""
    lengths = np.diff(data.offsets)[numbers]
    places = np.concatenate([np.arange(data.offsets[i], data.offsets[i + 1]) for i in numbers])
    part: Dataset = replace(
        data,
        ids=data.ids[places],
        trained=data.trained[places],
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(data.offsets.dtype),
        lines=data.lines[numbers],
        records=None if data.records is None else data.records[numbers],
        texts=tuple(data.texts[i] for i in numbers) if data.texts else (),
        judged=None if data.judged is None else data.judged.part(numbers),
        fingerprint=sha256_parts(data.fingerprint, "part", numbers.astype(np.int64).tobytes()),
    )
    return part
