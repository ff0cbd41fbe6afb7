"""The sizes of batches whose samples share their beginnings (`nbllama.data.shared`)."""

from __future__ import annotations

from typing import NamedTuple

from nbllama.data.batch import Dataset
from nbllama.data.packing import Packed
from nbllama.data.prompts import Prompts
from nbllama.data.samples import Samples
from nbllama.data.shared import FEWEST_ROWS, most_rows


class Sizes(NamedTuple):
    """Bounds on the number of computed rows in a micro-batch, and on the tokens in its samples."""

    computed: int
    keys: int


def largest_shared(dataset: Dataset, n_rows: int, *, tokens: int) -> Sizes:
    """Return bounds for shared batches of `n_rows` rows; `tokens` is the bound without sharing.

    If the data are not records, both bounds are `tokens`, because it is not known in advance how
    much the samples share.
    """
    if isinstance(dataset, Packed) and dataset.shared:
        return Sizes(*dataset.largest_shared(n_rows))
    if isinstance(dataset, Prompts):
        rows = dataset.shared_tokens(n_rows)
        least = n_rows * dataset.group * (FEWEST_ROWS - 1)
        return Sizes(min(tokens, max(rows, least)), tokens)
    if not isinstance(dataset, Samples):
        return Sizes(tokens, tokens)
    rows = most_rows([dataset.inputs(i) for i in range(dataset.n_samples)], n_rows)
    return Sizes(min(tokens, max(rows, n_rows * (FEWEST_ROWS - 1))), tokens)
