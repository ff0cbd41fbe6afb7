"""Limits on the size of micro-batches, and the number of blocks that can keep their activations."""

from __future__ import annotations

from typing import NamedTuple

from nbllama.data.batch import Dataset
from nbllama.errors import UsageError
from nbllama.lora.pairs import Adapter
from nbllama.model.activations import activation_bytes, set_bytes
from nbllama.model.passes import Model, layout
from nbllama.report.log import memory
from nbllama.train.sharing import Sizes, largest_shared


class Limits(NamedTuple):
    """Upper bounds on the size of a micro-batch, and the mean sizes of a sample.

    `tokens` and `trained` are the largest numbers of tokens and of trained positions in a
    micro-batch, and `longest` is the length of the longest sequence. If samples share beginnings,
    `computed` is the number of rows that are computed, and `keys` is the number of tokens that
    these rows attend to.
    """

    tokens: int
    trained: int
    longest: int
    mean_tokens: float
    mean_trained: float
    computed: int
    keys: int


def limits(dataset: Dataset, batch: int, wraps: bool = False, shares: bool = False) -> Limits:
    """Return bounds for micro-batches of `batch` rows.

    `wraps` says whether every micro-batch is full (`Feed.wraps`), and `shares` says whether samples
    share their beginnings.
    """
    lengths = dataset.lengths()
    means = [float(counts.mean()) for counts in lengths]
    tokens, trained = dataset.largest(batch, wraps=wraps)
    sizes = largest_shared(dataset, batch, tokens=tokens) if shares else Sizes(tokens, tokens)
    longest = int(lengths[0].max())
    return Limits(tokens, trained, longest, means[0], means[1], sizes.computed, sizes.keys)


def kept_blocks(model: Model, adapter: Adapter, most: Limits, nbytes: int, *, dropout: bool) -> int:
    """Return how many blocks can keep their activations in `nbytes` of memory.

    Raises `UsageError` if there is not even enough room for the inputs of all blocks.
    """
    sizes = layout(model, adapter, most.computed, most.trained, dropout=dropout)
    least = activation_bytes(sizes, checkpointing=True)
    if least > nbytes:
        raise UsageError(
            f"--activation-memory: the block inputs alone require {memory(least)}; pass a "
            "larger limit, or a smaller --batch or --ctx"
        )
    fit = (nbytes - least) // set_bytes(sizes)
    return min(int(fit), model.hp.n_layer - 1)
