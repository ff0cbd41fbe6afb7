"""The table of optimisers. A new optimiser needs a file in this folder and a row in this table.

This module imports nothing large, so that the command line can read the table before numpy is
loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbllama.opt.optimiser import Optimiser


@dataclass(frozen=True)
class OptimiserRow:
    """One optimiser: its name, and its defaults that differ from AdamW's."""

    name: str  # name of its module in this folder, and value of `--optimizer`
    label: str  # name of its class, also shown on the screen
    rate_divisor: float = 1.0  # the default learning rate is that of AdamW divided by this
    beta2: float = 0.999
    has_beta2: bool = True  # otherwise, beta1 is its momentum, and beta2 has no effect

    def load(self) -> type[Optimiser]:
        """Import and return the optimiser's class."""
        cls: type[Optimiser] = getattr(import_module(f"nbllama.opt.{self.name}"), self.label)
        return cls


OPTIMISERS = {
    row.name: row
    for row in (
        OptimiserRow("adamw", "AdamW"),
        OptimiserRow("sgd", "SGD", has_beta2=False),
        OptimiserRow("lion", "Lion", rate_divisor=10.0, beta2=0.99),
    )
}
