"""`python -m nbllama.inspect`: show the contents of a model, checkpoint or adapter."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.inspect")

if __name__ == "__main__":
    sys.exit(main.start())
