"""`python -m nbllama.verify`: check the effect of an adapter in nbllama and in llama.cpp."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.verify")

if __name__ == "__main__":
    sys.exit(main.start())
