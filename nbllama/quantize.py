"""`python -m nbllama.quantize`: write a model in a different weight type."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.quantize")

if __name__ == "__main__":
    sys.exit(main.start())
