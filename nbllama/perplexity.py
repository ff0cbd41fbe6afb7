"""`python -m nbllama.perplexity`: measure how well a model predicts a text."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.perplexity")

if __name__ == "__main__":
    sys.exit(main.start())
