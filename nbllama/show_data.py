"""`python -m nbllama.show_data`: show which tokens of a training file count towards the loss."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.show_data")

if __name__ == "__main__":
    sys.exit(main.start())
