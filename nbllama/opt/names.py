"""The table of optimisers. To add one, add a file to this folder and a row to the table.

This module imports nothing large, so that the command line can use the table without loading numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbllama.opt.optimiser import Optimiser


@dataclass(frozen=True)
class OptimiserRow:
    """One optimiser: its names, and how its defaults differ from AdamW's."""

    name: str  # name of the module in this folder, and the value of `--optimizer`
    label: str  # name of the class, which is also shown on the screen
    rate_divisor: float = 1.0  # divides AdamW's default learning rate
    beta2: float = 0.999
    has_beta2: bool = True  # if False, beta1 is the momentum, and beta2 has no effect

    def load(self) -> type[Optimiser]:
        """Import and return the class of the optimiser."""
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
