"""`python -m nbllama.gradcheck`: check the gradients of a model against finite differences."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.gradcheck")

if __name__ == "__main__":
    sys.exit(main.start())
