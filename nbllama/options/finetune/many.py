"""One run on many machines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.parser import Saved, option
from nbllama.options.values import Whole

_many = partial(option, "Many machines")


@dataclass(frozen=True)
class ManyOptions:
    """Blocks of micro-batches, and the machines that compute them."""

    block: int | None = _many(
        Whole(),
        None,
        "sum the gradients of N micro-batches (a power of two) before adding them to the step's; "
        "0: of all. It changes the last digits. Needed to spread a step over several workers",
        shown_default="0",
        saved=Saved(46, taken=True),
        without=0,
    )


def check_many(options: ManyOptions) -> None:
    """Raise `UsageError` for values that are not possible."""
    block = options.block or 0
    if block & (block - 1):
        near = 1 << (block.bit_length() - 1)
        raise UsageError(
            f"--block {block}: must be a power of two, such as {near} or {2 * near}, or 0"
        )
